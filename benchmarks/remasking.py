"""What taking tokens back between passes gives, and what verification gives beside it, by cells.

    python benchmarks/remasking.py --n 128 --out benchmarks/results/books27-remasking.json

Plain and self-speculative sampling at about the same NFE, in the same order, each without remasking
and with it: the difference is remasking alone, or verification alone. A finished setting is kept in
--folder and not drawn again; --seconds cuts a run. `remasking` is the table of docs/samplers.md.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from quality import judge_facts
from tables import judged, number, table

from selfspec import checkpoint
from selfspec.arena import Reference, Setting, Sweep, write_report
from selfspec.arena.reference import bundled_words
from selfspec.measuring import knobs
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.sampling import RemaskedPlainSampler, RemaskedSpeculativeSampler
from selfspec.schedules import LinearSchedule, LinearWindow, ScheduleWindow
from selfspec.selection import CellOrder

ROUNDS, DTAU, STEPS = 1, 0.06, 24
"""Verified, and as many passes of plain sampling as that takes."""


def compared(model: SSMD, etas: Sequence[float]) -> list[Setting]:
    """Both samplers for every η; at 0 nothing is taken back."""
    found = []
    for eta in etas:
        window = ScheduleWindow(LinearSchedule(), STEPS)
        values = {"schedule": "linear", "steps": STEPS, "eta": eta}
        sampler = RemaskedPlainSampler(model, CellOrder(), window, eta)
        found.append(Setting("plain", "cells", values, sampler))
        values = {**knobs(ROUNDS, LinearWindow(DTAU)), "eta": eta}
        verified = RemaskedSpeculativeSampler(model, CellOrder(), LinearWindow(DTAU), ROUNDS, eta)
        found.append(Setting("self-speculative", "cells", values, verified))
    return found


def remasking(report: Mapping[str, Any]) -> str:
    """The table of a report, as Markdown."""
    rows = sorted(report["rows"], key=lambda row: (row["sampler"], row["settings"]["eta"]))
    about = (
        f"{report['n']} samples a row, {report['judges']['judge']['unit']} of the bundled judge."
    )
    header = ["sampler", "settings, η last", "NFE", "judge", "words (nats)", "distinct 4-grams"]
    cells = [[row["sampler"], *judged(row), number(row["word_entropy"], 2),
              number(row["distinct_4"], 4)] for row in rows]  # fmt: skip
    return "\n".join([about, "", table(header, cells), ""])


def main() -> None:
    args = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, judge = (checkpoint.load(name, device) for name in (args.model, args.judge))
    assert isinstance(model, SSMD)
    assert isinstance(judge, AutoregressiveModel)
    assert model.tokenizer is not None
    reference = Reference(model.tokenizer.decode, bundled_words())
    sweep = Sweep(
        model, judge.log_probs, reference, args.folder, args.n, args.batch_size, args.seed,
        device=model.device, keep_tokens=False,
    )  # fmt: skip
    results = sweep.run(compared(model, args.etas), stop_after=args.seconds)
    facts = {"judge": judge_facts(args.judge, model.tokenizer)}
    print(remasking(write_report(args.out, results, (), args.seed, facts)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="books27", help="a folder, or a bundled name")
    parser.add_argument("--judge", type=Path, default=Path("books27-judge"))
    parser.add_argument("--etas", nargs="*", type=float, default=[0, 0.05, 0.1])
    parser.add_argument("--n", type=int, default=1536)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no setting after")
    parser.add_argument("--folder", type=Path, default=Path("runs/remasking"))
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
