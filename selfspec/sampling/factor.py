"""Factor: as many positions as their confidences allow together.

With the confidences of the masked positions in falling order c_(1) ≥ c_(2) ≥ …,

    n = max {n : (n + 1)(1 - c_(n)) < f},     U = the n surest, at least one,     x_U ~ p_U.

If all n positions are that sure, their greedy joint is the product of their greedy marginals (the
theorem of Fast-dLLM 2505.22618 with f = 1; drawn tokens have no such theorem). The left side need
not rise with n, so the *largest* n that satisfies it is sought; one public implementation takes all
positions when only the last index fails.
"""

import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.sampling.plain import PlainSampler
from selfspec.schedules import Window
from selfspec.selection import Confidence, DraftWindow, ScoreOrder

__all__ = ["FactorSampler", "FactorWindow"]


class FactorWindow(DraftWindow):
    """The largest n of the module's formula, the places of σ taken as they come.

    Args:
        factor: f, above 0.
        most: as in `DraftWindow`.

    Raises:
        ValueError: `factor` out of range.
    """

    def __init__(self, factor: float = 1.0, most: Window | None = None):
        super().__init__(most)
        if not factor > 0:
            raise ValueError(f"`factor` must be above 0, got {factor}")
        self.factor = factor

    def sizes(self, logp: Tensor, inside: Tensor) -> Tensor:
        """max {n : (n + 1)(1 - c_n) < f}, with c_n the least of the first n; at least 1."""
        least = Confidence()(logp).cummin(1).values
        n = torch.arange(1, logp.shape[1] + 1, device=logp.device)
        fits = inside & ((n + 1) * (1 - least) < self.factor)
        return torch.where(fits, n, 1).amax(1)


class FactorSampler(PlainSampler):
    """As many positions as their confidences allow together.

    Args:
        model: an `SSMD`.
        factor: f, above 0; larger takes more.
        temperature, top_p: as in `Sampler`.
    """

    def __init__(
        self, model: SSMD, factor: float = 1.0, temperature: float = 1.0, top_p: float = 1.0
    ):
        super().__init__(model, ScoreOrder(), FactorWindow(factor), temperature, top_p)
