"""Star-shaped: predict the whole row, then mask afresh.

    x̂ = what is known, and a draw x̂_ℓ ~ p_ℓ at every masked ℓ;
    x_s masks every generated position with probability 1 - α_s, independently of x_t.

So each step mends any position, not only masked ones: the extreme of remasking. Until the masked
share has fallen to `on` the steps are those of ancestral sampling, where remasking would gain
little. K steps on a grid of α; a step in which nothing is revealed needs no trunk pass. Source:
star-shaped diffusion 2510.08369, on ≈ 0.3; its guided form, with a learned predictor of errors, is
not here.
"""

import numpy as np

from selfspec.model import SSMD
from selfspec.noise import Purpose
from selfspec.sampling.base import State
from selfspec.sampling.sets import GivenState, Outcome, RemaskingSampler, at_step
from selfspec.schedules import LinearSchedule, Schedule

__all__ = ["StarShapedSampler"]


class StarShapedSampler(RemaskingSampler):
    """Predicts all and masks afresh; see the module.

    Args:
        model: an `SSMD`.
        steps: K ≥ 1.
        on: the masked share from which on all is masked afresh, in [0, 1]; 0 is ancestral.
        schedule: the masked share over time; linear by default.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: `steps` below 1 or `on` out of range.
    """

    def __init__(
        self,
        model: SSMD,
        steps: int = 64,
        on: float = 0.3,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, steps, temperature, top_p)
        if not 0 <= on <= 1:
            raise ValueError(f"`on` must be in [0, 1], got {on}")
        schedule = schedule if schedule is not None else LinearSchedule()
        share = schedule.masked(np.arange(steps + 1) / steps)
        star = share[:-1] <= on + 1e-12
        # The chance of a masked position to stay masked, and of a known one to be masked again.
        self.stays = np.where(star, share[1:], share[1:] / share[:-1])
        self.returns = np.where(star, share[1:], 0.0)

    def move(self, state: State) -> Outcome:
        """A coin a position; one trunk pass of the rows that reveal something."""
        assert isinstance(state, GivenState)
        masked, coin = self.masked(state), self.noise(state, Purpose.REMASK)
        revealed = masked & (coin > at_step(self.stays, state))
        remasked = ~masked & ~state.given & (coin < at_step(self.returns, state))
        return Outcome(self.drawn_where(state, revealed)[0], revealed, remasked)
