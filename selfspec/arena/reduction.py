"""The reduction at equal quality: how many times fewer function evaluations a method needs.

    reduction = NFE at which the baseline reaches the method's score / the method's own NFE

The baseline is a set of measured points (NFE, score), lower scores being better. Its *frontier*
keeps the points that no other point beats or equals in both, over all its schedules: from left to
right the scores fall. Between neighbours the score is linear in log NFE. The measured curve is
never extrapolated: a score better than the frontier's best gives a lower bound ("at least", from
its last point), one worse than its worst an upper bound ("at most", from its first).

Whatever is chosen by looking at the scores favours the baseline: the best of several noisy points
looks better than it is, so the ratio errs on the low side.

Cost may be anything positive. The accounts of NFE differ in what a pass of the baseline costs
(`pass_cost`): with the trunk of the model under test trunk blocks / all blocks, with a separately
trained model of as many blocks 1. Wall-clock works the same, and so do held-out bits as scores.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from selfspec.arena.intervals import bootstrap_means

__all__ = ["Baseline", "Frontier", "Point", "Reduction", "frontier"]

Bound = Literal["at least", "at most"]


@dataclass(frozen=True)
class Point:
    """One measured setting.

    Attributes:
        cost: what a sample costs, (n,) or one number: function evaluations, passes or seconds.
        scores: (m,) score of each sample, lower is better: judge or held-out bits per token.
    """

    cost: npt.ArrayLike
    scores: npt.ArrayLike

    def __post_init__(self) -> None:
        if not np.min(self.cost) > 0:
            raise ValueError(f"`cost` must be above 0, got {np.min(self.cost)}")
        if not np.isfinite(self.scores).all():
            raise ValueError("`scores` must be finite, got nan or infinity")


class Frontier(NamedTuple):
    """The lower-left staircase of a set of points; cost rises, score falls."""

    cost: np.ndarray
    score: np.ndarray

    def cost_at(self, score: float) -> tuple[float, float]:
        """The cost at which the curve reaches `score`, as (lower, upper) bound of what is known.

        Both are the interpolated cost inside the measured range. Beyond the best score the upper
        bound is infinite, beyond the worst the lower bound is 0.
        """
        inside = math.exp(np.interp(score, self.score[::-1], np.log(self.cost[::-1])))
        lower = 0.0 if score > self.score[0] else inside
        return lower, (math.inf if score < self.score[-1] else inside)


def frontier(cost: npt.ArrayLike, score: npt.ArrayLike) -> Frontier:
    """The points that no other point beats or equals in both cost and score.

    >>> frontier([8, 16, 16, 32], [3.0, 2.5, 2.4, 2.45])
    Frontier(cost=array([ 8, 16]), score=array([3. , 2.4]))
    """
    cost, score = np.asarray(cost), np.asarray(score)
    order = np.lexsort((score, cost))
    cost, score = cost[order], score[order]
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], score[:-1]]))
    keep = score < best_before
    return Frontier(cost[keep], score[keep])


@dataclass(frozen=True)
class Reduction:
    """How many times less a method costs than the baseline at the same score.

    Attributes:
        cost: of the method, mean over samples.
        score: of the method, mean over samples.
        baseline_cost: at which the baseline reaches that score, or the bound that is known.
        ratio: baseline_cost / cost.
        low, high: bootstrap interval of the ratio over samples of both sides; infinite where the
            resampled scores leave the baseline's range.
        bound: "at least" or "at most" if the score is outside the baseline's range, else None.
        unresolved: a score error of `tolerance` moves the ratio by more than a tenth.
    """

    cost: float
    score: float
    baseline_cost: float
    ratio: float
    low: float
    high: float
    bound: Bound | None
    unresolved: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON: an infinite bound becomes None."""
        values = asdict(self)
        return {k: None if v in (math.inf, -math.inf) else v for k, v in values.items()}


class Baseline:
    """What methods are compared with.

    Args:
        points: measured settings, of one schedule or several.
        pass_cost: multiplies the cost of every point.
        draws: bootstrap resamples, the same for every method.
        seed: of the resampling.

    Raises:
        ValueError: no points, or `pass_cost` not above 0.
    """

    def __init__(
        self, points: Sequence[Point], pass_cost: float = 1.0, draws: int = 2000, seed: int = 0
    ) -> None:
        if not points:
            raise ValueError("`points` must hold at least one point, got none")
        if not pass_cost > 0:
            raise ValueError(f"`pass_cost` must be above 0, got {pass_cost}")
        self.draws, self.seed = draws, seed
        costs = pass_cost * self._means([point.cost for point in points])
        scores = self._means([point.scores for point in points])
        self.frontiers = [frontier(*draw) for draw in zip(costs, scores, strict=True)]
        """Of the measured means, then of each resample."""

    def reduction(self, method: Point, tolerance: float = 0.01, level: float = 0.95) -> Reduction:
        """Compares one method with this baseline; see `reductions`."""
        return self.reductions([method], tolerance, level)[0]

    def reductions(
        self, methods: Sequence[Point], tolerance: float = 0.01, level: float = 0.95
    ) -> list[Reduction]:
        """Compares methods with this baseline.

        Args:
            methods: their cost is not multiplied by `pass_cost`.
            tolerance: error of the score to which the ratio should be robust, in its unit.
            level: probability that the interval is to cover.
        """
        costs = self._means([method.cost for method in methods])
        scores = self._means([method.scores for method in methods])
        return [
            self._reduction(*means, tolerance, level)
            for means in zip(costs.T, scores.T, strict=True)
        ]

    def _reduction(
        self, costs: np.ndarray, scores: np.ndarray, tolerance: float, level: float
    ) -> Reduction:
        """From (1 + draws,) mean costs and scores of a method, the measured ones first."""
        reached = zip(self.frontiers, scores, strict=True)
        ratios = np.array([curve.cost_at(s) for curve, s in reached]) / costs[:, None]
        lower, upper = ratios[0]
        bound = "at least" if math.isinf(upper) else "at most" if lower == 0 else None
        ratio = float(upper if bound == "at most" else lower)
        # Quantiles that take one of the draws, since infinity has no interpolation.
        low = np.quantile(ratios[1:, 0], (1 - level) / 2, method="lower")
        high = np.quantile(ratios[1:, 1], (1 + level) / 2, method="higher")
        return Reduction(
            cost=float(costs[0]),
            score=float(scores[0]),
            baseline_cost=float(ratio * costs[0]),
            ratio=ratio,
            low=float(low),
            high=float(high),
            bound=bound,
            unresolved=self._unresolved(float(scores[0]), tolerance),
        )

    def _unresolved(self, score: float, tolerance: float) -> bool:
        """Whether `tolerance` moves the baseline's cost by more than a tenth.

        Of a bound only the side on which it could fail counts: the other is 0 or infinite.
        """
        curve = self.frontiers[0]
        worse, better = curve.cost_at(score + tolerance)[0], curve.cost_at(score - tolerance)[1]
        lower, upper = curve.cost_at(score)
        return worse < 0.9 * lower or better > 1.1 * upper

    def _means(self, samples: Sequence[npt.ArrayLike]) -> np.ndarray:
        """(1 + draws, columns) means of each, measured first, then resampled; of a number itself.

        Columns of equal length share one resampling.
        """
        columns = [np.asarray(values, np.float64) for values in samples]
        means = np.empty((1 + self.draws, len(columns)))
        means[:] = [values.mean() for values in columns]
        for n in {len(values) for values in columns if values.ndim}:
            equal = [i for i, values in enumerate(columns) if values.shape == (n,)]
            together = np.column_stack([columns[i] for i in equal])
            means[1:, equal] = bootstrap_means(together, draws=self.draws, seed=self.seed)
        return means
