"""Fixed count by confidence, with annealed noise: the sampler of MaskGIT.

    draw x̂_ℓ ~ p_ℓ for every masked ℓ,
    U = the positions of largest log p_ℓ(x̂_ℓ) + c · (1 - (k+1)/K) · g_ℓ,    g_ℓ standard Gumbel,

as many as the schedule says (cosine: ⌊N · cos(π/2 · (k+1)/K)⌋ stay masked after step k = 0, 1, …),
and x̂_U is revealed. Steps that would reveal nothing need no pass, but the noise falls in them too.
The choice reads the drawn token: at c = 0 likely tokens are kept and unlikely ones drawn again, so
the law is sharper than the model's even at temperature 1. Source: MaskGIT 2202.04200, c = 4.5 for
images. Its float32 noise cuts the Gumbel tail; here it is float64.
"""

import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.noise import Purpose
from selfspec.ops import take
from selfspec.sampling.base import State
from selfspec.sampling.sets import Outcome, SetSampler, largest
from selfspec.schedules import CosineSchedule, Schedule, ScheduleWindow

__all__ = ["ConfidenceSampler"]


class ConfidenceSampler(SetSampler):
    """Keeps the drawn tokens that are likeliest, up to noise; see the module.

    Args:
        model: an `SSMD`.
        steps: K ≥ 1; steps that would reveal nothing are left out.
        noise: c ≥ 0.
        schedule: how the number of masked tokens falls; cosine by default.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: `steps` below 1 or `noise` below 0.
    """

    def __init__(
        self,
        model: SSMD,
        steps: int = 16,
        noise: float = 4.5,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        if not noise >= 0:
            raise ValueError(f"`noise` must be at least 0, got {noise}")
        schedule = schedule if schedule is not None else CosineSchedule()
        window = ScheduleWindow(schedule, steps)
        super().__init__(model, window, temperature, top_p)
        self.steps, self.scale, self.left = steps, noise, window.left

    def move(self, state: State) -> Outcome:
        """One trunk pass; the window's number of drawn tokens stand."""
        logp = self.forward(state, state.tokens)
        drawn = self.drawn(state, logp)
        gumbel = -(-self.noise(state, Purpose.SELECT).log()).log()
        heat = self.scale * (1 - (self.coming(state) + 1) / self.steps)
        score = take(logp, drawn) + heat.unsqueeze(1) * gumbel
        return Outcome(drawn, largest(score, self.masked(state), state.window))

    def coming(self, state: State) -> Tensor:
        """(B,) k of the coming step: those before leave as many positions masked, or more."""
        n, masked = state.end - state.observed, state.end - state.revealed
        left = torch.from_numpy(self.left(n.cpu().numpy())).to(n.device)
        return (left >= masked.unsqueeze(1)).sum(1)
