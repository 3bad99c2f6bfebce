"""What a pass may read from its draft distributions: σ and window chosen by statistics.

Between a trunk pass and the draws from it all distributions p_ℓ of the masked positions ℓ are
known. From them a rule may choose which positions the pass takes, and in what order (`DraftOrder`),
and how many of them (`DraftWindow`). Neither sees a drawn token. *Given σ and the window*, what is
drawn afterwards therefore has the law of a pass that was told both in advance: drafts are
independent draws from p_ℓ, and verification makes them draws from the target. What changes is the
law of σ: it depends on the tokens revealed before, so that p(x) is no average of p(x | σ) over a
fixed law of orders, and a rule that takes the most certain positions first favours certain texts.
No exact likelihood is offered for such rules, but `estimate_log_likelihood` serves a `DraftOrder`.

The statistics of p_ℓ, larger is surer (in nats where it is a logarithm):

    confidence  c_ℓ = max p_ℓ,      margin  p₁ - p₂ of the two likeliest,      entropy  -H(p_ℓ).

Sources: LLaDA 2502.09992 (confidence), Dream 2508.15487 (margin, entropy, draws of positions).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from selfspec.ops import inverse_order
from selfspec.orders import Order, rotated_ranks
from selfspec.schedules import UnboundedWindow, Window

__all__ = [
    "CellOrder",
    "Confidence",
    "DraftOrder",
    "DraftWindow",
    "Entropy",
    "Margin",
    "Score",
    "ScoreOrder",
    "SpanOrder",
    "divergence",
    "entropy",
    "ranks",
]


STEPS = 32
"""Steps of a score in one nat, or in the whole probability; half-precision drafts err by less."""
FINE_STEPS = 2**20
"""The same where every difference counts that is more than float32's rounding."""


class Score(Protocol):
    """How sure a model is of a position."""

    def __call__(self, logp: Tensor, /) -> Tensor:
        """(..., V) log-probabilities → (...), larger is surer."""
        ...


@dataclass(frozen=True)
class Confidence:
    """The probability of the likeliest token."""

    def __call__(self, logp: Tensor) -> Tensor:
        """max p."""
        return logp.amax(-1).exp()


@dataclass(frozen=True)
class Margin:
    """By how much the likeliest token leads."""

    def __call__(self, logp: Tensor) -> Tensor:
        """p₁ - p₂; a vocabulary of one token has p₂ = 0."""
        best = logp.topk(min(2, logp.shape[-1]), dim=-1).values.exp()
        return best[..., 0] - best[..., 1:].sum(-1)


@dataclass(frozen=True)
class Entropy:
    """The negative entropy."""

    def __call__(self, logp: Tensor) -> Tensor:
        """Σ p ln p."""
        return -entropy(logp)


def entropy(logp: Tensor) -> Tensor:
    """H = -Σ p ln p, (..., V) → (...) nats; tokens of probability 0 count nothing."""
    return -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)


def divergence(logp: Tensor, other: Tensor) -> Tensor:
    """KL(p ‖ other) = Σ p (ln p - ln other), two (..., V) → (...) nats; infinite where it is."""
    p = logp.exp()
    return torch.where(p > 0, p * (logp - other), 0.0).sum(-1)


def check_score(score: Score) -> None:
    """Raises a `ValueError` where there is no score, but its class, say."""
    if isinstance(score, type) or not callable(score):
        raise ValueError(f"`score` must be one, such as Entropy(), got {score!r}")


class DraftOrder(ABC):
    """A rule for σ that reads the draft distributions of the coming pass.

    Until there are drafts the order is uniform; every pass then re-chooses what is masked.
    """

    fixed: ClassVar[bool] = False

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        """None: those of the rule that `reading` gives."""
        raise TypeError(f"{type(self).__name__} has keys for given drafts: take `reading(logp)`")

    @abstractmethod
    def draft_keys(
        self, logp: Tensor, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor
    ) -> Tensor:
        """`Order.keys` with the log-probabilities of the drafts, (B, L, V) nats.

        They are float64 in `sampling/`; the engine has those of its logits, in float32 at least.
        """

    def reading(self, logp: Tensor) -> Order:
        """The rule for the pass of these drafts."""
        return _Reading(self, logp)


@dataclass(frozen=True)
class _Reading:
    """A rule bound to the drafts of a pass."""

    rule: DraftOrder
    logp: Tensor
    fixed: ClassVar[bool] = False

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        return self.rule.draft_keys(self.logp, masked, window, u, u_row)


class DraftWindow(ABC):
    """A rule for the number of tokens that reads the drafts along σ.

    Args:
        most: a window that bounds it; none by default.
    """

    def __init__(self, most: Window | None = None):
        self.most = most if most is not None else UnboundedWindow()

    def table(self, n: int) -> np.ndarray:
        """The bounds, (n,) int64."""
        return self.most.table(n)

    @abstractmethod
    def sizes(self, logp: Tensor, inside: Tensor) -> Tensor:
        """How many of the next places to draft.

        Args:
            logp: (B, W, V) log-probabilities of the next places of σ, float64.
            inside: (B, W) bool, the places that the bound allows: a prefix of every row.

        Returns:
            (B,) int64, at least 1 and at most the places inside.
        """


@dataclass(frozen=True, eq=False)
class ScoreOrder(DraftOrder):
    """The surest positions first.

    Args:
        score: what sure means; `Confidence()` by default.
        temperature: above 0 positions are drawn instead, without replacement, with probabilities
            in proportion to exp(score / temperature).

    Raises:
        ValueError: `score` is none, or `temperature` below 0.
    """

    score: Score = Confidence()
    temperature: float = 0.0

    def __post_init__(self) -> None:
        check_score(self.score)
        if not self.temperature >= 0:
            raise ValueError(f"`temperature` must be at least 0, got {self.temperature}")

    def draft_keys(
        self, logp: Tensor, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor
    ) -> Tensor:
        """The rank by score; at a temperature by score / temperature + Gumbel noise."""
        score = self.score(logp)
        if self.temperature > 0:
            score = score / self.temperature - (-u.log()).log()
        return ranks(score, masked).double() / masked.shape[1]


@dataclass(frozen=True, eq=False)
class CellOrder(DraftOrder):
    """Spaced by cells, in each cell the surest position: neither neighbours nor random.

    With n masked positions and a window of w, the masked positions are cut into w cells of equal
    size from a random offset; the surest position of every cell is taken, in random order, then
    the others in random order. Scores are compared in steps of 1/32, and of equal ones the first in
    the cell is taken: while nothing is known, and all positions are as sure but for rounding, these
    are the places of a `RespacedOrder`.

    Args:
        score: what sure means; `Entropy()` by default.

    Raises:
        ValueError: `score` is none.
    """

    score: Score = Entropy()

    def __post_init__(self) -> None:
        check_score(self.score)

    def draft_keys(
        self, logp: Tensor, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor
    ) -> Tensor:
        """u/2 for the surest of each cell, (1 + u)/2 for the others."""
        count = masked.sum(1, keepdim=True).clamp(min=1)
        window = torch.minimum(window.unsqueeze(1).clamp(min=1), count)
        rank = rotated_ranks(masked, u_row)
        cell = torch.where(masked, rank * window // count, masked.shape[1])
        # By cell, and within it by score and rank: the first of each cell is its surest.
        steps = (self.score(logp).double() * STEPS).round()
        by_score = (rank - steps * masked.shape[1]).argsort(dim=1)
        sorted_ = by_score.gather(1, cell.gather(1, by_score).argsort(dim=1, stable=True))
        cells = cell.gather(1, sorted_)
        first = torch.ones_like(masked)
        first[:, 1:] = cells[:, 1:] != cells[:, :-1]
        chosen = torch.zeros_like(masked).scatter(1, sorted_, first) & masked
        return torch.where(chosen, u, 1 + u) / 2


@dataclass(frozen=True, eq=False)
class SpanOrder(DraftOrder):
    """A contiguous span: the w neighbouring masked positions that are surest together.

    Of all runs of w masked positions (neighbours among the masked, w the window) the one with the
    largest mean score, from left to right; then the others in random order. It gives the verifier
    what it is for, neighbours, and a factorised draft what is hardest for it.

    Args:
        score: what sure means; `Entropy()` by default.

    Raises:
        ValueError: `score` is none.
    """

    score: Score = Entropy()

    def __post_init__(self) -> None:
        check_score(self.score)

    def draft_keys(
        self, logp: Tensor, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor
    ) -> Tensor:
        """rank/2L within the span, (1 + u)/2 for the others; of equal spans the first."""
        count = masked.sum(1, keepdim=True)
        window = torch.minimum(window.unsqueeze(1).clamp(min=1), count)
        rank = (masked.long().cumsum(1) - 1).masked_fill(~masked, masked.shape[1])
        places = torch.arange(masked.shape[1] + 1, device=masked.device)
        # total[k]: the sum of the scores of the first k masked positions.
        score = torch.where(masked, settled(self.score(logp)), 0.0)
        ranked = torch.zeros(len(masked), masked.shape[1] + 1, dtype=score.dtype, device=u.device)
        behind = (rank + 1).clamp(max=masked.shape[1])
        total = ranked.scatter_add(1, behind, score).cumsum(1)
        stop = (places + window).clamp(max=masked.shape[1])
        runs = total.gather(1, stop) - total
        begin = runs.masked_fill(places > count - window, -torch.inf).argmax(1, keepdim=True)
        inside = (rank >= begin) & (rank < begin + window)
        return torch.where(inside, rank.double() / masked.shape[1], 1 + u) / 2


def settled(score: Tensor) -> Tensor:
    """Scores in whole steps, float64: what differs by rounding alone is a tie, and sums are exact.

    While nothing is known, for one, all positions are as sure, but for rounding.
    """
    score = score.double()
    steps = score * FINE_STEPS
    return torch.where(steps.abs() < 2.0**52, steps.round() / FINE_STEPS, score)  # 2^52: is whole


def ranks(score: Tensor, among: Tensor) -> Tensor:
    """(B, L) rank by falling score of the positions `among`, the others behind; ties by place.

    A score of -inf, or one that is no number, is the lowest among them.
    """
    lowest = torch.finfo(torch.float64).max
    keys = (-settled(score)).nan_to_num(nan=lowest, posinf=lowest)
    best_first = keys.masked_fill(~among, torch.inf).argsort(dim=1, stable=True)
    return inverse_order(best_first)
