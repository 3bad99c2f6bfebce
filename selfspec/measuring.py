"""The making of a calibration table: settings are swept, drawn and scored.

A table keeps every self-speculative row that was measured, as an order may be asked for by name. Of
plain sampling, which costs as little as one likes, it keeps a row if among the rows of its order

    none of at most as many evaluations has a lower `judge`, and
    the cheapest self-speculative one has no lower `judge`:

a budget too small for a text as good as verification gives at its cheapest is refused.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from selfspec.calibration import ORDERS, describe
from selfspec.checks import whole
from selfspec.inputs import check_model
from selfspec.interfaces import Samples
from selfspec.metrics.entropy import word_entropy
from selfspec.metrics.judge import Judge, judge_nll
from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.progress import tracked
from selfspec.prompts import blank
from selfspec.sampling import FixedCountSampler, RemaskedSpeculativeSampler, SpeculativeSampler
from selfspec.schedules import CosineWindow, LinearSchedule, LinearWindow

__all__ = [
    "PLAIN_SWEEP",
    "REMASKED_ORDER",
    "REMASKED_SWEEP",
    "SWEEP",
    "knobs",
    "measure",
    "worthwhile",
]

Row = dict[str, Any]

SWEEP: tuple[tuple[int, CosineWindow | LinearWindow], ...] = (
    (6, CosineWindow(0.16)),
    (3, LinearWindow(0.125)),
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

PLAIN_SWEEP: tuple[int, ...] = (6, 8, 12, 16)
"""Steps, of equally many tokens each, that it tries with every order: few passes, as the gain of
verification grows with their number."""

REMASKED_ORDER, ETA = "cells", 0.05
"""Where taking tokens back helps, and with which η; in orders without drafts it hardly does."""

REMASKED_SWEEP: tuple[tuple[int, LinearWindow], ...] = (
    (2, LinearWindow(0.09)),
    (1, LinearWindow(0.06)),
    (1, LinearWindow(0.03)),
)
"""Rounds and windows that it tries so, from about 13 to 38 NFE at D = 256."""


def measure(
    model: SSMD,
    judge: Judge,
    samplers: Sequence[SpeculativeSampler | FixedCountSampler] | None = None,
    n: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Row]:
    """Draws n samples at every setting and scores them: a new table.

    Args:
        model: with a head; its own table is neither used nor changed.
        judge: (B, L) tokens → (B, L) nats, on the model's device.
        samplers: settings to measure; by default `SWEEP` and `PLAIN_SWEEP` with every order, and
            `REMASKED_SWEEP` with one.
        n: samples a setting, with the same row seeds at each.
        seed: of the run.
        batch_size: rows drawn at once.
        progress: show a bar over the settings.

    Returns:
        A row for each `worthwhile` setting, by rising NFE.

    Raises:
        ValueError: `n` or `batch_size` below 1, or a model without head.
    """
    check_model(model)
    for name, value in {"n": n, "batch_size": batch_size}.items():
        whole(name, value, least=1)
    seeds = row_seeds(seed, n, model.device)
    text = model.length - len(model.frame[0]) - len(model.frame[1])
    sizes = model.lengths.draw(seeds) if model.lengths else torch.full_like(seeds, text)
    tokens, pad = blank(sizes, model.mask_id, frame=model.frame)
    rows: list[Row] = []
    swept = _swept(model) if samplers is None else samplers
    bar = tracked(swept, desc="calibrating", unit="setting", progress=progress)
    for sampler in bar:
        batches = zip(*(x.split(batch_size) for x in (tokens, seeds, pad)), strict=True)
        parts = [sampler.sample(*batch) for batch in batches]
        rows.append({**describe(sampler), **_scores(model, judge, Samples.concatenate(parts))})
        bar.set_postfix(nfe=f"{rows[-1]['nfe']:.1f}", judge=f"{rows[-1]['judge']:.3f}")
    return sorted(worthwhile(rows), key=lambda row: row["nfe"])


def worthwhile(rows: Sequence[Row]) -> list[Row]:
    """The rows that a table keeps, as this module's head says.

    >>> row = {"sampler": "plain", "order": "uniform", "nfe": 7.3, "judge": 2.8}
    >>> verified = row | {"sampler": "speculative", "nfe": 7.8, "judge": 3.0}
    >>> beaten, bad = row | {"nfe": 9.2, "judge": 2.9}, row | {"nfe": 3.7, "judge": 3.5}
    >>> worthwhile([bad, row, verified, beaten]) == [row, verified]
    True
    """
    return [row for row in rows if row["sampler"] != "plain" or _adds(row, rows)]


def knobs(rounds: int, window: CosineWindow | LinearWindow) -> dict[str, Any]:
    """Rounds and window as the settings of a report; a window is cosine if nothing is said."""
    schedule = {} if isinstance(window, CosineWindow) else {"schedule": "linear"}
    return {"rounds": rounds, **schedule, "dtau": window.dtau}


def _swept(model: SSMD) -> list[SpeculativeSampler | FixedCountSampler]:
    """The settings that are tried where none are given."""
    found: list[SpeculativeSampler | FixedCountSampler] = []
    for order in ORDERS.values():
        found += [SpeculativeSampler(model, order(), window, rounds) for rounds, window in SWEEP]
        found += [FixedCountSampler(model, order(), LinearSchedule(), k) for k in PLAIN_SWEEP]
    for rounds, window in REMASKED_SWEEP:
        order = ORDERS[REMASKED_ORDER]()
        found.append(RemaskedSpeculativeSampler(model, order, window, rounds, ETA))
    return found


def _adds(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a plain row is the best of its order at its cost, and good enough."""
    others = [other for other in rows if other["order"] == row["order"]]
    verified = [other for other in others if other["sampler"] != "plain"]
    cheapest = min(verified, key=lambda other: (other["nfe"], other["judge"]), default=row)
    affordable = [other["judge"] for other in others if other["nfe"] <= row["nfe"]]
    return row["judge"] <= min(affordable) and row["judge"] <= cheapest["judge"]


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
