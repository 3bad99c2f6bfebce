"""LLaDA and Dream, whose classes are in their own repositories (`trust_remote_code`).

LLaDA (arXiv 2502.09992) computes logits wherever it is called, so its unembedding is taken out for
the time of the call. Dream (arXiv 2508.15487) was made from a causal model and kept its shift: the
state at position ℓ-1 predicts the token at ℓ, and position 0 is predicted from its own state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selfspec.hub.trunk import HubTrunk

__all__ = ["DreamTrunk", "LLaDATrunk"]


class LLaDATrunk(HubTrunk):
    """LLaDA. Its attention ignores pads, so rows of a batch must have one length."""

    writes_specials: ClassVar[bool] = True
    remote_code: ClassVar[bool] = True

    @staticmethod
    def fits(model: Any) -> bool:
        """By the name of the family."""
        return model.config.model_type == "llada"

    @staticmethod
    def read_width(model: Any) -> int:
        """C."""
        return model.config.d_model

    @staticmethod
    def read_blocks(model: Any) -> int:
        """Blocks."""
        return model.config.n_layers

    @staticmethod
    def read_length(model: Any) -> int | None:
        """The length of training."""
        return model.config.max_sequence_length

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """States after the final norm.

        Raises:
            ValueError: there are pads.
        """
        if real is not None:
            raise ValueError("`pad` must be None for LLaDA, whose attention would see the pads: "
                             "give it rows of one length")  # fmt: skip
        with _without_unembedding(self.model):
            return self.model(input_ids=tokens).logits

    def logits(self, hidden: Tensor) -> Tensor:
        """The unembedding."""
        return self.model.get_output_embeddings()(hidden)


class DreamTrunk(HubTrunk):
    """Dream."""

    writes_specials: ClassVar[bool] = True
    remote_code: ClassVar[bool] = True

    @staticmethod
    def fits(model: Any) -> bool:
        """By the name of the family."""
        return model.config.model_type.lower() == "dream"

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """States after the final norm, each moved to the position that it predicts."""
        mask = None if real is None else real.bool()[:, None, None, :]
        return _shifted(self.model.model(input_ids=tokens, attention_mask=mask)[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """The unembedding."""
        return self.model.lm_head(hidden)

    def own_logits(self, tokens: Tensor) -> Tensor:
        """As Dream's own sampler reads them."""
        return _shifted(super().own_logits(tokens))


def _shifted(x: Tensor) -> Tensor:
    """x_0, x_0, x_1, …, x_(L-2)."""
    return torch.cat([x[:, :1], x[:, :-1]], dim=1)


@contextmanager
def _without_unembedding(model: Any) -> Iterator[None]:
    """Within the block the model returns what its unembedding would read."""
    unembedding = model.get_output_embeddings()
    model.set_output_embeddings(nn.Identity())
    try:
        yield
    finally:
        model.set_output_embeddings(unembedding)
