"""A causal language model as a masked one (Llama, GPT-2 and what is built like them).

The state of a causal model at a token says what comes *next*. Three changes make it a trunk:

    attention     every token attends to every other that is no pad
    mask token    the id V: a row m more in the table that is read, none in the one that is written
    the shift     is kept: with b in front, the state before position ℓ predicts x_ℓ

                  states     h_b  h_0  h_1  …  h_(L-2)  h_(L-1)
                  predict    x_0  x_1  x_2  …  x_(L-1)     –

so the logits at ℓ are U(h_(ℓ-1)). With causal attention they would be the model's own
log p(x_ℓ | x_<ℓ): what it knows of text is where it was, and m, the mean of all rows, is all that
is new. Without the shift every token would have to be unlearned first; docs/adapters.md has
figures. DiffuLLaMA (Gong et al. 2024, arXiv 2410.17891) and Dream (arXiv 2508.15487) keep it too,
but predict x_0 from its own state. Here it is predicted from b, the token that begins a text, else
the one that ends one, else the mask; that costs one position. Attention is opened at once, not step
by step.

Until it is trained the model drafts badly. `recipes.adapt_ar` trains it whole.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec.causal_lm import load_causal_lm
from selfspec.hub.tokenizer import HubTokenizer
from selfspec.hub.trunk import GUIDE, HubTrunk, Source, Vocabulary
from selfspec.model import SSMD
from selfspec.weights import fingerprint

__all__ = ["CausalTrunk", "OpenTrunk", "adapt_causal"]


class OpenTrunk(HubTrunk):
    """A model of a causal class in which every token sees every other, read without a shift."""

    writes_specials: ClassVar[bool] = True  # what ends a document stands between two of them
    auto_class: ClassVar[str] = "AutoModelForCausalLM"

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        source: Source | None = None,
        length: int | None = None,
    ):
        super().__init__(model, vocabulary, source, length)
        open_attention(model)

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """The last hidden states."""
        return self.model.base_model(input_ids=tokens, attention_mask=real, use_cache=False)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """The unembedding."""
        return self.model.get_output_embeddings()(hidden)

    @torch.no_grad()
    def check(self) -> None:
        """As the base class, and that attention has no direction.

        Libraries build masks in several places, and what they overlook is causal silently.

        Raises:
            ValueError: as the base class, or attention stays causal.
        """
        super().check()
        row = (~self.forbidden).nonzero().flatten()[:4].unsqueeze(0)
        states, name = self(row), type(self.model).__name__
        other = torch.cat([row[:, :-1], torch.full_like(row[:, :1], self.mask_id)], dim=1)
        if self(other)[:, 0].equal(states[:, 0]):
            raise ValueError(f"`model` must let tokens see what comes later, got {name}, "
                             f"whose attention stays causal; {GUIDE}")  # fmt: skip


class CausalTrunk(OpenTrunk):
    """A causal language model that sees both sides; never chosen unless asked for."""

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        source: Source | None = None,
        length: int | None = None,
    ):
        super().__init__(model, vocabulary, source, length)
        self.mask_embedding = nn.Parameter(model.get_input_embeddings().weight.detach().mean(0))
        ends = (getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id"))
        self.begin: int = next((i for i in ends if isinstance(i, int)), self.mask_id)

    @staticmethod
    def fits(model: Any) -> bool:
        """Never: a causal model does not become another one by itself."""
        return False

    @staticmethod
    def read_length(model: Any) -> int | None:
        """One less than the model's own, for the token in front."""
        own = HubTrunk.read_length(model)
        return None if own is None else own - 1

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """The last hidden states, each moved to the position that it predicts."""
        return self._run(self.model.base_model, tokens, real)[0][:, :-1]

    def own_logits(self, tokens: Tensor) -> Tensor:
        """The model's own, each moved to the position that it predicts."""
        return self._run(self.model, tokens).logits[:, :-1]

    def embed(self, tokens: Tensor) -> Tensor:
        """(…) tokens → (…, C), of which V is the mask."""
        embedded = self._embedded(tokens)
        return embedded.to(torch.promote_types(embedded.dtype, torch.float32))

    def _run(self, model: Any, tokens: Tensor, real: Tensor | None = None) -> Any:
        """A module of the library on b and the tokens."""
        row = F.pad(tokens, (1, 0), value=self.begin)
        seen = None if real is None else F.pad(real, (1, 0), value=1)
        return model(inputs_embeds=self._embedded(row), attention_mask=seen, use_cache=False)

    def _embedded(self, tokens: Tensor) -> Tensor:
        masked = tokens == self.mask_id
        table = self.model.get_input_embeddings()
        known = table(tokens.masked_fill(masked, 0))
        return torch.where(masked.unsqueeze(-1), self.mask_embedding.to(known.dtype), known)


def open_attention(model: Any) -> None:
    """Lets every token of the model see every other.

    The library makes its masks by the config; where it makes none, versions differ in whether the
    config or the attention module says what that means. `OpenTrunk.check` sees the result.

    Raises:
        ValueError: a layer attends by windows, chunks or recurrence.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"`model` must have full attention in every layer, got "
                         f"{', '.join(sorted(kinds))} in {type(model).__name__}")  # fmt: skip
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False


def adapt_causal(
    model: Any,
    *,
    tokenizer: Any = None,
    length: int | None = None,
    revision: str | None = None,
) -> SSMD:
    """A causal language model with bidirectional attention and a mask token, still to be trained.

    Args:
        model: a name on the Hugging Face Hub, a folder, a `.gguf` file, or a model of the
            `transformers` library, which is changed in place.
        tokenizer: of the `transformers` library, or its name; the model's own by default.
        length: the longest sequence; one less than the model's own by default.
        revision: of a model on the Hub.

    Returns:
        An `SSMD` without head, in evaluation mode; in float32 if it was loaded by name.

    Raises:
        ValueError: not a causal language model, or one with windowed attention.
        OSError: no model of this name.
    """
    name, own = "", model
    if not isinstance(model, nn.Module):
        name = str(model)
        own, tokenizer = load_causal_lm(name, tokenizer, revision=revision)
    if not type(own).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise ValueError(f"`model` must be a causal language model, got {type(own).__name__}")
    size = own.config.vocab_size
    no_text = () if tokenizer is None else range(len(tokenizer), size)
    vocabulary = Vocabulary(size, mask=size, forbidden=tuple(no_text))
    commit = getattr(own.config, "_commit_hash", None)
    source = Source(name, commit, fingerprint(own.parameters()))
    trunk = CausalTrunk(own.eval().requires_grad_(False), vocabulary, source, length)
    trunk.check()
    result = SSMD(trunk.requires_grad_(False))
    if tokenizer is not None:
        result.tokenizer = HubTokenizer(tokenizer, size, size)
    return result.eval()
