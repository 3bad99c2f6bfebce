"""The arena: every sampler on one checkpoint, under one protocol.

    python benchmarks/arena.py --judge RUNS/judge/model --data DATA --n 2048 \
        --out benchmarks/results/arena-books27.json

The same weights, row seeds and judge for all; beside the samples of each setting stands what a
sample costs, in evaluations and in milliseconds of what `ss.generate` draws with: the engine where
it can run a sampler, else the plain loop (`selfspec.arena.sweep`); a row says which. With --engine
reference it is the plain loop for all. A finished setting is kept in --folder and not drawn again;
--seconds cuts a run, which then has the cheap points of every curve. To use several processes or
devices, start --part 0/2, --part 1/2 and so on, and then once without --part, which writes the
report, its page and its figures (where matplotlib is installed; --page draws them from a report
elsewhere). --docs writes a table of budgets for each of --costs into docs/samplers.md, and the
figures into docs/figures. Milliseconds that are to be compared must come from one process alone on
its device: several share it.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from quality import judge_facts
from safetensors import safe_open
from tables import filled, number, table

from selfspec import checkpoint
from selfspec.arena import (
    CONTENDERS,
    PREPARED,
    Setting,
    Sweep,
    contenders,
    contest_figure,
    corpus_reference,
    kept_profile,
    row_table,
    save_page,
    write_contest,
)
from selfspec.arena.figures import save_figure
from selfspec.calibration import ORDERS
from selfspec.data.corpus import open_corpus
from selfspec.files import write_bytes
from selfspec.likelihood import information_profile
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.scorer import Scorer

ROOT = Path(__file__).parents[1]
BUDGETS = {"nfe": (8, 16, 32, 64, 128), "ms_per_sample": (0.5, 1, 2, 4, 8, 16)}
FIXED = {"schedule", "noise", "alg_temperature", "eta"}
"""Knobs that are the same for all points of a curve; the schedule is no window's own name."""
UNITS = {"nfe": "NFE", "ms_per_sample": "ms"}
NAMES = {"nfe": "arena-nfe", "ms_per_sample": "arena-ms"}
"""Of the figure and the table of each cost."""


def main() -> None:
    args = parse()
    if args.page or args.docs:
        report = json.loads(args.out.read_text())
        return document(report, args.costs) if args.docs else draw(report, args.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = checkpoint.load(args.judge, device)
    assert isinstance(judge, AutoregressiveModel)
    model = checkpoint.load(args.model, device)  # not compiled: as users have it
    assert isinstance(model, SSMD)
    tokenizer, stores = open_corpus(args.data)
    reference = corpus_reference(tokenizer, stores, args.length)
    sweep = Sweep(
        model, judge.log_probs, reference, args.folder, args.n, args.batch_size, args.seed,
        length=args.length, device=model.device, autocast=True, keep_tokens=False,
        engine=args.engine,
    )  # fmt: skip
    given = {"predictor": args.predictor, "policy": args.policy}
    given = {name: path for name, path in given.items() if path}
    scorers = {name: Scorer.load(path, model.device) for name, path in given.items()}
    profile = measured_profile(args, model, stores["test"].excerpt(args.length, args.profile))
    settings = contenders(model, args.against, args.orders, args.steps, profile, **scorers)
    if args.finished:
        settings = [setting for setting in settings if sweep.finished(setting)]
    part, parts = map(int, args.part.split("/")) if args.part else (0, 1)
    results = sweep.run(interleaved(settings)[part::parts], stop_after=args.seconds)
    if args.part:
        return
    data = sweep.measure_data(stores["test"].excerpt(args.length, args.n))
    facts = {
        "judge": judge_facts(args.judge, tokenizer),
        "data": {"split": "test", "rows": data.row.n},
        "guides": {name: training(path) for name, path in given.items()},
    }
    report = write_contest(args.out, [*results, data], args.seed, facts, command=args.command)
    print(row_table(report["rows"]))
    if find_spec("matplotlib"):
        draw(report, args.out)


def training(guide: Path) -> dict:
    """How a guide was trained."""
    with safe_open(guide / "scorer.safetensors", "pt") as file:
        return json.loads(file.metadata()["extra"])["training"]


def interleaved(settings: Sequence[Setting]) -> list[Setting]:
    """The first point of every curve, then the second: a run that is cut off has the cheap ones."""
    curves: dict[str, list[Setting]] = {}
    for setting in settings:
        knobs = setting.settings
        fixed = FIXED if "steps" in knobs else FIXED - {"schedule"}
        others = {name: value for name, value in knobs.items() if name in fixed}
        curves.setdefault(repr((setting.sampler, setting.order, others)), []).append(setting)
    points = zip_longest(*curves.values())
    return [setting for point in points for setting in point if setting is not None]


def draw(report: dict, out: Path) -> None:
    """The page beside the report, and its figures."""
    save_page(report, out.with_suffix(".html"))
    for cost in measured(report, NAMES):
        save_figure(contest_figure(report, cost), out.parent / "figures" / NAMES[cost])


def document(report: dict, costs: Sequence[str]) -> None:
    """Table and figure of each cost, the tables between their marks in docs/samplers.md."""
    path = ROOT / "docs" / "samplers.md"
    for cost in measured(report, costs):
        text, mark = path.read_text(encoding="utf-8"), NAMES[cost]
        write_bytes(path, filled(text, mark, budgets(report, cost)).encode())
        save_figure(contest_figure(report, cost), ROOT / "docs" / "figures" / mark)


def measured(report: dict, costs: Iterable[str]) -> list[str]:
    """Those costs that any row has."""
    return [cost for cost in costs if any(row[cost] for row in report["rows"])]


def budgets(report: dict, cost: str) -> str:
    """For each budget, the best diverse row of all, of unverified samplers and of verified ones."""
    rows = [row for row in report["rows"] if row["diverse"] and row[cost]]
    kinds = {
        "best": rows,
        "best without verification": [row for row in rows if not row["head_passes"]],
        "best with verification": [row for row in rows if row["head_passes"]],
    }
    lines = []
    for budget in BUDGETS[cost]:
        found = [
            min((r for r in of if r[cost] <= budget), key=lambda r: r["judge"], default=None)
            for of in kinds.values()
        ]
        lines.append([f"{budget:g}", *(described(row, cost) for row in found)])
    score = report["judges"]["judge"]["unit"]
    head = f"{report['n']:,} samples a row, on {report['machine']['device']}; judge in {score}, "
    head += "behind it the entropy of words in nats."
    return "\n".join([head, "", table([f"{UNITS[cost]} at most", *kinds], lines, ":--"), ""])


def described(row: dict | None, cost: str) -> str:
    """A row as a cell."""
    if row is None:
        return "–"
    name = ", ".join(filter(None, [row["sampler"], row["order"]]))
    knobs = " ".join(f"{key}={value}" for key, value in row["settings"].items())
    interval = f"{row['judge_low']:.3f}–{row['judge_high']:.3f}"
    score = f"{row['judge']:.3f} ({interval}) {number(row['word_entropy'], 2)}".rstrip()
    return f"{name} ({knobs}): {score} at {row[cost]:.3g} {UNITS[cost]}"


def measured_profile(args: argparse.Namespace, model: SSMD, heldout: np.ndarray) -> list[float]:
    """The information profile over held-out text, measured once a folder and model."""
    rows = torch.from_numpy(heldout.astype(np.int64)).to(model.device)

    def measure() -> list[float]:
        with torch.autocast(model.device.type, torch.bfloat16):
            profile = information_profile(model, rows, args.seed, batch_size=args.batch_size)
        return profile.tolist()

    return kept_profile(args.folder, model, args.seed, len(rows), measure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="books27", help="a folder, or a bundled name")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--judge", type=Path, default="books27-judge")
    parser.add_argument("--data", type=Path, help="folder with test.bin")
    parser.add_argument("--against", nargs="*", default=["all"], metavar="NAME",
                        help=f"of {', '.join([*CONTENDERS, *PREPARED])}")  # fmt: skip
    parser.add_argument("--orders", nargs="*", default=list(ORDERS))
    parser.add_argument("--steps", nargs="*", type=int, default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--profile", type=int, default=64, help="held-out sequences of the profile")
    parser.add_argument("--predictor", type=Path, help="folder of a trained error predictor")
    parser.add_argument("--policy", type=Path, help="folder of a trained unmasking policy")
    parser.add_argument("--n", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["reference"], help="see above")
    parser.add_argument("--part", default=None, metavar="k/n")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no setting after")
    parser.add_argument("--finished", action="store_true", help="report what is drawn already")
    parser.add_argument("--page", action="store_true", help="only draw page and figures of --out")
    parser.add_argument("--docs", action="store_true", help="only write docs")
    parser.add_argument("--costs", nargs="*", choices=NAMES, default=list(NAMES), help="for --docs")
    parser.add_argument("--command", default=None, help="to report, where several drew the rows")
    parser.add_argument("--folder", type=Path, default=Path("runs/arena"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/arena-books27.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
