"""PUNT: reveal together what does not depend on each other, found by bisection.

    draw y ~ p on M, rank M by confidence, R = M;
    for each bit of the rank:
        A = the ranks in R with that bit 0 (the surer half), B = those with 1;
        forward with y_A revealed; drop ℓ from B where KL(p_ℓ given y_A ‖ p_ℓ) > ε;
        R = A ∪ B
    U = R, and y_U stands.

Any two positions differ in some bit of their ranks, so every pair that is left was tested, the less
sure against the surer. 1 + ⌈log₂ |M|⌉ sequences a step at most: a bit that splits nothing is
skipped. Which positions survive reads drawn tokens. Source: PUNT 2510.21961 (ε from 0.01 to 0.32).
"""

import torch

from selfspec.model import SSMD
from selfspec.sampling.base import State
from selfspec.sampling.sets import Outcome, SetSampler
from selfspec.selection import Confidence, divergence, ranks

__all__ = ["PUNTSampler"]


class PUNTSampler(SetSampler):
    """Reveals what is independent; see the module.

    Args:
        model: an `SSMD`.
        epsilon: ε ≥ 0, nats; 0 drops whatever moves.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: `epsilon` below 0.
    """

    def __init__(
        self, model: SSMD, epsilon: float = 0.05, temperature: float = 1.0, top_p: float = 1.0
    ):
        super().__init__(model, None, temperature, top_p)
        if not epsilon >= 0:
            raise ValueError(f"`epsilon` must be at least 0, got {epsilon}")
        self.epsilon = epsilon

    def move(self, state: State) -> Outcome:
        """One trunk pass to draw, and one a bit to test."""
        masked = self.masked(state)
        logp = self.forward(state, state.tokens)
        drawn = self.drawn(state, logp)
        rank = ranks(Confidence()(logp), masked)
        left = masked.clone()
        for bit in reversed(range((int(masked.sum(1).max()) - 1).bit_length())):
            high = (rank >> bit) % 2 == 1
            tested, shown = left & high, left & ~high
            rows = (tested.any(1) & shown.any(1)).nonzero().squeeze(1)
            if not len(rows):
                continue
            ahead = torch.where(shown, drawn, state.tokens)[rows]
            moved = divergence(self.forward(state, ahead, rows), logp[rows]) > self.epsilon
            left[rows] &= ~(tested[rows] & moved)
        return Outcome(drawn, left)
