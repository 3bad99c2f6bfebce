"""Samplers whose state is a set of masked positions, not a place in an order.

What these choose depends on drawn tokens, or they mask again what was revealed, or they look ahead
with further passes. They share `State`, its loop and its account, and read the masked set off the
tokens; σ plays no part. A trunk pass is counted for every sequence that is forwarded, also for
those of a look-ahead. Draws at a position are keyed by the position.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.interfaces import Pass, Trace
from selfspec.model import SSMD
from selfspec.noise import Purpose, uniform
from selfspec.ops import draw, take
from selfspec.sampling.base import Sampler, State
from selfspec.schedules import UnboundedWindow, Window
from selfspec.selection import ranks

__all__ = ["GivenState", "Outcome", "RemaskingSampler", "SetSampler", "at_step", "largest"]


class Outcome(NamedTuple):
    """What a step decides."""

    tokens: Tensor
    """(B, L), of which those at `revealed` count."""
    revealed: Tensor
    """(B, L) bool, masked positions that are known from now on."""
    remasked: Tensor | None = None
    """(B, L) bool, known positions that are masked from now on."""
    judged: Tensor | None = None
    """(B, L) bool, the masked positions whose drafts were judged; those revealed by default."""


class SetSampler(Sampler):
    """What samplers of sets share; a subclass writes `move`.

    Args:
        model: an `SSMD`, with or without a head.
        window: how many tokens a step reveals, where that is given; unbounded by default.
        temperature, top_p: as in `Sampler`.
    """

    def __init__(
        self,
        model: SSMD,
        window: Window | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, None, temperature, top_p)
        self.window = window if window is not None else UnboundedWindow()

    def masked(self, state: State) -> Tensor:
        """(B, L) bool."""
        return state.tokens == self.model.mask_id

    def forward(self, state: State, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """One trunk pass over (R, L) `tokens`, of the rows at `rows` (R,), by default all.

        Returns:
            (R, L, V) float64 log-probabilities at every position.
        """
        rows = torch.arange(len(tokens), device=tokens.device) if rows is None else rows
        one = torch.ones_like(rows, dtype=state.trunk_passes.dtype)
        state.trunk_passes = state.trunk_passes.index_add(0, rows, one)
        pad = state.pad[rows] if bool(state.pad.any()) else None
        return self.log_probs(self.model.draft(self.model.encode(tokens, pad)))

    def noise(self, state: State, purpose: Purpose, round_index: int = 0) -> Tensor:
        """(B, L) uniform numbers, one a position."""
        places = torch.arange(state.tokens.shape[1], device=state.tokens.device)
        places = places.expand_as(state.tokens)
        return uniform(state.seeds, purpose, state.passes, round_index, places)

    def drawn(self, state: State, logp: Tensor, round_index: int = 0) -> Tensor:
        """(B, L) tokens from (B, L, V) log-probabilities, at every position."""
        return draw(logp.exp(), self.noise(state, Purpose.DRAFT, round_index))

    def drawn_where(self, state: State, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) draws and their probabilities; only rows with a wanted position are forwarded."""
        tokens = torch.zeros_like(state.tokens)
        chance = torch.zeros_like(tokens, dtype=torch.float64)
        rows = wanted.any(1).nonzero().squeeze(1)
        if len(rows):
            logp = self.forward(state, state.tokens[rows], rows)
            tokens[rows] = draw(logp.exp(), self.noise(state, Purpose.DRAFT)[rows])
            chance[rows] = take(logp, tokens[rows]).exp()
        return tokens, chance

    @abstractmethod
    def move(self, state: State) -> Outcome:
        """One step: forwards what it needs, keeps account and memory, leaves the tokens."""

    def step(self, state: State, trace: Trace | None) -> None:
        """Apply the outcome of `move`."""
        before = state.trunk_passes
        tokens, revealed, remasked, judged = self.move(state)
        stands = revealed.sum(1)
        state.tokens = torch.where(revealed, tokens, state.tokens)
        if remasked is not None:
            state.tokens = state.tokens.masked_fill(remasked, self.model.mask_id)
            stands = stands - remasked.sum(1)
        state.drafted = state.drafted + (revealed if judged is None else judged).sum(1)
        state.accepted = state.accepted + stands
        state.revealed = state.end - self.masked(state).sum(1)
        if trace is None:
            return
        passes = (state.trunk_passes - before).tolist()
        for row, index in enumerate(state.index.tolist()):
            positions = revealed[row].nonzero().flatten().tolist()
            drawn = tokens[row][revealed[row]].tolist()
            again = [] if remasked is None else remasked[row].nonzero().flatten().tolist()
            pairs = list(zip(positions, drawn, strict=True))
            trace[index].append(Pass(positions, drawn, [], pairs, again, passes[row]))


@dataclass
class GivenState(State):
    """Remembers what was given, so that it is never masked."""

    given: Tensor
    """(B, L) bool: observed tokens and pads."""


class RemaskingSampler(SetSampler):
    """What samplers share that take back what they revealed: K steps, the last reveals all.

    Args:
        model: an `SSMD`.
        steps: K ≥ 1.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: `steps` below 1.
    """

    def __init__(self, model: SSMD, steps: int, temperature: float = 1.0, top_p: float = 1.0):
        super().__init__(model, None, temperature, top_p)
        whole("steps", steps, least=1)
        self.steps = steps

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> GivenState:
        """As `Sampler.start`."""
        state = super().start(tokens, seeds, pad)
        return GivenState(**vars(state), given=~self.masked(state))

    def open(self, state: State) -> Tensor:
        """Rows with anything to generate, until the steps are over."""
        return (state.observed < state.end) & (state.passes < self.steps)


def at_step(values: np.ndarray, state: State) -> Tensor:
    """(B, 1) float64: the entry of a table over steps for the step of each row."""
    return torch.from_numpy(values).to(state.passes.device)[state.passes].unsqueeze(1)


def largest(score: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """(B, L) bool: the `count` (B,) positions of largest score among those allowed.

    Ties go to the left. Where fewer are allowed than counted, all of them are taken.
    """
    return among & (ranks(score, among) < count.unsqueeze(1))
