"""Threshold: every position whose likeliest token is likely enough.

    U = {ℓ ∈ M : max p_ℓ ≥ τ} ∪ {the surest},     x_U ~ p_U.

Source: Fast-dLLM 2505.22618, τ = 0.9 for greedy tokens within blocks of 32; here tokens are drawn
and the whole row is one block.
"""

import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.sampling.plain import PlainSampler
from selfspec.schedules import Window
from selfspec.selection import Confidence, DraftWindow, ScoreOrder

__all__ = ["ThresholdSampler", "ThresholdWindow"]


class ThresholdWindow(DraftWindow):
    """The first places of σ up to one whose confidence is below τ, at least one.

    Args:
        tau: τ in [0, 1].
        most: as in `DraftWindow`.

    Raises:
        ValueError: `tau` out of range.
    """

    def __init__(self, tau: float = 0.9, most: Window | None = None):
        super().__init__(most)
        if not 0 <= tau <= 1:
            raise ValueError(f"`tau` must be in [0, 1], got {tau}")
        self.tau = tau

    def sizes(self, logp: Tensor, inside: Tensor) -> Tensor:
        """max(1, leading places with c ≥ τ)."""
        sure = inside & (Confidence()(logp) >= self.tau)
        return torch.cummin(sure.long(), 1).values.sum(1).clamp(min=1)


class ThresholdSampler(PlainSampler):
    """Every position that is sure enough.

    Args:
        model: an `SSMD`.
        tau: τ in [0, 1]; 0 takes all.
        temperature, top_p: as in `Sampler`.
    """

    def __init__(self, model: SSMD, tau: float = 0.9, temperature: float = 1.0, top_p: float = 1.0):
        super().__init__(model, ScoreOrder(), ThresholdWindow(tau), temperature, top_p)
