"""What training the head on the windows of an order adds to verification under that order.

    python benchmarks/order.py --data DATA --runs RUNS --seconds 150 train
    python benchmarks/order.py --data DATA --runs RUNS --judge RUNS/judge/model measure report

`train` fine-tunes the head of a model on its frozen trunk by `OrderedDiffusion` in --order, and
stores it as it would be shipped, in RUNS/<order>/stored. `measure` draws the settings of
`quality.py` up to --most passes, and windows that make fewer passes than those: plain and
self-speculative sampling with the model's own head, self-speculative sampling with every head that
is stored, in each of --orders; the uniform order says what the fine-tuning costs there. A finished
setting is kept in --folder, which may be that of `quality.py`, and not drawn again. `report` writes
what is finished: rows and reductions, where `model` says whose head it is, and the losses of every
head in the windows of every order, in bits per character of validation text.

Each stage stops after --seconds, and the same command continues it. To measure by several
processes, start --part 0/2, --part 1/2 and so on.
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from quality import compare, cost, judge_facts, make_sweep, settings, speculative

from selfspec import checkpoint
from selfspec.arena import (
    Result,
    Setting,
    Sweep,
    accounts,
    corpus_reference,
    reduction_table,
    row_table,
    write_report,
)
from selfspec.calibration import ORDERS
from selfspec.data.corpus import open_corpus
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.transformer import Trunk
from selfspec.recipes import Recipe, books27
from selfspec.schedules import LinearWindow
from selfspec.train import OrderedDiffusion

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FEW = ((6, 0.34), (4, 0.25), (3, 0.25), (4, 0.2), (4, 0.17), (2, 0.17))
"""Rounds and linear windows of three to six passes."""
TINY = {"steps": 2, "rows": 4, "n": 4, "batch_size": 4, "heldout": 1, "most": 6.0}


class Job(NamedTuple):
    """A setting, and whose head it is measured with."""

    model: str
    sweep: Sweep
    setting: Setting

    def result(self) -> Result:
        """From the folder, or measured; the name is no part of what is looked for there."""
        [found] = self.sweep.run([self.setting])
        return replace(found, row=replace(found.row, model=self.model))


def train(args: argparse.Namespace) -> None:
    """The head, and the same stored; one that was stopped is stored too, and can go on."""
    folder, (_, stores) = args.runs / args.order, open_corpus(args.data)
    model = load(args.model, "cpu")
    run = recipe(model, args.order, args)
    trainer = run.trainer(folder, stores["train"], stores["valid"], model)
    trainer.run(args.seconds)
    print(f"step {trainer.step} of {args.steps}, {trainer.elapsed:.0f} s", flush=True)
    about = checkpoint.load_config(folder / "model")["training"]
    checkpoint.save(load(folder / "model", "cpu"), folder / "stored", "int8", training=about)


def measure(args: argparse.Namespace) -> None:
    """Settings until the time is over."""
    deadline = time.monotonic() + args.seconds
    part, parts = map(int, args.part.split("/"))
    wanted = [job for job in jobs(args) if cost(job.setting) <= args.most]
    for job in wanted[part::parts]:
        if time.monotonic() < deadline:
            job.result()


def report(args: argparse.Namespace) -> None:
    """What is finished, real text, the reductions, the losses."""
    found = jobs(args)
    results = [job.result() for job in found if job.sweep.finished(job.setting)]
    model, (tokenizer, stores) = load(args.model, DEVICE), open_corpus(args.data)
    data = found[0].sweep.measure_data(stores["test"].excerpt(model.length, args.n))
    blocks = accounts(model.num_trunk_blocks, model.num_head_blocks)
    facts = {
        "judge": judge_facts(args.judge, tokenizer),
        "data": {"split": "test", "rows": data.row.n},
        "heldout": {"split": "test", "rows": args.heldout},
        "training": {
            name: checkpoint.load_config(checkpoint.resolve(folder)).get("training")
            for name, folder in models(args).items()
        },
        "losses": losses(args),
    }
    compared = compare(results, {"same trunk": blocks["same trunk"]}, args.seed)
    written = write_report(args.out, [*results, data], compared, args.seed, facts, args.command)
    print(row_table(written["rows"]), reduction_table(written["reduction"]), sep="\n\n")


def recipe(model: SSMD, order: str, args: argparse.Namespace) -> Recipe:
    """That of the spaced head, for this model and order."""
    made = books27.spaced(args.steps, batch_size=args.rows, seed=args.seed, valid_every=args.steps)
    assert isinstance(made.objective, OrderedDiffusion)
    assert isinstance(model.trunk, Trunk)
    assert model.head is not None
    objective = replace(made.objective, order=ORDERS[order]())
    shape = {"trunk": model.trunk.config, "head": model.head.config}
    return replace(made, **shape, objective=objective, valid_rows=args.rows)


def models(args: argparse.Namespace) -> dict[str, str | Path]:
    """The model itself, then one for every head that is stored: names and places."""
    folders = {order: args.runs / order / "stored" for order in ORDERS}
    tuned = {f"{args.model}, {o}": folder for o, folder in folders.items() if folder.exists()}
    return {args.model: args.model, **tuned}


def load(place: str | Path, device: str) -> SSMD:
    model = checkpoint.load(place, device)
    assert isinstance(model, SSMD)
    return model


def jobs(args: argparse.Namespace) -> list[Job]:
    """All settings of all models, the cheapest first within an order."""
    judge = checkpoint.load(args.judge, DEVICE)
    assert isinstance(judge, AutoregressiveModel)
    tokenizer, stores = open_corpus(args.data)
    found = []
    for name, place in models(args).items():
        model = load(place, DEVICE)
        for block in model.trunk.blocks if DEVICE == "cuda" else ():  # type: ignore[union-attr]
            block.compile()
        reference = corpus_reference(tokenizer, stores, model.length)
        sweep = make_sweep(args, model, judge, reference, stores["test"], model.length)
        found += [
            Job(name, sweep, setting)
            for order in args.orders
            for setting in points(model, order, own=name == args.model)
        ]
    return sorted(found, key=lambda job: (args.orders.index(job.setting.order), cost(job.setting)))


def points(model: SSMD, order: str, own: bool) -> list[Setting]:
    """Those of `quality.py` in an order, and few passes; plain ones read no head but their own."""
    found = [s for s in settings(model, [order]) if s.order == order]
    if order != "uniform":
        found += [speculative(model, order, r, LinearWindow(dtau)) for r, dtau in FEW]
    return [s for s in found if own or s.sampler != "plain"]


def losses(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Bits per character of validation text in the windows of each order, by every head."""
    _, stores = open_corpus(args.data)
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models(args)}
    for name, place in models(args).items():
        model = load(place, "cpu")
        for order in args.orders:
            run = recipe(model, order, args)
            trainer = run.trainer(None, stores["train"], stores["valid"], model)
            nats = trainer.validate()
            trainer.feed.close()
            found[name][order] = {loss: value / math.log(2) for loss, value in nats.items()}
    return found


STAGES = {stage.__name__: stage for stage in (train, measure, report)}


def main() -> None:
    args = parse()
    for stage in args.stages:
        STAGES[stage](args)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="books27", help="a folder, or a bundled name")
    parser.add_argument("--data", type=Path, required=True, help="of `selfspec prepare`")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--judge", type=Path, default=Path("books27-judge"))
    parser.add_argument("--order", choices=ORDERS, default="van-der-corput", help="to train on")
    parser.add_argument("--steps", type=int, default=2500, help="of the fine-tuning")
    parser.add_argument("--rows", type=int, default=1024, help="of a step, and of validation")
    parser.add_argument("--orders", nargs="*", choices=ORDERS, help="to measure under",
                        default=["van-der-corput", "respaced", "cells", "uniform"])  # fmt: skip
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--heldout", type=int, default=512, help="held-out sequences")
    parser.add_argument("--batch-size", type=int, default=2048, help="of sampling")
    parser.add_argument("--most", type=float, default=40, help="leave out longer samplers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a stage")
    parser.add_argument("--part", default="0/1", metavar="k/n")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU")
    parser.add_argument("--command", default=None, help="to report, where several drew the rows")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/books27-order.json"))
    parser.set_defaults(length=None)
    parser.add_argument("stages", nargs="+", choices=("train", "measure", "report"))
    args = parser.parse_args()
    if args.tiny:
        vars(args).update(TINY)
    return args


if __name__ == "__main__":
    main()
