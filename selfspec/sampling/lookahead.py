"""Lookahead: try several sets, keep the one that leaves the model surest.

    P = the |P| surest masked positions (at least as many as the step is to reveal),
    for j = 1..k:  U_j = w positions of P, uniformly at random;  x_U ~ p_U;
                   r_j = -(mean entropy of the positions still masked, after revealing x_U),
    keep j with probability in proportion to exp(r_j / θ).

w is the window. Each candidate is forwarded, and the winner's pass is the next step's: in all
1 + k (steps - 1) sequences, as in the last step nothing is left masked and all candidates weigh the
same. Source: LookUM 2511.05563 (|P| = 5, k = 2); the form of the weight is a reading.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.model import SSMD
from selfspec.noise import Purpose
from selfspec.ops import draw
from selfspec.sampling.base import State
from selfspec.sampling.sets import Outcome, SetSampler, largest
from selfspec.schedules import LinearSchedule, Schedule, ScheduleWindow
from selfspec.selection import Confidence, Score, entropy

__all__ = ["LookaheadSampler"]


@dataclass
class LookaheadState(State):
    """The winner's pass."""

    logp: Tensor
    """(B, L, V) log-probabilities given the tokens known; of use from the second step on."""


class LookaheadSampler(SetSampler):
    """Tries several sets; see the module.

    Args:
        model: an `SSMD`.
        steps: of the schedule, K ≥ 1.
        pool: |P| ≥ 1.
        candidates: k ≥ 1.
        weight_temperature: θ of the choice among candidates, above 0.
        score: what sure means; `Confidence()` by default.
        schedule: how the number of masked tokens falls; linear by default.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        model: SSMD,
        steps: int = 16,
        pool: int = 5,
        candidates: int = 2,
        weight_temperature: float = 0.1,
        score: Score | None = None,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        schedule = schedule if schedule is not None else LinearSchedule()
        super().__init__(model, ScheduleWindow(schedule, steps), temperature, top_p)
        for name, value in {"pool": pool, "candidates": candidates}.items():
            whole(name, value, least=1)
        if not weight_temperature > 0:
            raise ValueError(f"`weight_temperature` must be above 0, got {weight_temperature}")
        self.pool, self.candidates, self.heat = pool, candidates, weight_temperature
        self.score = score if score is not None else Confidence()

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> LookaheadState:
        """No pass yet."""
        state = super().start(tokens, seeds, pad)
        shape = (*tokens.shape, self.model.vocab_size)
        none = torch.zeros(shape, dtype=torch.float64, device=tokens.device)
        return LookaheadState(**vars(state), logp=none)

    def move(self, state: State) -> Outcome:
        """Candidates, their passes, and the winner."""
        assert isinstance(state, LookaheadState)
        masked = self.masked(state)
        if bool((fresh := state.passes == 0).any()):
            rows = fresh.nonzero().squeeze(1)
            state.logp[rows] = self.forward(state, state.tokens[rows], rows)
        wide = state.window.clamp(min=self.pool)
        pool = largest(self.score(state.logp), masked, wide)
        further = (state.window < masked.sum(1)).nonzero().squeeze(1)
        sets, tokens, logps, rewards = [], [], [], []
        for j in range(self.candidates):
            chosen = largest(self.noise(state, Purpose.SELECT, j), pool, state.window)
            drawn = self.drawn(state, state.logp, j)
            logp, reward = state.logp.clone(), torch.zeros_like(state.end, dtype=torch.float64)
            if len(further):
                ahead = torch.where(chosen, drawn, state.tokens)[further]
                logp[further] = self.forward(state, ahead, further)
                left = masked[further] & ~chosen[further]
                total = torch.where(left, entropy(logp[further]), 0.0).sum(1)
                reward[further] = -total / left.sum(1)
            for kept, value in zip(
                (sets, tokens, logps, rewards), (chosen, drawn, logp, reward), strict=True
            ):
                kept.append(value)
        weights = (torch.stack(rewards, 1) / self.heat).softmax(1)
        u = self.noise(state, Purpose.SELECT, self.candidates)[:, 0]
        best = draw(weights, u), torch.arange(len(u), device=u.device)
        state.logp = torch.stack(logps)[best]
        return Outcome(torch.stack(tokens)[best], torch.stack(sets)[best])
