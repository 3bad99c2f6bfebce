"""Entropy bound: as many positions as their entropies allow together.

With the entropies H_1, H_2, … nats of the masked positions along σ,

    k = max(1, #{j : Σ_{m ≤ j} H_m - max_{m ≤ j} H_m ≤ γ}),     U = the first k,     x_U ~ p_U.

The joint entropy of U lies between max H and Σ H, so the left side bounds the mutual information
that a factorised draw of U gives away. γ = 0 reveals one token a pass (and what is certain), γ = ∞
all. The bound holds for any σ; EB-Sampler (2505.24857) takes the positions of lowest entropy first.
"""

from torch import Tensor

from selfspec.model import SSMD
from selfspec.orders import Order
from selfspec.sampling.plain import PlainSampler
from selfspec.schedules import Window
from selfspec.selection import DraftWindow, Entropy, ScoreOrder, entropy

__all__ = ["EntropyBoundSampler", "EntropyBoundWindow"]


class EntropyBoundWindow(DraftWindow):
    """The k of the module's formula.

    Args:
        gamma: γ ≥ 0, nats.
        most: as in `DraftWindow`.

    Raises:
        ValueError: `gamma` below 0.
    """

    def __init__(self, gamma: float = 0.1, most: Window | None = None):
        super().__init__(most)
        if not gamma >= 0:
            raise ValueError(f"`gamma` must be at least 0, got {gamma}")
        self.gamma = gamma

    def sizes(self, logp: Tensor, inside: Tensor) -> Tensor:
        """max(1, #{j : Σ H - max H ≤ γ}); the left side never falls along σ."""
        bits = entropy(logp)
        lost = bits.cumsum(1) - bits.cummax(1).values
        return (inside & (lost <= self.gamma)).sum(1).clamp(min=1)


class EntropyBoundSampler(PlainSampler):
    """As many positions as their entropies allow together.

    Args:
        model: an `SSMD`.
        gamma: γ ≥ 0, nats.
        order: the rule for σ; lowest entropy first by default.
        temperature, top_p: as in `Sampler`.
    """

    def __init__(
        self,
        model: SSMD,
        gamma: float = 0.1,
        order: Order | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        order = order if order is not None else ScoreOrder(Entropy())
        super().__init__(model, order, EntropyBoundWindow(gamma), temperature, top_p)
