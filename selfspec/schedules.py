"""How many tokens a pass may reveal, as integer tables.

A row has N tokens to generate, of which i are revealed. A **masking schedule** says which share of
them is still masked at time t, from 1 at t = 0 to 0 at t = 1:

    linear  1 - t,        cosine  cos(π/2 · t).

A **window** W(i) says how many tokens the next trunk pass may reveal. It advances the time of a
schedule by Δτ:

    cosine  W(i) = max(1, (N - i) - ⌊N · cos(π/2 · min(1, τ + Δτ))⌋),   τ = (2/π) · arccos(1 - i/N)
    linear  W(i) = min(N - i, ⌈N · Δτ⌉)

The cosine window is this project's reading of the window of Campbell et al. 2025 (arXiv
2510.03929), whose rounding is not certain.

Tables are computed once, in float64, and shared by samplers and likelihood: in float32 some
entries differ, and then the two would disagree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from selfspec.checks import whole

__all__ = [
    "USUAL_ROUNDS",
    "USUAL_WINDOW",
    "ConstantWindow",
    "CosineSchedule",
    "CosineWindow",
    "LinearSchedule",
    "LinearWindow",
    "Schedule",
    "ScheduleWindow",
    "UnboundedWindow",
    "Window",
    "as_window",
    "stacked_tables",
    "up_to_next",
]


class Schedule(Protocol):
    """The share of tokens that is masked at a time."""

    def masked(self, t: np.ndarray) -> np.ndarray:
        """Share in [0, 1], nonincreasing, for times in [0, 1]."""
        ...


@dataclass(frozen=True)
class LinearSchedule:
    """1 - t: equally many tokens in every step."""

    def masked(self, t: np.ndarray) -> np.ndarray:
        """Share of masked tokens at time t."""
        return 1.0 - t


@dataclass(frozen=True)
class CosineSchedule:
    """cos(π/2 · t): few tokens in the first steps (MaskGIT 2202.04200, MD4 2406.04329)."""

    def masked(self, t: np.ndarray) -> np.ndarray:
        """Share of masked tokens at time t; exactly 0 at t = 1."""
        return np.where(t >= 1, 0.0, np.cos(np.pi / 2 * np.minimum(t, 1.0)))


@runtime_checkable
class Window(Protocol):
    """How many tokens one trunk pass may reveal."""

    def table(self, n: int) -> np.ndarray:
        """W(0), …, W(n-1), each in 1..n-i: (n,) int64, for n tokens to generate."""
        ...


@dataclass(frozen=True)
class _TimeWindow:
    dtau: float
    """The time that a pass may advance, in (0, 1]."""

    def __post_init__(self):
        if not 0 < self.dtau <= 1:
            raise ValueError(f"`dtau` must be in (0, 1], got {self.dtau}")


@dataclass(frozen=True)
class CosineWindow(_TimeWindow):
    """Widens as more tokens are known; `dtau` in (0, 1] is the time that a pass may advance."""

    def table(self, n: int) -> np.ndarray:
        """W(0), …, W(n-1)."""
        return _cosine_table(n, self.dtau).copy()  # what is kept is nobody's to write to


@lru_cache(maxsize=256)
def _cosine_table(n: int, dtau: float) -> np.ndarray:
    i = np.arange(n)
    tau = 2 / np.pi * np.arccos(1 - i / n)
    masked_after = np.floor(n * CosineSchedule().masked(tau + dtau))
    return np.maximum(1, n - i - masked_after.astype(np.int64))


@dataclass(frozen=True)
class LinearWindow(_TimeWindow):
    """The same share of what is to be generated in every pass; `dtau` in (0, 1] is that share."""

    def table(self, n: int) -> np.ndarray:
        """min(n - i, ⌈n Δτ⌉)."""
        # A share like 1/3 of 3 · k tokens is not to be rounded up to one token more.
        return np.minimum(max(1, math.ceil(n * self.dtau - 1e-9)), n - np.arange(n))


USUAL_WINDOW = LinearWindow(0.045)
USUAL_ROUNDS = 1
"""Where none are given: the same for sampler and likelihood. The best measured at about 25 NFE."""


@dataclass(frozen=True)
class ConstantWindow:
    """The same number of tokens every pass."""

    size: int

    def __post_init__(self):
        whole("size", self.size, least=1)

    def table(self, n: int) -> np.ndarray:
        """min(size, n - i)."""
        return np.minimum(self.size, n - np.arange(n))


@dataclass(frozen=True)
class UnboundedWindow:
    """Every masked token may be revealed in one pass."""

    def table(self, n: int) -> np.ndarray:
        """n - i."""
        return n - np.arange(n)


@dataclass(frozen=True)
class ScheduleWindow:
    """The counts of a masking schedule in `steps` steps: ⌊N · masked(k/steps)⌋ masked after step k.

    Steps that would reveal nothing are left out, so there are at most min(steps, N) passes.
    """

    schedule: Schedule
    steps: int

    def __post_init__(self):
        whole("steps", self.steps, least=1)

    def left(self, n: int | np.ndarray) -> np.ndarray:
        """How many of n tokens are masked after each step: (..., steps) int64, for (...) n."""
        share = self.schedule.masked(np.arange(1, self.steps + 1) / self.steps)
        return np.floor(np.multiply.outer(n, share) + 1e-9).astype(np.int64)

    def table(self, n: int) -> np.ndarray:
        """From i to the next cut point of the schedule."""
        return up_to_next(np.unique(n - self.left(n)))


def up_to_next(cuts: np.ndarray) -> np.ndarray:
    """From each of 0, …, N-1 to the next of the rising `cuts`, of which the last is N: (N,).

    >>> up_to_next(np.array([1, 4])).tolist()
    [1, 3, 2, 1]
    """
    i = np.arange(cuts[-1])
    return cuts[np.searchsorted(cuts, i, side="right")] - i


def as_window(window: Window | int | None) -> Window:
    """A window; a number of tokens stands for a constant one, None for the usual one.

    Raises:
        ValueError: neither a window nor a whole number from 1.
    """
    if window is None:
        return USUAL_WINDOW
    if isinstance(window, Window) and not isinstance(window, type):
        return window
    return ConstantWindow(whole("window", window, least=1))


def stacked_tables(window: Window, counts: Sequence[int]) -> np.ndarray:
    """The tables of rows with these numbers n of tokens to generate: (B, max n + 1), padded by 1.

    Raises:
        ValueError: a table that breaks the rule of `Window.table`: samplers would reveal places
            that a row does not have.

    >>> stacked_tables(ConstantWindow(2), [3, 0, 1])
    array([[2, 2, 1, 1],
           [1, 1, 1, 1],
           [1, 1, 1, 1]])
    """
    tables = {n: _checked_table(window, n) for n in set(counts) if n}
    stacked = np.ones((len(counts), max(counts) + 1), dtype=np.int64)
    for row, n in enumerate(counts):
        if n:
            stacked[row, :n] = tables[n]
    return stacked


def _checked_table(window: Window, n: int) -> np.ndarray:
    table = np.asarray(window.table(n))
    bounds = n - np.arange(n)
    allowed = (table >= 1) & (table <= bounds) & (table % 1 == 0) if len(table) == n else np.False_
    if not allowed.all():
        raise ValueError(f"`window` must have {n} whole numbers in 1..n-i for n = {n}, got {table}")
    return table
