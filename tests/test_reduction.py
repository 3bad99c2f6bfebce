"""The reduction at equal quality, on curves whose answer is known."""

import json
import math

import numpy as np
import pytest

from selfspec.arena import Baseline, Point, frontier

STEPS = np.array([4, 8, 16, 32, 64, 128])
N = 400


def score(nfe: float) -> float:
    """Half a bit better for every doubling."""
    return 6 - 0.5 * math.log2(nfe)


def point(nfe: float, mean: float, seed: int = 0, n: int = N) -> Point:
    """Samples with exactly this mean NFE and score, and spread of both."""
    noise = np.random.default_rng([seed, n]).normal(size=(2, n))
    noise -= noise.mean(1, keepdims=True)
    return Point(nfe + 0.02 * nfe * noise[0], mean + 0.3 * noise[1])


def points(seed: int = 0) -> list[Point]:
    return [point(k, score(k), seed + k) for k in STEPS]


def test_the_baseline_against_itself_is_one_in_every_resample() -> None:
    baseline = Baseline(points())
    for same in points():
        result = baseline.reduction(same)
        assert (result.ratio, result.low, result.high) == pytest.approx((1, 1, 1))
        assert result.bound is None


def test_half_the_cost_at_equal_scores_is_a_reduction_of_two() -> None:
    baseline = Baseline(points())
    for k in STEPS[1:-1]:
        result = baseline.reduction(point(k / 2, score(k), seed=999 + k))
        assert result.ratio == pytest.approx(2)
        assert 1.7 < result.low < 2 < result.high < 2.3
        assert result.baseline_cost == pytest.approx(k)


@pytest.mark.parametrize("nfe", [5, 11, 40, 100])
def test_between_points_the_score_is_linear_in_log_nfe(nfe: float) -> None:
    assert Baseline(points()).reduction(point(3, score(nfe))).ratio == pytest.approx(nfe / 3)


def test_the_interval_covers_the_truth() -> None:
    covered, trials = 0, 200
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        base = [Point(float(k), rng.normal(score(k), 0.5, 100)) for k in (8, 16, 32)]
        method = Point(rng.normal(9, 1, 100), rng.normal(score(18), 0.5, 100))
        result = Baseline(base, draws=300, seed=trial).reduction(method)
        covered += result.low <= 2 <= result.high
    assert 0.91 < covered / trials < 0.985


def test_the_accounts_differ_by_the_cost_of_a_pass() -> None:
    method = point(10, score(20))
    separate, same = (Baseline(points(), cost).reduction(method) for cost in (1, 11 / 12))
    for a, b in zip((same.ratio, same.low, same.high), (separate.ratio, separate.low,
                    separate.high), strict=True):  # fmt: skip
        assert a == pytest.approx(b * 11 / 12)


def test_only_the_best_schedule_counts() -> None:
    method = point(10, score(20))
    worse = [point(k, score(k) + 0.2, seed=k) for k in STEPS]
    better = [point(k, score(k) - 0.25, seed=k) for k in STEPS]
    alone = Baseline(points()).reduction(method)
    assert Baseline(points() + worse).reduction(method) == alone
    assert Baseline(worse + points()).reduction(method) == alone
    ratio = Baseline(points() + better).reduction(method).ratio
    assert ratio == pytest.approx(alone.ratio / math.sqrt(2))


def test_the_frontier_falls_and_skips_every_point_that_another_beats() -> None:
    curve = frontier([32, 4, 8, 16, 16, 64], [2.6, 4.0, 3.0, 3.2, 2.5, 2.5])
    assert curve.cost.tolist() == [4, 8, 16]
    assert curve.score.tolist() == [4.0, 3.0, 2.5]
    assert curve.cost_at(2.75) == pytest.approx((math.sqrt(8 * 16),) * 2)


def test_beyond_the_best_score_only_a_lower_bound_is_known() -> None:
    result = Baseline(points()).reduction(point(10, score(128) - 0.3))
    assert result.bound == "at least"
    assert result.ratio == pytest.approx(12.8)
    assert result.low == pytest.approx(12.8, rel=0.02)
    assert result.high == math.inf
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["high"] is None
    assert record["bound"] == "at least"
    assert not result.unresolved


def test_beyond_the_worst_score_only_an_upper_bound_is_known() -> None:
    result = Baseline(points()).reduction(point(10, score(4) + 0.3))
    assert (result.bound, result.low) == ("at most", 0)
    assert result.ratio == pytest.approx(0.4)
    assert result.high == pytest.approx(0.4, rel=0.02)
    assert not result.unresolved


def test_at_the_end_of_the_range_the_interval_is_open() -> None:
    result = Baseline(points()).reduction(point(10, score(128) + 0.001, seed=77))
    assert result.bound is None
    assert result.unresolved
    assert result.high == math.inf
    assert 10 < result.low < 12.8


@pytest.mark.parametrize(("slope", "unresolved"), [(0.08, False), (0.06, True), (0.5, False)])
def test_flat_baselines_leave_the_ratio_unresolved(slope: float, unresolved: bool) -> None:
    # .01 bits move the cost by the factor 2^(.01 / slope): 1.09, 1.12 and 1.01.
    base = [Point(float(k), np.full(5, 3 - slope * math.log2(k))) for k in STEPS]
    method = Point(10.0, np.full(5, 3 - slope * math.log2(24)))
    assert Baseline(base, draws=10).reduction(method).unresolved == unresolved


@pytest.mark.parametrize("means", [(3.0, 2.0, 1.99), (2.01, 2.0, 1.0)], ids=["better", "worse"])
def test_one_flat_side_is_enough_to_leave_the_ratio_unresolved(means: tuple[float, ...]) -> None:
    base = [Point(float(k), [mean]) for k, mean in zip((8, 32, 128), means, strict=True)]
    assert Baseline(base, draws=9).reduction(Point(8.0, [2.0])).unresolved


def test_a_barely_better_bound_is_unresolved() -> None:
    base = [Point(8.0, [3.0]), Point(16.0, [2.0]), Point(128.0, [1.99])]
    close, far = (Baseline(base, draws=9).reduction(Point(8.0, [s])) for s in (1.985, 1.9))
    assert (close.bound, far.bound) == ("at least", "at least")
    assert close.unresolved
    assert not far.unresolved


def test_costs_and_scores_may_come_from_different_samples() -> None:
    base = [Point(point(k, 0).cost, point(k, score(k), n=150).scores) for k in STEPS]
    result = Baseline(base).reduction(Point(8, point(8, score(16), n=90).scores))
    assert result.ratio == pytest.approx(2)
    assert result.low < 2 < result.high


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="`points` must hold at least one"):
        Baseline([])
    with pytest.raises(ValueError, match="`pass_cost` must be above 0"):
        Baseline(points(), pass_cost=0)
    with pytest.raises(ValueError, match=r"`cost` must be above 0, got 0.0"):
        Point([1.0, 0.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="`scores` must be finite"):
        Point(1.0, [1.0, math.nan])
