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

_CHUNK = 1 << 20  # numbers of a resample held at once


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
        values: (n,) numbers, one a sample, or (n, m) for m quantities of the same samples.
        weights: (n,) of the mean; None for equal ones.
        draws: how many means.
        seed: of the resampling.

    Returns:
        (draws,) or (draws, m) float64.

    Raises:
        ValueError: `values` has no sample, or `weights` is not (n,).
    """
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or not len(values):
        raise ValueError(f"`values` must be (n,) or (n, m), n at least 1, got {values.shape}")
    n = len(values)
    weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (n,):
        raise ValueError(f"`weights` must have shape {(n,)}, got {weights.shape}")
    columns = np.column_stack([weights, weights[:, None] * values.reshape(n, -1)])
    rng = np.random.default_rng([seed, n])
    sums = []
    step = max(1, _CHUNK // n)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        chosen = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        # How often each sample was chosen; a product then sums all columns at once.
        times = np.bincount(chosen.ravel(), minlength=rows * n).reshape(rows, n)
        sums.append(times @ columns)
    total = np.concatenate(sums)
    return (total[:, 1:] / total[:, :1]).reshape(draws, *values.shape[1:])


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
