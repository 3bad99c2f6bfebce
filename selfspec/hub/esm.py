"""ESM-2 and what shares its class, such as DPLM: `EsmForMaskedLM`.

With `token_dropout` the model divides its embeddings by the share of tokens that it sees, so a row
of masks alone has no answer, but nan: the tokens around a sequence, <cls> and <eos>, must be there.
Samplers and likelihoods refuse such rows before they begin.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from selfspec.hub.bert import MaskedLMTrunk

__all__ = ["EsmTrunk"]


class EsmTrunk(MaskedLMTrunk):
    """Protein language models of the ESM family."""

    @staticmethod
    def fits(model: Any) -> bool:
        """By the name of the family."""
        return model.config.model_type == "esm" and MaskedLMTrunk.fits(model)

    @staticmethod
    def read_length(model: Any) -> int | None:
        """The table counts from behind the pad row, and the rotary models keep its length."""
        return model.config.max_position_embeddings - model.config.pad_token_id - 1

    @staticmethod
    def read_weights(model: Any) -> Iterable[Tensor]:
        """All but the contact head's, which a checkpoint may lack and no draft reads."""
        named = model.named_parameters()
        return (weight for name, weight in named if "contact_head" not in name)

    @property
    def needs_a_token(self) -> bool:
        """Whether a row of masks alone has no answer."""
        return self.model.config.token_dropout
