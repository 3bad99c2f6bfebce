"""A Hugging Face model as a trunk.

A masked model is a stack h = H(tokens) and what its unembedding does, logits = U(h). An adapter
says where the two are separated, so that

    unembed(trunk(tokens)) = the model's own logits, bit for bit,

for every token that may be drafted. A model has one logit for each entry V of its table, also for
tokens that are no text: the mask itself, pads, what stands around a sequence. These are
**forbidden**: their logits are -inf in draft and target alike, so that the draft is the model's own
law given that the token is one of the others. They may be observed.

What U begins with (a dense layer, a norm) is part of U: the head corrects what U reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selfspec.hub.tokenizer import characters, check_ids, letters
from selfspec.weights import fingerprint

__all__ = ["HubTrunk", "Source", "Vocabulary", "transformers"]

Frame = tuple[tuple[int, ...], tuple[int, ...]]
GUIDE = "see docs/adapters.md"


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens are what.

    Attributes:
        size: V, as many as the model has logits.
        mask: stands for a masked position; below V and forbidden, or V, which has no logit.
        pad: what the model is given at pads, which it does not attend to.
        begin, end: tokens that stand around every sequence, observed.
        forbidden: tokens that are never drafted.
    """

    size: int
    mask: int
    pad: int = 0
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()

    def __post_init__(self):
        never = {*self.forbidden, *([self.mask] if self.mask != self.size else ())}
        object.__setattr__(self, "forbidden", tuple(sorted(never)))
        if not 0 <= self.mask <= self.size:
            raise ValueError(f"`mask` must be in 0..{self.size}, got {self.mask}")
        for name in ("pad", "begin", "end", "forbidden"):
            value = getattr(self, name)
            ids = (value,) if isinstance(value, int) else value
            if wrong := [i for i in ids if not 0 <= i < self.size]:
                raise ValueError(f"`{name}` must be in 0..{self.size - 1}, got {wrong[0]}")
        if len(self.forbidden) >= self.size:
            raise ValueError("`forbidden` must leave a token to draft, got all of them")


@dataclass(frozen=True)
class Source:
    """Where a trunk's weights come from, and what they were.

    Attributes:
        name: of the model on the Hub, or its folder; empty where there is none.
        revision: its commit on the Hub; None for a folder.
        sha256: of the weights, as in `weights.fingerprint`.
    """

    name: str
    revision: str | None
    sha256: str


class HubTrunk(nn.Module):
    """What all adapters share; it satisfies `TrunkProtocol`.

    A subclass says which models it fits, reads their shape, and splits their forward in two:
    `hidden` and `logits`. A trunk in half precision gives and takes states in float32, so that the
    head, which works on them, is trained in float32; the way back is exact.

    Args:
        model: the model, in evaluation mode.
        vocabulary: which tokens are what.
        source: where its weights come from.
        length: the longest sequence, with what stands around it; the model's own by default.

    Raises:
        ValueError: the model has no stated length and none is given, or its embedding is not as
            wide as its hidden states.
    """

    writes_specials: ClassVar[bool] = False
    """Whether special tokens are text of this family, such as an end of document: then they are
    drafted, and nothing stands around a sequence."""
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    """Of the library, that makes an empty model from its config."""
    forbidden: Tensor
    """(V,) bool."""

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        source: Source | None = None,
        length: int | None = None,
    ):
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.source = source or Source("", None, fingerprint(self.weights()))
        own = self.read_length(model)
        if length is None and own is None:
            raise ValueError(
                "`length` must be given where the model's config states none, got None"
            )
        if length is not None and not 1 <= length <= (own or length):
            raise ValueError(f"`length` must be in 1..{own}, the model's own, got {length}")
        self.length: int = length or own or 0
        self.width: int = self.read_width(model)
        self.num_blocks: int = self.read_blocks(model)
        forbidden = torch.zeros(vocabulary.size, dtype=torch.bool)
        forbidden[list(vocabulary.forbidden)] = True
        # Persistent: buffers that are not come back as garbage from `from_pretrained`.
        self.register_buffer("forbidden", forbidden.to(next(model.parameters()).device))

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether this adapter is for models of this class."""
        raise NotImplementedError

    @staticmethod
    def read_width(model: Any) -> int:
        """C."""
        return model.config.hidden_size

    @staticmethod
    def read_blocks(model: Any) -> int:
        """Transformer blocks."""
        return model.config.num_hidden_layers

    @staticmethod
    def read_length(model: Any) -> int | None:
        """The longest sequence that the model can read; None where it does not say."""
        return getattr(model.config, "max_position_embeddings", None)

    @staticmethod
    def read_weights(model: Any) -> Iterable[Tensor]:
        """Those on which drafts depend."""
        return model.parameters()

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """(B, L) tokens, (B, L) int64 1 at what is not a pad → (B, L, C), what `logits` reads."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, C) → (…, V), the rest of the model's forward."""
        raise NotImplementedError

    def own_logits(self, tokens: Tensor) -> Tensor:
        """(B, L) → (B, L, V) by the model's own forward; entry ℓ is for position ℓ."""
        return self.model(input_ids=tokens).logits

    @property
    def vocab_size(self) -> int:
        """V; some of its tokens are forbidden."""
        return self.vocabulary.size

    @property
    def mask_id(self) -> int:
        """The token that stands for a masked position."""
        return self.vocabulary.mask

    @property
    def frame(self) -> Frame:
        """Tokens before and after every sequence."""
        return self.vocabulary.begin, self.vocabulary.end

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights."""
        return next(self.model.parameters()).dtype

    def weights(self) -> Iterable[Tensor]:
        """Those on which drafts depend, with the adapter's own: a source is known by them."""
        models = set(map(id, self.model.parameters()))
        own = (weight for weight in self.parameters() if id(weight) not in models)
        return chain(own, self.read_weights(self.model))

    @property
    def writable(self) -> bool:
        """Whether `reunite` can make the model anew, from its config by the library's classes."""
        ours = type(self).__module__.startswith(f"{__package__}.")
        return ours and not type(self.model).__module__.startswith("transformers_modules.")

    @property
    def stands_elsewhere(self) -> bool:
        """Whether the weights are their source's still, and that has a name to find it by.

        What cannot be written needs no name: it has to be handed in. Reads all weights.
        """
        found = bool(self.source.name) or not self.writable
        return found and fingerprint(self.weights()) == self.source.sha256

    def to_config(self, whole: bool) -> dict[str, Any]:
        """A JSON-ready description, from which `reunite` makes an equal trunk.

        Args:
            whole: the weights are stored beside it, so the shape of the model is described too.

        Raises:
            ValueError: `whole`, for a trunk that is not `writable`.
        """
        if whole and not self.writable:
            raise ValueError("`model` must have the trunk's own weights, and `merge` be False, "
                             "where the trunk is remote code or its adapter your own: it cannot be "
                             "written")  # fmt: skip
        source = asdict(self.source)
        if whole and source["sha256"] != (now := fingerprint(self.weights())):
            source = asdict(Source("", None, now))  # it was trained further
        return {
            "kind": "hub",
            "adapter": type(self).__name__,
            **source,
            "dtype": str(self.dtype).removeprefix("torch."),
            "length": self.length,
            "vocabulary": asdict(self.vocabulary),
            "model": self.model.config.to_dict() if whole else None,
        }

    def forward(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L) tokens, (B, L) bool pads → (B, L, C) hidden states, in float32 at least."""
        if pad is None:
            return _wide(self.hidden(tokens, None))
        return _wide(self.hidden(tokens.masked_fill(pad, self.vocabulary.pad), (~pad).long()))

    def embed(self, tokens: Tensor) -> Tensor:
        """(…) tokens → (…, C), rows of the model's own table."""
        return _wide(self.model.get_input_embeddings()(tokens))

    def unembed(self, hidden: Tensor) -> Tensor:
        """(…, C) → (…, V) the model's own logits, -inf for what is forbidden."""
        return self.logits(hidden.to(self.dtype)).masked_fill(self.forbidden, -torch.inf)

    @torch.no_grad()
    def check(self) -> None:
        """Compares with the model's own forward on one short row.

        Up to rounding: a kernel may choose its order of summation by where its input lies.

        Raises:
            ValueError: the drafts are not the model's own, the embedding gives more than a tensor
                or is not as wide as the hidden states, or pads are seen.
        """
        text = (~self.forbidden).nonzero().flatten()[:6].tolist()
        begin, end = self.frame
        room = max(1, min(8, self.length) - len(begin) - len(end))
        row = [*begin, *[self.mask_id, *text][:room], *end]
        tokens = torch.tensor([row], device=self.forbidden.device)
        name = type(self.model).__name__
        first = torch.zeros_like(tokens)  # the mask may be none of the model's own tokens
        if not isinstance(self.model.get_input_embeddings()(first), Tensor):  # as I-BERT's
            raise ValueError(f"`model` must have an embedding that gives one tensor, got {name}; "
                             f"{GUIDE}")  # fmt: skip
        if (embedded := self.embed(tokens).shape[-1]) != self.width:
            raise ValueError(f"`model` must have an embedding as wide as its {self.width} hidden "
                             f"channels, got {embedded} in {name}; {GUIDE}")  # fmt: skip
        own, drafted = self.own_logits(tokens), self.unembed(self(tokens))
        allowed = ~self.forbidden
        if own.shape != drafted.shape or not own[..., allowed].double().allclose(
            drafted[..., allowed].double(), rtol=1e-2, atol=1e-2
        ):
            raise ValueError(f"`model` must split into hidden states and unembedding as "
                             f"{type(self).__name__} does it, got other logits from {name}; "
                             f"{GUIDE}")  # fmt: skip
        if self._sees_pads(tokens):
            raise ValueError(f"`model` must not attend to pads, got {name}, which does; {GUIDE}")

    def _sees_pads(self, tokens: Tensor) -> bool:
        """Whether a row (1, L) has other states with a pad for its last token than without it."""
        if tokens.shape[1] < 2:
            return False
        pad = torch.zeros_like(tokens, dtype=torch.bool)
        pad[:, -1] = True
        alone, padded = self(tokens[:, :-1]), self(tokens, pad)[:, :-1]
        rounding = max(1e-2, 4 * torch.finfo(self.dtype).eps)
        return bool((padded - alone).norm() > rounding * alone.norm())


def transformers() -> Any:
    """The library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("models of the Hub need `pip install selfspec[hf]`") from error
    return transformers


def read_vocabulary(
    size: int,
    config: Any,
    tokenizer: Any = None,
    mask_id: int | None = None,
    forbidden: Iterable[int] = (),
    writes_specials: bool = False,
) -> Vocabulary:
    """Which tokens are what, from a model's config and its tokenizer.

    Args:
        size: V.
        config: of the model; may state `mask_token_id` and `pad_token_id`.
        tokenizer: of the `transformers` library, or None.
        mask_id: the mask token, where neither of them knows it.
        forbidden: further tokens that are never drafted.
        writes_specials: special tokens are text: only mask and pads are forbidden.

    Raises:
        ValueError: there is no mask token, it is none of the model's, or the two do not agree; or
            the tokenizer has more tokens than the model.
    """
    stated = [mask_id, getattr(tokenizer, "mask_token_id", None),
              getattr(config, "mask_token_id", None)]  # fmt: skip
    mask = next((i for i in stated if i is not None), None)
    if mask is None:
        whose = type(tokenizer).__name__ if tokenizer is not None else "a model without tokenizer"
        raise ValueError(f"`tokenizer` must have a mask token, got {whose} without one: "
                         "give `mask_id` if the model was trained with another")  # fmt: skip
    if mask_id is None and {*stated} - {None, mask}:
        raise ValueError(f"`tokenizer` must have the model's mask token {stated[-1]}, got {mask}: "
                         "it is another model's, or give `mask_id`")  # fmt: skip
    if not 0 <= mask < size:
        whose = " of tokenizer or config" if mask_id is None else ""
        raise ValueError(f"`mask_id` must be in 0..{size - 1}, the model's tokens, "
                         f"got {mask}{whose}")  # fmt: skip
    if tokenizer is not None:
        check_ids(tokenizer, size)
    pads = [getattr(tokenizer, "pad_token_id", None), getattr(config, "pad_token_id", None)]
    pad = next((i for i in pads if i is not None), 0)
    never = {mask, *forbidden}
    if tokenizer is not None:
        never |= set(range(len(tokenizer), size))  # rows of the table that stand for no text
    if writes_specials:
        return Vocabulary(size, mask, pad, forbidden=tuple(never))
    if tokenizer is not None and (text := letters(tokenizer) or characters(tokenizer)):
        never |= {i for token, i in tokenizer.get_vocab().items() if token not in {*text}}
    never |= set(getattr(tokenizer, "all_special_ids", ())) | {i for i in pads if i is not None}
    begin, end = _frame(tokenizer)
    return Vocabulary(size, mask, pad, begin, end, tuple(never))


def _frame(tokenizer: Any) -> Frame:
    """What a tokenizer puts around nothing: the first is a beginning if it is known as one."""
    ids = [] if tokenizer is None else list(tokenizer("")["input_ids"])
    first = {getattr(tokenizer, name, None) for name in ("cls_token_id", "bos_token_id")}
    split = 1 if ids and ids[0] in first else 0
    return tuple(ids[:split]), tuple(ids[split:])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
