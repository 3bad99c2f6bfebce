"""ESM-2 and what shares its class, such as DPLM: `EsmForMaskedLM`.

With `token_dropout` the model divides its embeddings by the share of tokens that it sees, so a row
of masks alone has no answer: the tokens around a sequence, <cls> and <eos>, must be there.
"""

from collections.abc import Iterable
from typing import Any

import torch
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

    def weights(self) -> Iterable[Tensor]:
        """All but the contact head's, which a checkpoint may lack and no draft reads."""
        named = self.model.named_parameters()
        return (weight for name, weight in named if "contact_head" not in name)

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """As the base class.

        Raises:
            ValueError: a row of masks alone, outside training.
        """
        if self.model.config.token_dropout and not torch.is_grad_enabled():
            unseen = tokens == self.mask_id
            if real is not None:
                unseen |= real == 0
            if bool(unseen.all(1).any()):
                raise ValueError("`tokens` must show this model at least one token of a row, such "
                                 "as <cls>, got a row of masks alone")  # fmt: skip
        return super().hidden(tokens, real)
