"""From a budget to a sampler.

A checkpoint carries a table of settings that were measured for its weights, one row each:

    {"sampler": "speculative", "order": "uniform", "window": {"kind": "cosine", "dtau": 0.083},
     "rounds": 4, "nfe": 14.3, "judge": 2.90, "word_entropy": 6.1, "n": 1024}

with `judge` in bits per token, lower is better. A request picks one row:

    nfe = b     the lowest `judge` among the rows with NFE ≤ b
    fast        the row with the lowest NFE
    best        the row with the lowest `judge`
    balanced    the cheapest row that is at least three quarters of the way from fast to best:
                judge ≤ judge(best) + (judge(fast) - judge(best)) / 4

The table is measured on sequences of the model's full length, or of the lengths of its training
data where these had their own. Its windows are shares of the tokens to generate, so a shorter text
takes fewer passes, but only slightly, until there are about as many tokens as passes: a budget that
holds at full length holds there too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from selfspec.checkpoint import load_config, resolve
from selfspec.files import write_json
from selfspec.interfaces import Samples
from selfspec.metrics.entropy import word_entropy
from selfspec.metrics.judge import Judge, judge_nll
from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.orders import Order, RespacedOrder, UniformOrder, VanDerCorputOrder
from selfspec.prompts import blank
from selfspec.sampling import AnyOrderSampler, FixedCountSampler, Sampler, SpeculativeSampler
from selfspec.schedules import (
    USUAL_ROUNDS,
    ConstantWindow,
    CosineWindow,
    LinearWindow,
    UnboundedWindow,
    Window,
)
from selfspec.selection import CellOrder

__all__ = [
    "ORDERS",
    "Point",
    "Quality",
    "by_budget",
    "by_quality",
    "choose",
    "describe",
    "knobs",
    "measure",
    "store",
]

Quality = Literal["fast", "balanced", "best"]

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
SWEEP: tuple[tuple[int, CosineWindow | LinearWindow], ...] = (
    (6, CosineWindow(0.16)),
    (2, LinearWindow(0.09)),
    (4, CosineWindow(0.083)),
    (1, LinearWindow(0.06)),
    (4, CosineWindow(0.04)),
    (1, LinearWindow(0.03)),
    (4, CosineWindow(0.02)),
    (3, CosineWindow(0.01)),
    (2, CosineWindow(0.005)),
)
"""Rounds and windows that `measure` tries with every order, from about 8 to 110 NFE at D = 256."""


@dataclass(frozen=True)
class Point:
    """One row of a table: a setting of `SpeculativeSampler` and what it measured."""

    order: Order
    window: Window
    rounds: int
    nfe: float
    judge: float

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Point":
        """Read a row.

        Raises:
            ValueError: a field is missing, of a wrong type or of an unknown kind.
        """
        try:
            if row["sampler"] != "speculative":
                raise ValueError(f"unknown sampler {row['sampler']!r}")
            window = dict(row["window"])
            return cls(
                order=ORDERS[row["order"]](),
                window=WINDOWS[window.pop("kind")](**window),
                rounds=int(row["rounds"]),
                nfe=float(row["nfe"]),
                judge=float(row["judge"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"`calibration` has a bad row {row!r} ({error!r})") from error


def choose(
    model: SSMD,
    nfe: float | None = None,
    quality: Quality | None = None,
    order: Order | None = None,
    window: Window | int | None = None,
    rounds: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sampler:
    """The sampler of a budget, of a named quality or of raw settings: one of the three.

    Args:
        model: with a head: `SpeculativeSampler`. Without: `FixedCountSampler`, whose NFE is its
            number of passes, so that `nfe` needs no table there; `AnyOrderSampler` if `nfe` allows
            a pass a token.
        nfe: the most function evaluations a sample, on average.
        quality: a named point of the table; "balanced" where nothing is asked for.
        order: the rule for σ; restricts the table to its rows.
        window, rounds: raw settings; a whole number is a constant window. A model without a table
            uses `SpeculativeSampler`'s own defaults for what is not given.
        temperature, top_p: of draft and target alike; the table is measured at 1 and 1.

    Raises:
        ValueError: a budget below what the table has, no table, or several requests at once.
    """
    raw = window is not None or rounds is not None
    if (nfe is not None) + (quality is not None) + raw > 1:
        raise ValueError("give one of `nfe`, `quality` or `window` and `rounds`, got several")
    if nfe is not None and not nfe >= 1:
        raise ValueError(f"`nfe` must be at least 1, got {nfe:g}")
    if model.head is None:
        if quality is not None or raw:
            raise ValueError("`model` must have a causal head for this request, got head=None")
        if nfe is not None and nfe >= model.length:
            return AnyOrderSampler(model, order, temperature, top_p)
        steps = 16 if nfe is None else int(nfe)
        return FixedCountSampler(model, order, None, steps, temperature, top_p)
    table = [Point.from_row(row) for row in model.calibration]
    table = [p for p in table if order is None or type(p.order) is type(order)]
    if nfe is None and quality is None and (raw or not table):
        rounds = USUAL_ROUNDS if rounds is None else rounds
        return SpeculativeSampler(model, order, window, rounds, temperature, top_p)
    if not table:
        raise ValueError(
            f"`{'quality' if nfe is None else 'nfe'}` needs a calibration table"
            f"{'' if order is None else f' for {type(order).__name__}'}, which this checkpoint "
            "lacks: run `selfspec benchmark CHECKPOINT --calibrate`, or give `window` and `rounds`"
        )
    point = by_quality(table, quality or "balanced") if nfe is None else by_budget(table, nfe)
    return SpeculativeSampler(model, point.order, point.window, point.rounds, temperature, top_p)


def by_budget(table: Sequence[Point], nfe: float) -> Point:
    """The best point of at most `nfe` function evaluations.

    Raises:
        ValueError: there is none.
    """
    affordable = [point for point in table if point.nfe <= nfe]
    if not affordable:
        # Rounded up, so that the number named is one that works.
        least = math.ceil(10 * min(point.nfe for point in table)) / 10
        raise ValueError(f"`nfe` must be at least {least:g} for this checkpoint, got {nfe:g}")
    return min(affordable, key=lambda point: (point.judge, point.nfe))


def by_quality(table: Sequence[Point], quality: Quality) -> Point:
    """A named point of the table, as this module's head defines it."""
    fast = min(table, key=lambda point: (point.nfe, point.judge))
    best = min(table, key=lambda point: (point.judge, point.nfe))
    limit = best.judge + (fast.judge - best.judge) / 4
    balanced = min((p for p in table if p.judge <= limit), key=lambda point: point.nfe)
    named = {"fast": fast, "balanced": balanced, "best": best}
    if quality not in named:
        raise ValueError(f"`quality` must be one of {list(named)}, got {quality!r}")
    return named[quality]


def describe(sampler: Sampler) -> dict[str, Any]:
    """The settings of a sampler in JSON types; `Point.from_row` reads a speculative one's."""
    if isinstance(sampler, SpeculativeSampler):
        window = {"kind": _name(sampler.window, WINDOWS), **vars(sampler.window)}
        settings = {"window": window, "rounds": sampler.rounds}
    elif isinstance(sampler, FixedCountSampler) and not isinstance(sampler, AnyOrderSampler):
        settings = {"schedule": type(sampler.schedule).__name__, "steps": sampler.steps}
    else:
        settings = {}
    name = type(sampler).__name__.removesuffix("Sampler").lower()
    return {"sampler": name, "order": _name(sampler.order, ORDERS), **settings}


def knobs(rounds: int, window: CosineWindow | LinearWindow) -> dict[str, Any]:
    """Rounds and window as the settings of a report; a window is cosine if nothing is said."""
    schedule = {} if isinstance(window, CosineWindow) else {"schedule": "linear"}
    return {"rounds": rounds, **schedule, "dtau": window.dtau}


def measure(
    model: SSMD,
    judge: Judge,
    samplers: Sequence[SpeculativeSampler] | None = None,
    n: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Draws n samples at every setting and scores them: a new table.

    Args:
        model: with a head; its own table is neither used nor changed.
        judge: (B, L) tokens → (B, L) nats, on the model's device.
        samplers: settings to measure; by default `SWEEP` with every order.
        n: samples a setting, with the same row seeds at each.
        seed: of the run.
        batch_size: rows drawn at once.
        progress: show a bar over the settings.

    Returns:
        A row a setting, by rising NFE.

    Raises:
        ValueError: `n` or `batch_size` below 1, or a model without head.
    """
    for name, value in {"n": n, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
    if samplers is None:
        samplers = [
            SpeculativeSampler(model, order(), window, rounds)
            for order in ORDERS.values()
            for rounds, window in SWEEP
        ]
    seeds = row_seeds(seed, n, model.device)
    text = model.length - len(model.frame[0]) - len(model.frame[1])
    sizes = model.lengths.draw(seeds) if model.lengths else torch.full_like(seeds, text)
    tokens, pad = blank(sizes, model.mask_id, frame=model.frame)
    rows = []
    bar = tqdm(samplers, desc="calibrating", unit="setting", disable=not progress)
    for sampler in bar:
        batches = zip(*(x.split(batch_size) for x in (tokens, seeds, pad)), strict=True)
        parts = [sampler.sample(*batch) for batch in batches]
        rows.append({**describe(sampler), **_scores(model, judge, Samples.concatenate(parts))})
        bar.set_postfix(nfe=f"{rows[-1]['nfe']:.1f}", judge=f"{rows[-1]['judge']:.3f}")
    return sorted(rows, key=lambda row: row["nfe"])


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


def _scores(model: SSMD, judge: Judge, samples: Samples) -> dict[str, Any]:
    """What a row says of its samples; numbers rounded to what n samples can resolve."""
    bits = judge_nll(samples.tokens, judge, pad=samples.pad).bits
    scores: dict[str, Any] = {
        "nfe": round(float(samples.nfe.mean()), 2),
        "judge": round(float(bits.mean()), 4),
        "n": len(samples),
    }
    if model.tokenizer is not None:
        entropy = word_entropy([model.tokenizer.decode(row.compressed()) for row in samples.rows])
        scores["word_entropy"] = None if math.isnan(entropy) else round(entropy, 3)
    return scores


def _name(value: object, names: Mapping[str, Any]) -> str:
    """The name of a value's class in a table, or else the class's own."""
    kind = type(value)
    return next((name for name, known in names.items() if known is kind), kind.__name__)
