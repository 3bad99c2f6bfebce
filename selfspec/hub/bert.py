"""BERT, RoBERTa, ModernBERT and their relatives: any `AutoModelForMaskedLM` of two parts.

hidden    the base model, `model.<base_model_prefix>`
logits    the module `lm_head`, `cls` or `predictions`; or `decoder` after `head` (ModernBERT)
"""

from typing import Any

from torch import Tensor, nn

from selfspec.hub.trunk import HubTrunk

__all__ = ["MaskedLMTrunk"]

HEADS = ("lm_head", "cls", "predictions")


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
    """The modules that lead from hidden states to logits, in order."""
    if hasattr(model, "head") and hasattr(model, "decoder"):
        return [model.head, model.decoder]
    return [getattr(model, name) for name in HEADS if hasattr(model, name)][:1]
