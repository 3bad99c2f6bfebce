"""`selfspec benchmark`: quality against cost for a checkpoint, or its calibration table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfspec.checks import whole
from selfspec.cli.common import (
    Loading,
    OrderName,
    Run,
    check_folder,
    check_tokens,
    load_judge,
    note,
    one_line,
    table,
    to_json,
)

if TYPE_CHECKING:
    import numpy as np

    from selfspec.arena import ProteinReference, Reference, Setting, Sweep
    from selfspec.model import SSMD, AutoregressiveModel
    from selfspec.nn.scorer import Scorer

Contender = Literal[
    "all", "plain", "ancestral", "any-order", "optimal", "maskgit", "top-k", "threshold", "factor",
    "entropy-bound", "klass", "dilated", "remdm", "star-shaped", "path-planning", "lookahead",
    "punt", "any-order-verified", "stale-cache", "dual-diffusion", "self-verified", "draft-orders",
    "bounded", "remasked", "guided", "policy",
]  # fmt: skip
STEPS = (4, 8, 16, 32, 64)
PLAIN = ("plain", "ancestral", "any-order")


def benchmark(
    checkpoint: str,
    /,
    run: Run,
    loading: Loading,
    against: tuple[Contender, ...] = ("plain",),
    orders: tuple[OrderName, ...] = ("uniform",),
    num: int = 64,
    steps: tuple[int, ...] = STEPS,
    judge: str = "books27-judge",
    data: Path | None = None,
    batch_size: int | None = None,
    engine: Literal["reference"] | None = None,
    calibrate: bool = False,
    predictor: Path | None = None,
    policy: Path | None = None,
    out: Path = Path("runs/benchmark"),
) -> None:
    """Measure self-speculative sampling beside other samplers, at several settings each.

    Args:
        checkpoint: the name of a bundled checkpoint, or a folder.
        run: where and from which seed.
        loading: how the trunk of a head is found.
        against: samplers with the same trunk, see docs/samplers.md: "plain" reveals fixed counts,
            "ancestral" binomial ones, "any-order" one token a pass; "all" is the whole arena, with
            "guided" and "policy" where their folders are given.
        orders: rules for the order of the positions, of the samplers that take one.
        num: samples a setting.
        steps: passes of the samplers that are given a number of them.
        judge: a checkpoint of an autoregressive model of the same tokens.
        data: a corpus written by `selfspec prepare`: its split test is measured too, and the
            samples are compared with it.
        batch_size: samples drawn at once; by default at most 64, and few enough for the full
            batches that milliseconds take.
        engine: "reference" draws everything by the plain loops; by default the engine draws what it
            can, as in `sample`, and milliseconds are those of whichever drew a row.
        predictor: the folder of a trained error predictor, for "guided".
        policy: the folder of a trained policy, for "policy".
        calibrate: instead, measure the table that --nfe and --quality are resolved from, of
            self-speculative and plain sampling in every order, and store it in the checkpoint.
        out: the folder for report.json, report.html (where matplotlib is installed), and finished
            settings, which are not drawn again.
    """
    whole("num", num, least=1)
    check_folder(out)
    from selfspec.arena import BATCHES, Sweep, contenders

    most = max(1, min(64, num // BATCHES))
    batch_size = most if batch_size is None else whole("batch_size", batch_size, least=1)

    model = loading.model(checkpoint, run.where())
    if model.head is None:
        raise ValueError("`checkpoint` must have a causal head to benchmark, got head=None")
    scorer = load_judge(judge, model)
    if calibrate:
        return show_table(model, scorer, checkpoint, num, batch_size, run)
    for name, value in {"against": against, "orders": orders}.items():
        if not value:
            raise ValueError(f"`{name}` must name at least one, got none")
    reference, real = references(model, data, num)
    sweep = Sweep(
        model, scorer.log_probs, reference, out / "settings", num, batch_size, run.seed,
        lengths=model.lengths, device=model.device, keep_tokens=False, engine=engine,
    )  # fmt: skip
    given = {"predictor": predictor, "policy": policy}
    scorers = {name: load_scorer(name, path, model) for name, path in given.items() if path}
    if "all" in against and (absent := [f"--{name}" for name in given if name not in scorers]):
        note(f"without the samplers that are trained: no {' and no '.join(absent)} given")
    names = [*against, "self-speculative"]
    # What is wrong with the others is said before a profile is measured.
    others = [name for name in names if name != "optimal"]
    contenders(model, others, orders, steps, None, **scorers)
    profile = kept_profile(model, run, num, out) if {"optimal", "all"} & set(against) else None
    settings = contenders(model, names, orders, steps, profile, **scorers)
    compare(model, sweep, settings, real, judge, run)


def load_scorer(name: str, folder: Path, model: SSMD) -> Scorer:
    """A small network that was trained for the model.

    Raises:
        ValueError: `name` has none in its folder.
    """
    from selfspec.nn.scorer import Scorer

    try:
        return Scorer.load(folder, model.device)
    except ValueError as error:
        raise ValueError(f"`{name}` cannot be loaded: {error}") from error


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
    measured = ("nfe", "judge", "n", "word_entropy")
    cells = [
        [one_line({name: value for name, value in row.items() if name not in measured}),
         f"{row['nfe']:.1f}", f"{row['judge']:.3f}"]
        for row in rows
    ]  # fmt: skip
    print(table(["sampler", "NFE", "judge"], cells))
    note(f"written to {folder / 'config.json'}")


def references(
    model: SSMD, data: Path | None, num: int
) -> tuple[Reference | ProteinReference, np.ndarray | None]:
    """What samples are compared with, and real rows, as many as samples; without a corpus none."""
    from selfspec.arena import ProteinReference, Reference, corpus_reference
    from selfspec.arena.reference import bundled_words
    from selfspec.data.corpus import open_corpus
    from selfspec.data.tokenizers import ProteinTokenizer

    if data is None:
        if isinstance(model.tokenizer, ProteinTokenizer):
            return ProteinReference(), None
        return Reference(model.tokenizer.decode if model.tokenizer else None, bundled_words()), None
    tokenizer, stores = open_corpus(data)
    if "test" not in stores:
        raise ValueError(f"`data` must have a split 'test', got {sorted(stores)} in {data}")
    check_tokens(tokenizer, stores["test"], model)
    real = stores["test"].excerpt(model.length, num)
    return corpus_reference(tokenizer, stores, model.length), real


def kept_profile(model: SSMD, run: Run, num: int, folder: Path) -> list[float]:
    """The model's information profile on at most 16 samples, measured once a folder."""
    from selfspec import arena

    num = min(num, 16)
    return arena.kept_profile(folder, model, run.seed, num, lambda: own_profile(model, run, num))


def own_profile(model: SSMD, run: Run, num: int) -> list[float]:
    """The information profile of the model over samples of its own, a pass a token.

    All of one length: the model's own, or the median of those that it was trained on.
    """
    import torch

    from selfspec.likelihood import information_profile
    from selfspec.noise import row_seeds
    from selfspec.prompts import blank
    from selfspec.sampling import AnyOrderSampler

    note(f"measuring the information profile on {num} samples, two passes a token of each")
    size = model.length - sum(map(len, model.frame))
    if model.lengths:
        size = int(model.lengths.draw(row_seeds(run.seed, 1024)).median())
    masked, _ = blank(torch.full((num,), size), model.mask_id, frame=model.frame)
    masked = masked.to(model.device)
    own = AnyOrderSampler(model).sample(masked, run.seed, progress=True).tokens
    return information_profile(model, own, run.seed, masked != model.mask_id).tolist()


def compare(
    model: SSMD,
    sweep: Sweep,
    settings: list[Setting],
    real: np.ndarray | None,
    judge: str,
    run: Run,
) -> None:
    """Measure, write report and page, print the tables."""
    from selfspec.arena import accounts, reduction_table, reductions, row_table, write_contest

    results = sweep.run(settings)
    results += [] if real is None else [sweep.measure_data(real)]
    costs = accounts(model.num_trunk_blocks, model.num_head_blocks)
    found = []
    for order in dict.fromkeys(result.row.order for result in results):
        ours = [r for r in results if r.row.order == order]
        plain = [r for r in ours if r.row.sampler in PLAIN]
        methods = [r for r in ours if r.row.sampler == "self-speculative"]
        found += reductions(plain, methods, costs, name=f"plain {order}", seed=run.seed)
    path = sweep.folder.parent / "report.json"
    facts = {"judge": {"name": judge, "unit": "bits per token"}}
    report = write_contest(path, results, run.seed, facts, found)
    write_page(report, path.with_suffix(".html"))
    if not any(row["ms_per_sample"] for row in report["rows"]):
        note(untimed(sweep))
    if run.json:
        return print(to_json(report))
    print(row_table(report["rows"]), reduction_table(report["reduction"]), sep="\n\n")
    note(f"written to {path}")


def untimed(sweep: Sweep) -> str:
    """Why no row has milliseconds."""
    from selfspec.arena import BATCHES

    if sweep.lengths:
        return "no milliseconds: the rows of a batch have lengths of their own"
    return f"no milliseconds: they take {BATCHES} full batches, see --num and --batch-size"


def write_page(report: dict, path: Path) -> None:
    """The page of the report, where figures can be drawn."""
    from importlib.util import find_spec

    from selfspec.arena import save_page

    if find_spec("matplotlib") is None:
        return note("no page: install matplotlib, or `selfspec[eval]`")
    save_page(report, path)
    note(f"written to {path}")
