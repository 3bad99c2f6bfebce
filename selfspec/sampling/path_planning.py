"""Path planning (P2, self-planning): the model's own scores say what to mask next.

    x̂ = what is known, and a draw x̂_ℓ ~ p_ℓ at every masked ℓ;
    score_ℓ = log p_ℓ(x̂_ℓ) at masked positions,  η · log p_ℓ(x_ℓ) at generated ones;
    the ⌊n (1 - κ(k/K))⌋ generated or masked positions of lowest score are masked, all others stand,

κ(t) = t, in K steps. η multiplies *negative* logs: a larger η remasks more. p_ℓ at a known position
is what the trunk predicts there while it sees the token; no loss has trained it, so how useful the
plan is depends on the model. The choice reads drawn tokens: the law is sharper than the model's.
Source: P2 2502.03540, τ = 1, η = 1.
"""

import numpy as np
import torch

from selfspec.model import SSMD
from selfspec.ops import take
from selfspec.sampling.base import State
from selfspec.sampling.sets import GivenState, Outcome, RemaskingSampler, at_step, largest
from selfspec.schedules import LinearSchedule, Schedule

__all__ = ["PathPlanningSampler"]


class PathPlanningSampler(RemaskingSampler):
    """Masks what the model likes least; see the module.

    Args:
        model: an `SSMD`.
        steps: K ≥ 1.
        eta: η ≥ 0.
        schedule: 1 - κ, the masked share after each step; linear by default.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: `steps` below 1 or `eta` below 0.
    """

    def __init__(
        self,
        model: SSMD,
        steps: int = 64,
        eta: float = 1.0,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, steps, temperature, top_p)
        if not eta >= 0:
            raise ValueError(f"`eta` must be at least 0, got {eta}")
        self.eta = eta
        schedule = schedule if schedule is not None else LinearSchedule()
        self.share = schedule.masked(np.arange(1, steps + 1) / steps)

    def move(self, state: State) -> Outcome:
        """One trunk pass; draws, scores, and a new set of masks."""
        assert isinstance(state, GivenState)
        masked = self.masked(state)
        logp = self.forward(state, state.tokens)
        whole = torch.where(masked, self.drawn(state, logp), state.tokens)
        # Outside the nucleus the worst, but for η = 0, by which no known token is judged.
        likely = take(logp, whole).clamp(min=torch.finfo(logp.dtype).min)
        score = likely * torch.where(masked, 1.0, self.eta)
        n = (state.end - state.observed).unsqueeze(1)
        hidden = (n * at_step(self.share, state) + 1e-9).floor().long().squeeze(1)
        stays = largest(score, ~state.given, n.squeeze(1) - hidden)
        return Outcome(whole, masked & stays, ~masked & ~state.given & ~stays)
