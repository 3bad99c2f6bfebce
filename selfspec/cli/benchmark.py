"""`selfspec benchmark`: quality against cost for a checkpoint, or its calibration table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfspec.cli.common import OrderName, Run, load_judge, note, table, to_json

if TYPE_CHECKING:
    from selfspec.arena import Setting, Sweep
    from selfspec.model import SSMD, AutoregressiveModel

Plain = Literal["plain", "ancestral", "any-order"]
STEPS = (4, 8, 16, 32, 64)


def benchmark(
    checkpoint: str,
    /,
    run: Run,
    against: tuple[Plain, ...] = ("plain",),
    orders: tuple[OrderName, ...] = ("uniform",),
    num: int = 64,
    steps: tuple[int, ...] = STEPS,
    judge: str = "books27-judge",
    batch_size: int = 64,
    calibrate: bool = False,
    out: Path = Path("runs/benchmark"),
) -> None:
    """Measure self-speculative sampling beside plain sampling, at several settings each.

    Args:
        checkpoint: the name of a bundled checkpoint, or a folder.
        run: where and from which seed.
        against: plain samplers with the same trunk: "plain" reveals fixed counts, "ancestral"
            binomial ones, "any-order" one token a pass.
        orders: rules for the order of the positions, on both sides.
        num: samples a setting.
        steps: passes of the plain samplers.
        judge: a checkpoint of an autoregressive model of the same tokens.
        batch_size: samples drawn at once.
        calibrate: instead, measure the table that --nfe and --quality are resolved from, with
            every order, and store it in the checkpoint.
        out: the folder for report.json and for finished settings, which are not drawn again.
    """
    from selfspec import api

    for name, value in {"num": num, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
    model = api.load(checkpoint, run.where())
    if model.head is None:
        raise ValueError("`checkpoint` must have a causal head to benchmark, got head=None")
    scorer = load_judge(judge, model)
    if calibrate:
        return show_table(model, scorer, checkpoint, num, batch_size, run)
    if not against or not orders:
        raise ValueError("`against` and `orders` must name at least one each")
    sweep = make_sweep(model, scorer, out, num, batch_size, run)
    compare(model, sweep, make_settings(model, against, orders, steps), judge, run)


def show_table(
    model: SSMD, judge: AutoregressiveModel, checkpoint: str, n: int, batch_size: int, run: Run
) -> None:
    """Calibrate, store the table in the checkpoint and print it."""
    from selfspec import api
    from selfspec.checkpoint import resolve

    folder = resolve(checkpoint)
    rows = api.calibrate(model, judge, folder, n=n, batch_size=batch_size, seed=run.seed)
    if run.json:
        return print(to_json({"checkpoint": str(folder), "calibration": rows}))
    cells = [
        [row["order"], f"{row['window']['dtau']:g}", str(row["rounds"]), f"{row['nfe']:.1f}",
         f"{row['judge']:.3f}"]
        for row in rows
    ]  # fmt: skip
    print(table(["order", "Δτ", "rounds", "NFE", "judge"], cells))
    note(f"written to {folder / 'config.json'}")


def make_sweep(
    model: SSMD, judge: AutoregressiveModel, out: Path, num: int, batch_size: int, run: Run
) -> Sweep:
    """How every setting is measured; text measures where the vocabulary is that of books27."""
    from selfspec.arena import Reference, Sweep
    from selfspec.checkpoint import BUNDLED
    from selfspec.metrics import load_vocabulary

    words = BUNDLED / "books27" / "vocabulary.txt.xz"
    vocabulary = load_vocabulary(words) if words.exists() else None
    decode = model.tokenizer.decode if model.tokenizer else None
    return Sweep(
        model,
        judge.log_probs,
        Reference(decode, vocabulary),
        out / "settings",
        num,
        batch_size,
        run.seed,
        lengths=model.lengths,
        device=model.device,
        keep_tokens=False,
    )


def make_settings(
    model: SSMD, against: tuple[Plain, ...], orders: tuple[OrderName, ...], steps: tuple[int, ...]
) -> list[Setting]:
    """Plain settings first, then self-speculative ones, order by order."""
    from selfspec.arena import Setting
    from selfspec.calibration import ORDERS, SWEEP
    from selfspec.sampling import (
        AncestralSampler,
        AnyOrderSampler,
        FixedCountSampler,
        SpeculativeSampler,
    )
    from selfspec.schedules import CosineWindow

    settings = []
    for order in orders:
        rule = ORDERS[order]()
        for name in against:
            if name == "any-order":
                settings.append(Setting(name, order, {}, AnyOrderSampler(model, rule)))
                continue
            kind = FixedCountSampler if name == "plain" else AncestralSampler
            settings += [
                Setting(name, order, {"steps": k}, kind(model, rule, steps=k)) for k in steps
            ]
        for rounds, dtau in SWEEP:
            sampler = SpeculativeSampler(model, rule, CosineWindow(dtau), rounds)
            knobs = {"rounds": rounds, "dtau": dtau}
            settings.append(Setting("self-speculative", order, knobs, sampler))
    return settings


def compare(model: SSMD, sweep: Sweep, settings: list[Setting], judge: str, run: Run) -> None:
    """Measure, write the report, print its tables."""
    from selfspec.arena import accounts, reduction_table, reductions, row_table, write_report

    results = sweep.run(settings)
    costs = accounts(model.num_trunk_blocks, model.num_head_blocks)
    found = []
    for order in dict.fromkeys(result.row.order for result in results):
        ours = [r for r in results if r.row.order == order]
        plain = [r for r in ours if r.row.sampler != "self-speculative"]
        methods = [r for r in ours if r.row.sampler == "self-speculative"]
        found += reductions(plain, methods, costs, name=f"plain {order}", seed=run.seed)
    path = sweep.folder.parent / "report.json"
    facts = {"judge": {"name": judge, "unit": "bits per token"}}
    report = write_report(path, results, found, run.seed, facts)
    if run.json:
        return print(to_json(report))
    print(row_table(report["rows"]), reduction_table(report["reduction"]), sep="\n\n")
    note(f"written to {path}")
