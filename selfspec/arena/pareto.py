"""Which settings are worth taking: the Pareto front among those that are diverse enough.

A row is **diverse** if it is, by every measure that it has, no worse than the standard sampler
(plain, uniform order) *at the same judge score*. The standard's measure there is read off its rows,
linear between neighbours in the judge score; beyond its best score its best row counts, or real
text where that asks for less, because better text repeats its words as real text does:

    word entropy, distinct 4-grams, distinct k-mers of proteins   ≥ min(standard, real) - slack,
    entropy of a sample's tokens                                  ≥ min(standard, real) - slack,
    KL of 4-grams and composition from the data                   ≤ standard + slack.

The entropy of tokens sees only a sample that repeats itself, but every row has it. A judge score
alone can be bought with repetition, and a greedy sampler does. The **front** keeps the diverse rows
that no other diverse row beats or equals in both cost and judge score.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfspec.arena.reduction import frontier

__all__ = ["SLACK", "diverse", "front"]

SLACK = {"word_entropy": 0.03, "distinct_4": 0.005, "distinct_kmers": 0.005, "entropy": 0.03,
         "kl_4gram": 0.01, "composition": 0.002}  # fmt: skip
"""What is still no worse: nats, shares, nats."""
SMALLER_IS_BETTER = {"kl_4gram", "composition"}

Row = Mapping[str, Any]


def diverse(rows: Sequence[Row], standard: Sequence[Row]) -> list[bool]:
    """Whether each row is no less diverse than the standard sampler's at its judge score.

    Args:
        rows: of a report, real text among them if it was measured.
        standard: the rows of the standard sampler.

    Returns:
        A bool a row; all True where there is no standard, False for real text, which is no sampler.
    """
    real = next((row for row in rows if row["sampler"] == "data"), None)
    return [row is not real and _passes(row, standard, real) for row in rows]


def front(rows: Sequence[Row], allowed: Sequence[bool], cost: str) -> list[bool]:
    """Whether each row is on the front of `cost` ("nfe" or "ms_per_sample") and judge score."""
    known = [i for i, row in enumerate(rows) if allowed[i] and row[cost]]
    points = frontier([rows[i][cost] for i in known], [rows[i]["judge"] for i in known])
    best = set(zip(points.cost.tolist(), points.score.tolist(), strict=True))
    on_front = {i for i in known if (rows[i][cost], rows[i]["judge"]) in best}
    return [i in on_front for i in range(len(rows))]


def _passes(row: Row, standard: Sequence[Row], real: Row | None) -> bool:
    for name, slack in SLACK.items():
        points = sorted((r["judge"], r[name]) for r in standard if r.get(name) is not None)
        if row.get(name) is None or not points:
            continue
        scores, measures = zip(*points, strict=True)
        bound = float(np.interp(row["judge"], scores, measures))
        if name in SMALLER_IS_BETTER:
            if row[name] > bound + slack:
                return False
            continue
        if real is not None and real.get(name) is not None:
            bound = min(bound, real[name])
        if row[name] < bound - slack:
            return False
    return True
