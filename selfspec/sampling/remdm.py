"""ReMDM: ancestral sampling that may take back what it has revealed.

With α = 1 - (masked share), a step from α_t to α_s remasks every known ℓ that was generated with
probability σ_ℓ and reveals every masked one with probability

    (α_s - (1 - σ_ℓ) α_t) / (1 - α_t),        x_ℓ ~ p_ℓ,

which keeps the marginals of the masked diffusion for every σ_ℓ ≤ σmax = min(1, (1 - α_s)/α_t):

    cap      σ = min(η, σmax)
    rescale  σ = η · σmax
    conf     σ_ℓ = σmax · softmax over the known of -(p of the token when it was revealed),
             0 at masked positions
    loop     plain up to time 1 - t_on, where α = α_on; there α stays and σ = min(η, σmax) until
             1 - t_off; then plain up to α = 1.

K steps; which positions change is independent of the tokens (but for conf), so a step in which a
row reveals nothing needs no trunk pass. Source: ReMDM 2503.00307 (nucleus 0.9; η = 0.008 for cap,
0.015 rescale, 0.02 loop with t_on 0.55, t_off 0.05, α_on 0.9).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.noise import Purpose
from selfspec.sampling.base import State
from selfspec.sampling.sets import GivenState, Outcome, RemaskingSampler, at_step
from selfspec.schedules import LinearSchedule, Schedule

__all__ = [
    "CapRemasking",
    "ConfidenceRemasking",
    "LoopRemasking",
    "ReMDMSampler",
    "RescaleRemasking",
]


class Remasking(Protocol):
    """A rule for σ."""

    by_confidence: ClassVar[bool]
    """Whether `sigma` is shared out among the known positions by their confidence."""

    def alphas(self, schedule: Schedule, steps: int) -> np.ndarray:
        """α after 0, 1, …, K steps, from 0 to 1: (K + 1,) float64."""
        ...

    def sigma(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """σ of each step from α_t to α_s, (K,)."""
        ...


def largest_sigma(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """σmax = min(1, (1 - α_s)/α_t), 1 where nothing is known yet."""
    return np.minimum(1.0, (1 - after) / np.maximum(before, 1e-300))


@dataclass(frozen=True)
class CapRemasking:
    """σ = min(η, σmax)."""

    eta: float = 0.008
    by_confidence: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"`eta` must be in [0, 1], got {self.eta}")

    def alphas(self, schedule: Schedule, steps: int) -> np.ndarray:
        """Those of the schedule."""
        return 1 - schedule.masked(np.arange(steps + 1) / steps)

    def sigma(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """min(η, σmax)."""
        return np.minimum(self.eta, largest_sigma(before, after))


@dataclass(frozen=True)
class RescaleRemasking(CapRemasking):
    """σ = η · σmax."""

    eta: float = 0.015

    def sigma(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """η · σmax."""
        return self.eta * largest_sigma(before, after)


@dataclass(frozen=True)
class ConfidenceRemasking(CapRemasking):
    """σ_ℓ = η · σmax · softmax(-ψ), ψ the probability of each token when it was revealed."""

    eta: float = 1.0
    by_confidence: ClassVar[bool] = True

    def sigma(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """η · σmax, before it is shared out."""
        return self.eta * largest_sigma(before, after)


@dataclass(frozen=True)
class LoopRemasking(CapRemasking):
    """Plain, then remasking at constant α, then plain; times run from 1 to 0 as in the paper."""

    eta: float = 0.02
    on: float = 0.55
    off: float = 0.05
    alpha: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.off < self.on < 1:
            raise ValueError(f"`on` and `off` must satisfy 0 < off < on < 1, "
                             f"got {self.on} and {self.off}")  # fmt: skip
        if not 0 < self.alpha < 1:
            raise ValueError(f"`alpha` must be in (0, 1), got {self.alpha}")

    def alphas(self, schedule: Schedule, steps: int) -> np.ndarray:
        """0 to α_on at the schedule's pace, α_on, then on to 1 at equal pace."""
        time = np.arange(steps + 1) / steps
        rise = 1 - schedule.masked(np.minimum(1.0, time / (1 - self.on)))
        end = np.clip((time - (1 - self.off)) / self.off, 0.0, 1.0)
        # The last step ends at 1 exactly, whatever the rounding of its time.
        end[-1] = 1.0
        return self.alpha * rise + (1 - self.alpha) * end

    def sigma(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """min(η, σmax) while α stays, else 0."""
        stays = np.isclose(before, after, rtol=0, atol=1e-12)
        return np.where(stays, np.minimum(self.eta, largest_sigma(before, after)), 0.0)


@dataclass
class ReMDMState(GivenState):
    """Remembers how sure the model was."""

    confidence: Tensor
    """(B, L) float64 probability of each generated token when it was revealed."""


class ReMDMSampler(RemaskingSampler):
    """Ancestral sampling with remasking; see the module.

    Args:
        model: an `SSMD`.
        remasking: the rule for σ; `CapRemasking()` by default.
        steps: K ≥ 1.
        schedule: the masked share over time; linear by default.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: `steps` below 1.
    """

    def __init__(
        self,
        model: SSMD,
        remasking: Remasking | None = None,
        steps: int = 64,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, steps, temperature, top_p)
        self.remasking = remasking if remasking is not None else CapRemasking()
        alphas = self.remasking.alphas(schedule if schedule else LinearSchedule(), steps)
        self.before, self.after = alphas[:-1], alphas[1:]
        self.sigma = self.remasking.sigma(self.before, self.after)

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> ReMDMState:
        """Nothing is generated yet."""
        state = super().start(tokens, seeds, pad)
        unsure = torch.zeros_like(state.tokens, dtype=torch.float64)
        return ReMDMState(**vars(state), confidence=unsure)

    def move(self, state: State) -> Outcome:
        """Coins for every position, then one trunk pass of the rows that reveal something."""
        assert isinstance(state, ReMDMState)
        masked = self.masked(state)
        known = ~masked & ~state.given
        before, after, sigma = (at_step(x, state) for x in (self.before, self.after, self.sigma))
        if self.remasking.by_confidence:
            doubt = (-state.confidence).masked_fill(~known, -torch.inf).softmax(1)
            sigma = torch.where(known, sigma * doubt, 0.0)
        coin = self.noise(state, Purpose.REMASK)
        remasked = known & (coin < sigma)
        revealed = masked & (coin * (1 - before) < after - (1 - sigma) * before)
        tokens, chance = self.drawn_where(state, revealed)
        state.confidence = torch.where(revealed, chance, state.confidence)
        return Outcome(tokens, revealed, remasked)
