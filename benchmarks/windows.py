"""What held-out text says, without a sample drawn: what the head recovers, and which windows pay.

    python benchmarks/windows.py --data DATA --out benchmarks/results/books27-windows.json

One table of exact scores for each text (a trunk and a head pass for every number of known tokens)
answers both questions for all windows and rounds.

**The gap.** A window cuts the places of σ into passes. For the place d of the pass that begins at
i, in bits:

    draft    -log₂ p_i(x_σ(d))     what plain sampling with these passes loses a character
    target   -log₂ q_i(x_σ(d))     given the tokens of the pass before d too, by the head
    oracle   -log₂ p_d(x_σ(d))     given them, by a trunk pass of their own

    closed = (draft - target) / (draft - oracle)

**The windows.** Bits per character of the text under each law, -log₂ p(x | σ) / L, and what its
samples cost: the expected passes of the samples that turn out to be x, with R head passes in each,
which is the most there can be. `ratio` says how many evaluations plain sampling needs for the same
bits: the least of the two schedules, linear in the logarithm of the evaluations in between.

Means are over texts, with 95 % intervals from resampled texts.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfspec import checkpoint
from selfspec.arena.intervals import bootstrap_means
from selfspec.arena.report import commit, machine, running
from selfspec.calibration import ORDERS
from selfspec.data.corpus import open_corpus
from selfspec.files import write_json
from selfspec.likelihood import Scores, chain, draw_order, expected_passes, scores
from selfspec.model import SSMD
from selfspec.schedules import (
    CosineSchedule,
    CosineWindow,
    LinearSchedule,
    LinearWindow,
    ScheduleWindow,
    Window,
)

NAMES = ("draft", "target", "oracle", "closed")
GAPS = (0.01, 0.02, 0.04, 0.083, 0.16)
STEPS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
COSINE = [(r, d) for r in (1, 2, 4) for d in (0.01, 0.02, 0.04, 0.06, 0.083, 0.12, 0.16)]
LINEAR = [(r, d) for r in (1, 2, 4) for d in (0.016, 0.02, 0.03, 0.045, 0.06, 0.09, 0.125)]


def begins(window: Window, length: int) -> np.ndarray:
    """The first place i of the pass that holds d, for d = 0, …, L-1: (L,)."""
    table, i, found = window.table(length), 0, np.empty(length, dtype=np.int64)
    while i < length:
        found[i : i + table[i]] = i
        i += int(table[i])
    return found


def gap(table: Scores, dtau: float, seed: int) -> dict[str, Any]:
    """One row."""
    places = torch.arange(table.draft.shape[1])
    first = torch.from_numpy(begins(CosineWindow(dtau), len(places)))
    nats = (table.draft[:, first, places], table.target[:, first, places],
            table.draft[:, places, places])  # fmt: skip
    bits = torch.stack([-x.mean(1) / math.log(2) for x in nats], dim=1).numpy()
    means, resampled = bits.mean(0), bootstrap_means(bits, seed=seed)
    figures = np.column_stack([resampled, closed(resampled)])
    low, high = np.quantile(figures, (0.025, 0.975), axis=0)
    row: dict[str, Any] = {"dtau": dtau}
    for column, value in enumerate([*means, closed(means)]):
        name = NAMES[column]
        row[name] = float(value)
        row[f"{name}_low"], row[f"{name}_high"] = float(low[column]), float(high[column])
    return row


def closed(bits: np.ndarray) -> np.ndarray:
    """The share of what is lost that is recovered: (..., 3) → (...)."""
    draft, target, oracle = np.moveaxis(bits, -1, 0)
    return (draft - target) / (draft - oracle)


def rows(model: SSMD, table: Scores, seed: int) -> list[dict[str, Any]]:
    """Every window; `ratio` only where plain sampling reaches the same bits."""
    blocks, head = model.num_trunk_blocks, model.num_head_blocks
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for name, schedule in {"cosine": CosineSchedule(), "linear": LinearSchedule()}.items():
        for steps in STEPS:
            window = ScheduleWindow(schedule, steps)
            nfe = len(np.unique(begins(window, model.length))) * blocks / (blocks + head)
            knobs = {"schedule": name, "steps": steps}
            found.append(({"sampler": "plain", **knobs, "nfe": nfe}, bits(table, window, 0)))
    plain = list(found)
    for kind, settings in ((CosineWindow, COSINE), (LinearWindow, LINEAR)):
        for rounds, dtau in settings:
            window = kind(dtau)
            passes = float(expected_passes(table, window, rounds).mean())
            nfe = passes * (blocks + rounds * head) / (blocks + head)
            knobs = {"schedule": kind.__name__.removesuffix("Window").lower(), "dtau": dtau}
            row = {"sampler": "self-speculative", "rounds": rounds, **knobs, "nfe": nfe}
            found.append((row | {"trunk_passes": passes}, bits(table, window, rounds)))
    costs = np.array([row["nfe"] for row, _ in plain])
    curve = bootstrap_means(np.stack([b for _, b in plain], axis=1), seed=seed)
    for row, own in found:
        resampled = bootstrap_means(own, seed=seed)
        row["bits"], (row["low"], row["high"]) = float(own.mean()), interval(resampled)
        if row["sampler"] != "plain":
            means = np.array([b.mean() for _, b in plain])
            ratio = needed(costs, means, row["bits"]) / row["nfe"]
            row["ratio"] = None if math.isnan(ratio) else ratio
            ratios = [needed(costs, *pair) for pair in zip(curve, resampled, strict=True)]
            row["ratio_low"], row["ratio_high"] = interval(np.array(ratios) / row["nfe"])
    return [row for row, _ in found]


def bits(table: Scores, window: Window, rounds: int) -> np.ndarray:
    """(B,) bits per character."""
    return (-chain(table, window, rounds) / table.end / math.log(2)).numpy()


def needed(costs: np.ndarray, scores: np.ndarray, score: float) -> float:
    """The least cost at which the curve through (costs, scores) has a score; nan beyond it."""
    order = np.argsort(costs)
    costs, scores = costs[order], np.minimum.accumulate(scores[order])
    if not scores[-1] <= score <= scores[0]:
        return math.nan
    return float(np.exp(np.interp(-score, -scores, np.log(costs))))


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95 %; None where a bound lies beyond the curve."""
    beyond = np.where(np.isnan(values), np.inf, values)
    low, high = np.quantile(beyond, (0.025, 0.975), method="higher")
    return tuple(float(v) if np.isfinite(v) else None for v in (low, high))  # type: ignore[return-value]


def main() -> None:
    args = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint.load(args.model, device)
    assert isinstance(model, SSMD)
    texts = open_corpus(args.data)[1]["test"].excerpt(model.length, args.n)
    tokens = torch.from_numpy(texts.astype(np.int64)).to(device)
    report: dict[str, Any] = {
        "machine": machine(),
        "commit": commit(),
        "command": running(),
        "model": args.model,
        "seed": args.seed,
        "n": len(tokens),
    }  # fmt: skip
    for name in args.orders:
        table = table_of(model, tokens, name, args)
        report[name] = {
            "gap": [gap(table, dtau, args.seed) for dtau in GAPS],
            "rows": rows(model, table, args.seed),
        }
        write_json(args.out, report)


def table_of(model: SSMD, tokens: Tensor, order: str, args: argparse.Namespace) -> Scores:
    """The scores, on the CPU; kept in --tables."""
    path = args.tables and args.tables / f"{order}.safetensors"
    if path and path.exists():
        return Scores(**load_file(path))
    table = exact_table(model, tokens, order, args.seed, args.batch_size)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(table._asdict(), path)
    return table


def exact_table(model: SSMD, tokens: Tensor, order: str, seed: int, batch_size: int) -> Scores:
    """Scores under one drawn order a text, on the CPU."""
    sigma, _ = draw_order(ORDERS[order](), tokens, seed)
    return Scores(*(x.cpu() for x in scores(model, tokens, sigma, batch_size=batch_size)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="books27", help="a folder, or a bundled name")
    parser.add_argument("--data", type=Path, required=True, help="of `selfspec prepare`")
    parser.add_argument("--orders", nargs="*", default=["uniform", "van-der-corput"])
    parser.add_argument("--n", type=int, default=64, help="held-out texts, a pass a character")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path, help="folder to keep the tables in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/books27-windows.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
