"""Bootstrap intervals of means over samples.

Draw n of the n samples with replacement, take the mean, and repeat: the 2.5 % and 97.5 % quantiles
of these means bound the percentile interval (Efron 1979). Weights turn the mean into the ratio of
two sums, Σ w_i v_i / Σ w_i, such as known words over words.

The draws depend on (seed, n) alone. Arrays of equal length are therefore resampled *together*: what
two settings share, because their rows share random numbers, stays shared in the bootstrap.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "bootstrap_means", "mean_interval"]

_CHUNK = 1 << 21  # indices held at once


@dataclass(frozen=True)
class Interval:
    """A mean between the bounds of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_means(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Means of resampled values.

    Args:
        values: (n,) numbers, one a sample.
        weights: (n,) of the mean; None for equal ones.
        draws: how many means.
        seed: of the resampling.

    Returns:
        (draws,) float64.

    Raises:
        ValueError: `values` is not (n,) with n at least 1, or `weights` not of its shape.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"`values` must be (n,) with n at least 1, got shape {values.shape}")
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != values.shape:
        raise ValueError(f"`weights` must have shape {values.shape}, got {weights.shape}")
    n, weighted = len(values), values * weights
    rng = np.random.default_rng([seed, n])
    rows = max(1, _CHUNK // n)
    means = []
    for start in range(0, draws, rows):
        chosen = rng.integers(0, n, (min(rows, draws - start), n), dtype=np.int32)
        means.append(weighted[chosen].sum(1) / weights[chosen].sum(1))
    return np.concatenate(means)


def mean_interval(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The (weighted) mean with its percentile interval.

    Args:
        values: (n,) numbers, one a sample.
        weights: (n,) of the mean; None for equal ones.
        level: probability that the interval is to cover, in (0, 1).
        draws: resampled means.
        seed: of the resampling.

    Raises:
        ValueError: `level` is out of range, or as `bootstrap_means`.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}")
    means = bootstrap_means(values, weights, draws, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    weights = None if weights is None else np.asarray(weights, np.float64)
    mean = np.average(np.asarray(values, np.float64), weights=weights)
    return Interval(float(mean), float(low), float(high))
