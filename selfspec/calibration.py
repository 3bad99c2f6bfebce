"""From a budget to a sampler.

A checkpoint carries a table of settings that were measured for its weights, one row each, of
self-speculative sampling and of plain sampling:

    {"sampler": "speculative", "order": "uniform", "window": {"kind": "cosine", "dtau": 0.083},
     "rounds": 4, "nfe": 14.3, "judge": 2.90, "word_entropy": 6.1, "n": 1024}
    {"sampler": "plain", "order": "respaced", "schedule": "linear", "steps": 8, "nfe": 7.3, ...}
    {"sampler": "remasked", "order": "cells", ..., "rounds": 1, "eta": 0.05, "passes": 64, ...}

with `judge` in bits per token, lower is better; "remasked" is self-speculative too, but takes
tokens back between its passes. A request picks one row:

    nfe = b     the lowest `judge` among the rows with NFE ≤ b
    fast        the same, with the NFE of the cheapest self-speculative row as the budget
    best        the cheapest row within .005 bits of the lowest `judge`
    balanced    the cheapest row that is at least half of the way from fast to the lowest:
                judge ≤ (judge(fast) + lowest) / 2

Few passes are best left unverified, so that fast may be a plain row; but plain sampling can be made
as cheap as one likes, and as bad, so that the cheapest row of all is not what fast should be.
`measuring` makes a table, and says which plain rows are in it.

The table is measured on sequences of the model's full length, or of the lengths of its training
data where these had their own. Its windows are shares of the tokens to generate, and its steps at
most a pass a token, so a shorter text takes fewer passes, but only slightly, until there are about
as many tokens as passes: a budget that holds at full length holds there too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfspec.checkpoint import load_config, resolve
from selfspec.checks import real, whole
from selfspec.files import write_json
from selfspec.inputs import check_model
from selfspec.model import SSMD
from selfspec.orders import (
    Order,
    RespacedOrder,
    UniformOrder,
    VanDerCorputOrder,
    as_order,
    same_rule,
)
from selfspec.sampling import (
    AnyOrderSampler,
    FixedCountSampler,
    RemaskedSpeculativeSampler,
    Sampler,
    SpeculativeSampler,
)
from selfspec.sampling.remasked import Remasked
from selfspec.schedules import (
    USUAL_ROUNDS,
    ConstantWindow,
    CosineSchedule,
    CosineWindow,
    LinearSchedule,
    LinearWindow,
    Schedule,
    UnboundedWindow,
    Window,
)
from selfspec.selection import CellOrder

__all__ = [
    "ORDERS",
    "SCHEDULES",
    "Point",
    "Quality",
    "by_budget",
    "by_quality",
    "choose",
    "describe",
    "store",
]

Quality = Literal["fast", "balanced", "best"]
NOISE = 0.005
"""Bits within which the best scores count as equal: 8,192 texts hardly tell them apart."""

ORDERS: dict[str, Callable[[], Order]] = {
    "uniform": UniformOrder,
    "van-der-corput": VanDerCorputOrder,
    "respaced": RespacedOrder,
    "cells": CellOrder,
}
WINDOWS: dict[str, Callable[..., Window]] = {
    "cosine": CosineWindow,
    "linear": LinearWindow,
    "constant": ConstantWindow,
    "unbounded": UnboundedWindow,
}
SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
}
Kind = type[SpeculativeSampler] | type[FixedCountSampler]
SAMPLERS: dict[str, Kind] = {
    "speculative": SpeculativeSampler,
    "remasked": RemaskedSpeculativeSampler,
    "plain": FixedCountSampler,
}


@dataclass(frozen=True)
class Point:
    """One row of a table: a sampler, and what it measured."""

    kind: Kind
    order: Order
    settings: Mapping[str, Any]
    """Of a sampler of this kind: `window` and `rounds`, where tokens are taken back also `eta` and
    `passes`; or `schedule` and `steps`."""
    nfe: float
    judge: float

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Point":
        """Read a row.

        Raises:
            ValueError: a field is missing, of a wrong type or of an unknown kind.
        """
        try:
            return cls(
                kind=SAMPLERS[row["sampler"]],
                order=ORDERS[row["order"]](),
                settings=_settings(row),
                nfe=float(row["nfe"]),
                judge=float(row["judge"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"`calibration` has a bad row {row!r} ({error!r})") from error

    @property
    def verified(self) -> bool:
        """Whether drafts are verified, or stand as they are."""
        return issubclass(self.kind, SpeculativeSampler)

    @property
    def has_likelihood(self) -> bool:
        """Whether the law of its samples can be computed or estimated."""
        return not issubclass(self.kind, Remasked)

    def sampler(self, model: SSMD, temperature: float = 1.0, top_p: float = 1.0) -> Sampler:
        """What the row describes, for a model."""
        return self.kind(model, self.order, **self.settings, temperature=temperature, top_p=top_p)


def choose(
    model: SSMD,
    nfe: float | None = None,
    quality: Quality | None = None,
    order: Order | None = None,
    window: Window | int | None = None,
    rounds: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    likelihood: bool = False,
) -> Sampler:
    """The sampler of a budget, of a named quality or of raw settings: one of the three.

    Args:
        model: with a head: `SpeculativeSampler`, or `FixedCountSampler` where the table has it.
            Without: `FixedCountSampler`, whose NFE is its number of passes, so that `nfe` needs no
            table there; `AnyOrderSampler` if `nfe` allows a pass a token.
        nfe: the most function evaluations a sample, on average.
        quality: a named point of the table; "balanced" where nothing is asked for.
        order: the rule for σ; restricts the table to its rows, of which a rule with settings that
            are not the usual ones has none.
        window, rounds: raw settings of `SpeculativeSampler`; a whole number is a constant window.
            A model without a table uses the sampler's own defaults for what is not given.
        temperature, top_p: of draft and target alike; the table is measured at 1 and 1.
        likelihood: leave rows out whose samples have none.

    Raises:
        ValueError: a budget below what the table has, no table, or several requests at once.
    """
    check_model(model)
    as_order(order)
    raw = window is not None or rounds is not None
    if (nfe is not None) + (quality is not None) + raw > 1:
        raise ValueError("give one of `nfe`, `quality` or `window` and `rounds`, got several")
    if nfe is not None and not real("nfe", nfe) >= 1:
        raise ValueError(f"`nfe` must be at least 1, got {nfe:g}")
    if model.head is None:
        if quality is not None or raw:
            raise ValueError("`model` must have a causal head for this request, got head=None")
        if nfe is not None and nfe >= model.length:
            return AnyOrderSampler(model, order, temperature, top_p)
        steps = 16 if nfe is None else int(nfe)
        return FixedCountSampler(model, order, None, steps, temperature, top_p)
    table = [Point.from_row(row) for row in model.calibration]
    table = [p for p in table if order is None or same_rule(p.order, order)]
    table = [p for p in table if p.has_likelihood or not likelihood]
    if nfe is None and quality is None and (raw or not table):
        rounds = USUAL_ROUNDS if rounds is None else rounds
        return SpeculativeSampler(model, order, window, rounds, temperature, top_p)
    if not table:
        raise ValueError(
            f"`{'quality' if nfe is None else 'nfe'}` needs a calibration table"
            f"{'' if order is None else f' for {order!r}'}, which this checkpoint "
            "lacks: run `selfspec benchmark CHECKPOINT --calibrate`, or give `window` and `rounds`"
        )
    point = by_quality(table, quality or "balanced") if nfe is None else by_budget(table, nfe)
    return point.sampler(model, temperature, top_p)


def by_budget(table: Sequence[Point], nfe: float) -> Point:
    """The best point of at most `nfe` function evaluations.

    Raises:
        ValueError: there is none.
    """
    affordable = [point for point in table if point.nfe <= nfe]
    if not affordable:
        # Rounded up, so that the number named is one that works.
        least = math.ceil(10 * min(point.nfe for point in table)) / 10
        orders = {type(point.order).__name__ for point in table}
        alone = f" with {orders.pop()}" if len(orders) == 1 else ""
        raise ValueError(
            f"`nfe` must be at least {least:g} for this checkpoint{alone}, got {nfe:g}"
        )
    return min(affordable, key=lambda point: (point.judge, point.nfe))


def by_quality(table: Sequence[Point], quality: Quality) -> Point:
    """A named point of the table, as this module's head defines it."""
    verified = [point.nfe for point in table if point.verified]
    fast = by_budget(table, min(verified or [point.nfe for point in table]))
    lowest = min(point.judge for point in table)
    best = min(
        (point for point in table if point.judge <= lowest + NOISE),
        key=lambda point: (point.nfe, point.judge),
    )
    limit = (fast.judge + lowest) / 2
    near = [point for point in table if point.judge <= limit]
    balanced = min(near, key=lambda point: (point.nfe, point.judge))
    named = {"fast": fast, "balanced": balanced, "best": best}
    if quality not in named:
        raise ValueError(f"`quality` must be one of {list(named)}, got {quality!r}")
    return named[quality]


def describe(sampler: Sampler) -> dict[str, Any]:
    """The settings of a sampler in JSON types; `Point.from_row` reads those that it knows."""
    if isinstance(sampler, SpeculativeSampler):
        parts = {name: _plain(value) for name, value in vars(sampler.window).items()}
        window = {"kind": _name(sampler.window, WINDOWS), **parts}
        settings = {"window": window, "rounds": sampler.rounds}
    elif isinstance(sampler, FixedCountSampler):
        settings = {"schedule": _name(sampler.schedule, SCHEDULES), "steps": sampler.steps}
    else:
        settings = {}
    if isinstance(sampler, Remasked):
        settings |= {"eta": sampler.eta, "passes": sampler.passes}
    kind, order = _name(sampler, SAMPLERS), type(sampler.order).__name__
    order = next((name for name, rule in ORDERS.items() if same_rule(rule(), sampler.order)), order)
    return {"sampler": kind, "order": order, **settings}


def _plain(value: Any) -> Any:
    """As JSON has it; of what it does not have, such as a schedule, the name of its kind."""
    return value if isinstance(value, (int, float, str, tuple)) else type(value).__name__


def store(checkpoint: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes a table into the `config.json` of a checkpoint; the weights are not touched.

    Returns:
        The file.

    Raises:
        ValueError: no checkpoint there, or a bad row. OSError: the file cannot be written; it is
            then as it was.
    """
    folder = resolve(checkpoint)
    for row in rows:
        Point.from_row(row)
    config = load_config(folder) | {"calibration": [dict(row) for row in rows]}
    path = folder / "config.json"
    write_json(path, config)
    return path


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its sampler beside kind and order."""
    if row["sampler"] == "plain":
        steps = whole("steps", row["steps"], least=1)
        return {"schedule": SCHEDULES[row["schedule"]](), "steps": steps}
    window = dict(row["window"])
    rounds = whole("rounds", row["rounds"], least=1)
    settings = {"window": WINDOWS[window.pop("kind")](**window), "rounds": rounds}
    if row["sampler"] == "remasked":
        settings |= {"eta": real("eta", row["eta"]), "passes": whole("passes", row["passes"], 0)}
    return settings


def _name(value: object, names: Mapping[str, Any]) -> str:
    """The name of a value's class in a table, or else the class's own."""
    kind = type(value)
    return next((name for name, known in names.items() if known is kind), kind.__name__)
