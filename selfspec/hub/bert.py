"""BERT, RoBERTa, ModernBERT and their relatives: any `AutoModelForMaskedLM` of two parts.

hidden    the base model, `model.<base_model_prefix>`
logits    one module or several in a row, by the names in `PARTS`
"""

from typing import Any

from torch import Tensor, nn

from selfspec.hub.trunk import HubTrunk

__all__ = ["MaskedLMTrunk"]

PARTS = (
    ("head", "decoder"),  # ModernBERT
    ("lm_head",),
    ("cls",),
    ("predictions",),
    ("generator_predictions", "generator_lm_head"),  # ELECTRA, ConvBERT
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),  # DistilBERT
)
"""From hidden states to logits; the first that the model has all of are taken."""


class MaskedLMTrunk(HubTrunk):
    """A masked language model of the `transformers` library."""

    @staticmethod
    def fits(model: Any) -> bool:
        """The class says that it is one, and has the two parts."""
        masked = "MaskedLM" in type(model).__name__
        return masked and _base(model) is not None and bool(_unembedding(model))

    @staticmethod
    def read_length(model: Any) -> int | None:
        """Tables of positions that have a pad row begin to count behind it (RoBERTa)."""
        table = next((module for name, module in model.named_modules()
                      if name.endswith("position_embeddings")), None)  # fmt: skip
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.num_embeddings - table.padding_idx - 1
        return HubTrunk.read_length(model)

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """The base model's last hidden states."""
        base = _base(self.model)
        assert base is not None
        return base(input_ids=tokens, attention_mask=real)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Dense layer, norm and decoder, as the family has them."""
        for module in _unembedding(self.model):
            hidden = module(hidden)
        return hidden


def _base(model: Any) -> nn.Module | None:
    return getattr(model, getattr(model, "base_model_prefix", "") or "model", None)


def _unembedding(model: Any) -> list[nn.Module]:
    """The modules that lead from hidden states to logits, in order; none where it has others."""
    names = next((names for names in PARTS if all(hasattr(model, name) for name in names)), ())
    return [getattr(model, name) for name in names]
