"""How much of what a pass loses the head recovers.

    python benchmarks/gap.py --data DATA --out benchmarks/results/books27-gap.json

A window cuts the places of σ into passes. For the place d of the pass that begins at i, on held-out
text x and in bits:

    draft    -log₂ p_i(x_σ(d))     what plain sampling with these passes loses a character
    target   -log₂ q_i(x_σ(d))     given the tokens of the pass before d too, by the head
    oracle   -log₂ p_d(x_σ(d))     given them, by a trunk pass of their own

    closed = (draft - target) / (draft - oracle)

The means are over all places of the same texts, with 95 % intervals over texts.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfspec import checkpoint
from selfspec.arena.intervals import bootstrap_means
from selfspec.arena.report import commit
from selfspec.calibration import ORDERS
from selfspec.data.corpus import open_corpus
from selfspec.files import write_json
from selfspec.likelihood import Scores, draw_order, scores
from selfspec.model import SSMD
from selfspec.schedules import CosineWindow, Window

NAMES = ("draft", "target", "oracle", "closed")


def begins(window: Window, length: int) -> np.ndarray:
    """The first place i of the pass that holds d, for d = 0, …, L-1: (L,)."""
    table, i, found = window.table(length), 0, np.empty(length, dtype=np.int64)
    while i < length:
        found[i : i + table[i]] = i
        i += int(table[i])
    return found


def measure(table: Scores, dtau: float, seed: int) -> dict[str, Any]:
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


def main() -> None:
    args = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint.load(args.model, device)
    assert isinstance(model, SSMD)
    rows = open_corpus(args.data)[1]["test"].excerpt(model.length, args.n)
    tokens = torch.from_numpy(rows.astype(np.int64)).to(device)
    report: dict[str, Any] = {
        "machine": {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                    "torch": torch.__version__},
        "commit": commit(),
        "command": f"python benchmarks/gap.py --data DATA --n {len(tokens)}",
        "model": args.model,
        "seed": args.seed,
        "n": len(tokens),
        "rows": [],
    }  # fmt: skip
    for name in args.orders:
        sigma, _ = draw_order(ORDERS[name](), tokens, args.seed)
        table = Scores(*(x.cpu() for x in scores(model, tokens, sigma, batch_size=args.batch_size)))
        for dtau in args.dtau:
            row = {"order": name, **measure(table, dtau, args.seed)}
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
            report["rows"].append(row)
            write_json(args.out, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="books27", help="a folder, or a bundled name")
    parser.add_argument("--data", type=Path, required=True, help="of `selfspec prepare`")
    parser.add_argument("--orders", nargs="*", default=["uniform", "van-der-corput"])
    parser.add_argument("--dtau", nargs="*", type=float, default=[0.01, 0.02, 0.04, 0.083, 0.16])
    parser.add_argument(
        "--n", type=int, default=64, help="held-out texts, a trunk pass a character"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/books27-gap.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
