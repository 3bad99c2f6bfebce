"""Bootstrap intervals: they cover what they claim to cover."""

import numpy as np
import pytest

from selfspec.arena import bootstrap_means, mean_interval

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("level", "low", "high"), [(0.95, 0.925, 0.97), (0.5, 0.45, 0.55)])
def test_the_interval_covers_the_mean_of_normal_data(level: float, low: float, high: float) -> None:
    covered = 0
    for trial in range(1000):
        values = np.random.default_rng(trial).normal(3, 2, 200)
        interval = mean_interval(values, level=level, draws=400, seed=trial)
        covered += interval.low <= 3 <= interval.high
    assert low < covered / 1000 < high


def test_the_spread_of_the_means_is_that_of_the_mean() -> None:
    values = RNG.normal(size=500)
    means = bootstrap_means(values, draws=4000)
    assert means.std() == pytest.approx(values.std() / np.sqrt(500), rel=0.05)
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)


def test_arrays_of_equal_length_are_resampled_together() -> None:
    a, b = RNG.normal(size=(2, 300))
    together = bootstrap_means(a, draws=50) + bootstrap_means(b, draws=50)
    np.testing.assert_allclose(together, bootstrap_means(a + b, draws=50))
    both = bootstrap_means(np.column_stack([a, b]), draws=50)
    np.testing.assert_allclose(both[:, 1], bootstrap_means(b, draws=50))
    assert not np.allclose(bootstrap_means(a, draws=50), bootstrap_means(a, draws=50, seed=1))


def test_the_draws_do_not_depend_on_how_many_are_held_at_once() -> None:
    values = RNG.normal(size=50_000)
    few = bootstrap_means(values, draws=41)
    np.testing.assert_allclose(few, bootstrap_means(values, draws=100)[:41])


def test_weights_make_a_ratio_of_sums() -> None:
    words = RNG.integers(1, 60, 400)
    interval = mean_interval(np.full(400, 0.8), words)
    assert interval.low == pytest.approx(0.8)
    assert interval.high == pytest.approx(0.8)
    known = RNG.binomial(words, 0.8)
    interval = mean_interval(known / words, words)
    assert interval.mean == pytest.approx(known.sum() / words.sum())
    spread = np.sqrt(0.8 * 0.2 / words.sum())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="`level` must be in"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="`values` must be"):
        bootstrap_means([])
    with pytest.raises(ValueError, match="`weights` must have shape"):
        bootstrap_means([1.0, 2.0], [1.0])
