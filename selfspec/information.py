"""The optimal schedule: where to cut a row into passes, from how much the drafts know.

Along a fixed rule of σ let g(i, d) be the mean cross-entropy, in nats, of the draft at place d when
the i tokens before are known. A pass from s to t draws the places s, …, t-1 from drafts that know s
tokens, where one pass a token would know d at each; what it gives away is

    loss(s, t) = Σ_{s ≤ d < t} [g(s, d) - g(d, d)],

and the losses of its passes are what a plain sampler loses in held-out likelihood against
`AnyOrderSampler`. For a uniform σ all places are alike, g(i, d) = f(i), and the information profile
f suffices, which falls with i: a measured one is fitted by the closest falling sequence. The K
passes of least loss,

    min over 0 = t_0 < t_1 < … < t_K = N of  Σ_k loss(t_k, t_(k+1)),

are found by dynamic programming in O(K N²). Source: Lavenant & Zanella 2510.25544, for uniform σ;
the form for any σ is this project's. `likelihood.draft_nats` measures g.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfspec.checks import whole
from selfspec.schedules import up_to_next

__all__ = ["CutWindow", "falling_fit", "optimal_cuts", "pass_losses", "profile_losses"]


def falling_fit(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The nonincreasing sequence closest to (n,) values in weighted squares: pool what rises.

    >>> falling_fit(np.array([3.0, 1.0, 2.0, 0.0])).tolist()
    [3.0, 1.5, 1.5, 0.0]
    """
    weights = np.ones(len(values)) if weights is None else weights
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        pools.append((float(value), float(weight), 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, v, m), (b, w, n) = pools[-2:]
            pools[-2:] = [((a * v + b * w) / (v + w), v + w, m + n)]
    return np.concatenate([np.full(length, mean) for mean, _, length in pools])


def profile_losses(profile: np.ndarray) -> np.ndarray:
    """loss(s, t) of a uniform σ from its profile f (N,): (N + 1, N + 1), inf where t ≤ s."""
    n = len(profile)
    return pass_losses(np.broadcast_to(profile[:, None], (n, n)))


def pass_losses(nats: np.ndarray) -> np.ndarray:
    """loss(s, t) from g (N, N) with axes (i, d), of which d ≥ i counts: (N + 1, N + 1) nats."""
    n = len(nats)
    lost = np.triu(nats - np.diagonal(nats))
    losses = np.full((n + 1, n + 1), np.inf)
    losses[:n, 1:] = np.where(np.triu(np.ones((n, n), dtype=bool)), lost.cumsum(1), np.inf)
    return losses


def optimal_cuts(losses: np.ndarray, steps: int) -> tuple[int, ...]:
    """t_1, …, t_K of least total loss; N of them where `steps` is above N.

    Args:
        losses: (N + 1, N + 1) loss(s, t), from `pass_losses` or `profile_losses`.
        steps: K ≥ 1.

    Raises:
        ValueError: `steps` below 1.
    """
    whole("steps", steps, least=1)
    n = len(losses) - 1
    best, origins = losses[0], []
    for _ in range(min(steps, n) - 1):
        through = best[:, None] + losses
        origins.append(through.argmin(0))
        best = through.min(0)
    cuts = [n]
    for origin in reversed(origins):
        cuts.append(int(origin[cuts[-1]]))
    return tuple(reversed(cuts))


@dataclass(frozen=True)
class CutWindow:
    """A window up to the next of the cut points t_1 < … < t_K = N, scaled to rows of other sizes.

    Args:
        cuts: numbers of known tokens after each pass, rising, at least 1.

    Raises:
        ValueError: no cuts, or cuts that do not rise from at least 1.
    """

    cuts: Sequence[int]

    def __post_init__(self):
        if not len(self.cuts) or min(np.diff([0, *self.cuts])) < 1:
            raise ValueError(f"`cuts` must rise from at least 1, got {list(self.cuts)}")

    def table(self, n: int) -> np.ndarray:
        """From i to the next cut."""
        scaled = np.ceil(np.asarray(self.cuts) * n / self.cuts[-1] - 1e-9)
        return up_to_next(np.unique(scaled.astype(int)))
