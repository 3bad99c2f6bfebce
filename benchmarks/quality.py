"""The headline curve: quality against NFE of plain and self-speculative sampling.

    python benchmarks/quality.py --judge RUNS/judge/model --data DATA --n 8192 \
        --out benchmarks/results/books27-quality.json

DATA is a corpus of `selfspec prepare`, of text or of proteins: what is measured beside the judge
follows from it. Every setting below is drawn from the same weights with the same row seeds and
scored by the same judge; beside the samples stands the exact likelihood of held-out rows under the
very law that drew them, where σ is fixed in advance. A finished setting is kept in --folder and not
drawn again; to use several devices, start one process a device with --part 0/2, --part 1/2 and so
on, and then once without --part, which writes the report. With --seconds the cheap settings come
first, and none begins after that time.

--optimal N adds the optimal schedule of both samplers (`selfspec.information`), by the information
profile of N samples of the model's own, drawn one token a pass. It is kept in --folder.

Proteins are held out by cluster, so that `heldout_bits` says little of what a model has learned of
the families it was trained on. With --relatives R every row has `relatives_bits` too: the same of R
proteins of the split that `selfspec prepare proteins --relatives` holds out.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import SEPARATE
from tqdm import tqdm

from selfspec import checkpoint
from selfspec.arena import (
    ProteinReference,
    Reference,
    Result,
    Setting,
    Sweep,
    accounts,
    corpus_reference,
    kept_profile,
    reduction_table,
    reductions,
    row_table,
    write_report,
)
from selfspec.calibration import ORDERS, SCHEDULES
from selfspec.data.corpus import Store, open_corpus
from selfspec.data.loader import spread
from selfspec.data.ragged import RaggedStore
from selfspec.data.tokenizers import CharTokenizer, ProteinTokenizer, Tokenizer
from selfspec.information import CutWindow, optimal_cuts, profile_losses
from selfspec.likelihood import Scores, chain, draw_order, information_profile, scores
from selfspec.measuring import knobs
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.noise import row_seeds
from selfspec.prompts import blank
from selfspec.sampling import (
    AnyOrderSampler,
    FixedCountSampler,
    PlainSampler,
    SpeculativeSampler,
)
from selfspec.schedules import CosineWindow, LinearWindow

COSINE_STEPS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 384, 512)
LINEAR_STEPS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
SPACED_STEPS = (4, 6, 8, 12, 16, 24, 32, 64)
PUBLISHED = ((1, 0.002), (2, 0.005), (3, 0.01), (4, 0.02), (8, 0.04), (10, 0.083))
FURTHER = ((10, 0.16), (4, 0.083), (4, 0.04), (2, 0.02), (1, 0.01), (1, 0.04), (2, 0.16))
LINEAR = ((3, 0.125), (2, 0.125), (2, 0.09), (1, 0.09), (1, 0.06), (1, 0.045), (1, 0.03), (1, 0.02))
SPACED = ((10, 0.16), (4, 0.16), (10, 0.083), (4, 0.083), (8, 0.04), (4, 0.02))
OPTIMAL_STEPS, OPTIMAL_ROUNDS = (6, 8, 12, 16, 24, 32), (2, 4)
SCORES = ("judge", "second_judge", "heldout_bits", "relatives_bits")
REPORT_EVERY = 60
"""Seconds between two reports while the curves fill."""
Job = tuple[Sweep, Setting]


def plain(model: SSMD, order: str, schedule: str, steps: int) -> Setting:
    sampler = FixedCountSampler(model, ORDERS[order](), SCHEDULES[schedule](), steps)
    name = SEPARATE if model.head is None else "plain"
    return Setting(name, order, {"schedule": schedule, "steps": steps}, sampler)


def speculative(
    model: SSMD, order: str, rounds: int, window: CosineWindow | LinearWindow
) -> Setting:
    sampler = SpeculativeSampler(model, ORDERS[order](), window, rounds)
    return Setting("self-speculative", order, knobs(rounds, window), sampler)


def settings(model: SSMD, orders: list[str], longest: int | None = None) -> list[Setting]:
    """Every point of the curve; a model without head is the standard sampler's own.

    Plain sampling has at most as many steps as the longest sequence has tokens.
    """
    found = []
    for order in orders if model.head is not None else ["uniform"]:
        uniform = order == "uniform"
        cosine = COSINE_STEPS if uniform else SPACED_STEPS
        linear = LINEAR_STEPS if uniform else SPACED_STEPS
        for schedule, counts in {"cosine": cosine, "linear": linear}.items():
            for steps in counts:
                if steps <= (longest or model.length):
                    found.append(plain(model, order, schedule, steps))
        if model.head is not None:
            for rounds, dtau in PUBLISHED + FURTHER if uniform else SPACED:
                found.append(speculative(model, order, rounds, CosineWindow(dtau)))
            for rounds, dtau in LINEAR:
                found.append(speculative(model, order, rounds, LinearWindow(dtau)))
    return found


def optimal(model: SSMD, profile: np.ndarray) -> list[Setting]:
    """The optimal schedule of an information profile, unverified and verified."""
    found, losses = [], profile_losses(profile)
    for steps in OPTIMAL_STEPS:
        window = CutWindow(optimal_cuts(losses, steps))
        values: dict[str, Any] = {"schedule": "optimal", "steps": steps}
        found.append(Setting("plain", "uniform", values, PlainSampler(model, None, window)))
        for rounds in OPTIMAL_ROUNDS if model.head is not None else ():
            verified, own = SpeculativeSampler(model, None, window, rounds), {"rounds": rounds}
            found.append(Setting("self-speculative", "uniform", own | values, verified))
    return found


def own_profile(model: SSMD, num: int, seed: int) -> list[float]:
    """The information profile of the model's own samples of full length."""
    seeds = row_seeds(seed, num, model.device)
    text = model.length - sum(map(len, model.frame))
    tokens, _ = blank(torch.full_like(seeds, text), model.mask_id, frame=model.frame)
    with torch.autocast(model.device.type, torch.bfloat16):
        drawn = AnyOrderSampler(model).sample(tokens, seeds).tokens
        return information_profile(model, drawn, seed, tokens != model.mask_id).tolist()


def cost(setting: Setting) -> float:
    """About how many trunk passes."""
    values = setting.settings
    return values["steps"] if "steps" in values else 1.2 / values["dtau"]


class Heldout:
    """Bits per token of held-out sequences, masked at pads, under a setting's exact law.

    The model's frame is put around each, observed, and does not count.
    """

    def __init__(self, model: SSMD, rows: np.ndarray, seed: int, batch_size: int | None = None):
        self.model, self.seed = model, seed
        self.batch_size = batch_size or (1024 if model.device.type == "cuda" else 64)
        sizes = torch.from_numpy((~np.ma.getmaskarray(rows)).sum(1))
        tokens, pad = blank(sizes, model.mask_id, frame=model.frame)
        text = (tokens == model.mask_id) & ~pad
        tokens[text] = torch.from_numpy(np.ma.compressed(rows).astype(np.int64))
        self.tokens, self.pad, self.text = (x.to(model.device) for x in (tokens, pad, text))

    def __call__(self, setting: Setting) -> np.ndarray | None:
        sampler = setting.run
        assert isinstance(sampler, SpeculativeSampler | PlainSampler)
        if not sampler.order.fixed:
            return None
        rounds = sampler.rounds if isinstance(sampler, SpeculativeSampler) else 0
        nats = chain(self.table(setting.order), sampler.window, rounds)
        return (-nats / self.text.sum(1) / math.log(2)).cpu().numpy()

    @cache  # noqa: B019
    def table(self, order: str) -> Scores:
        device = self.tokens.device.type
        observed = ~self.text & ~self.pad
        sigma, first = draw_order(ORDERS[order](), self.tokens, self.seed, self.pad, observed)
        with torch.autocast(device, torch.bfloat16):
            return scores(self.model, self.tokens, sigma, first, self.pad, self.batch_size)


def main() -> None:
    args = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = checkpoint.load(args.judge, device)
    assert isinstance(judge, AutoregressiveModel)
    tokenizer, stores = open_corpus(args.data)
    if isinstance(stores["test"], RaggedStore):
        # It plans anew for every shape, and with pads there are many.
        torch.backends.cuda.enable_cudnn_sdp(False)
    models = [load(name, device) for name in (args.model, args.plain) if name]
    length = args.length or models[0].length
    reference = corpus_reference(tokenizer, stores, length)
    sweeps = [make_sweep(args, model, judge, reference, stores["test"], length) for model in models]
    jobs = [
        (sweep, setting)
        for model, sweep in zip(models, sweeps, strict=True)
        for setting in points(args, model)
        if cost(setting) <= args.most
    ]
    jobs.sort(key=lambda job: cost(job[1]), reverse=args.seconds is None)
    if args.finished:
        jobs = [(sweep, setting) for sweep, setting in jobs if sweep.finished(setting)]
    part, parts = map(int, args.part.split("/")) if args.part else (0, 1)
    jobs = jobs[part::parts]
    deadline = time.monotonic() + (math.inf if args.seconds is None else args.seconds)
    if args.part:
        for sweep, setting in jobs:
            sweep.run([setting], stop_after=deadline - time.monotonic())
        return
    write = Report(args, tokenizer, stores, length, sweeps[0])
    fill(jobs, write, deadline, write.completed)


def fill(
    jobs: Sequence[Job],
    write: Callable[[list[Result]], dict[str, Any]],
    deadline: float = math.inf,
    completed: Callable[[Sweep, Setting, Result], Result] = lambda sweep, setting, result: result,
) -> list[Result]:
    """Measures the points of curves; the report is written as they fill, so that none is lost.

    Args:
        jobs: in this order.
        write: writes and returns the report of what is measured so far; called every
            `REPORT_EVERY` seconds, and last of all.
        deadline: by `time.monotonic`; after it only what was measured before is read.
        completed: adds to a result what the sweep does not measure.

    Returns:
        The results, without those that were not begun.
    """
    results, reported = [], time.monotonic()
    for sweep, setting in (bar := tqdm(jobs, unit="setting")):
        bar.set_description(setting.label)
        for found in sweep.run([setting], False, stop_after=deadline - time.monotonic()):
            results.append(completed(sweep, setting, found))
            tqdm.write(row_table([vars(found.row)]).splitlines()[-1])
        if time.monotonic() > reported + REPORT_EVERY:
            write(results)
            reported = time.monotonic()
    about = write(results)
    print(row_table(about["rows"]), reduction_table(about["reduction"]), sep="\n\n")
    return results


class Report:
    """Writes what is drawn so far, beside real data measured by `sweep`."""

    def __init__(
        self,
        args: argparse.Namespace,
        tokenizer: Tokenizer,
        stores: Mapping[str, Store],
        length: int,
        sweep: Sweep,
    ):
        assert isinstance(sweep.model, SSMD)
        self.args, self.model = args, sweep.model
        self.data = sweep.measure_data(stores["test"].excerpt(length, args.n))
        self.facts = {
            "judge": judge_facts(args.judge, tokenizer),
            "data": {"split": "test", "rows": self.data.row.n},
            "heldout": {"split": "test", "rows": args.heldout},
        }
        if args.relatives:
            rows = stores["relatives"].excerpt(length, max(args.n, args.relatives))
            self.relatives = spread(rows, args.relatives)
            self.facts["relatives"] = relatives_facts(sweep.measure_data(rows), args.relatives)

    def completed(self, sweep: Sweep, setting: Setting, result: Result) -> Result:
        """The result, with the bits of relatives under the setting's exact law if asked for."""
        assert isinstance(sweep.model, SSMD)
        bits = self._law(sweep.model)(setting) if self.args.relatives else None
        more = {} if bits is None else {"relatives_bits": bits}
        return replace(result, arrays=result.arrays | more)

    def __call__(self, results: list[Result]) -> dict[str, Any]:
        """Writes the report."""
        everything = [*results, self.data]
        marks = [{"relatives_bits": mean(r.arrays.get("relatives_bits"))} for r in everything]
        blocks = accounts(self.model.num_trunk_blocks, self.model.num_head_blocks)
        found = compare(results, {"same trunk": blocks["same trunk"]}, self.args.seed)
        return write_report(
            self.args.out, everything, found, self.args.seed, self.facts, self.args.command,
            marks if self.args.relatives else None,
        )  # fmt: skip

    @cache  # noqa: B019
    def _law(self, model: SSMD) -> Heldout:
        return Heldout(model, self.relatives, self.args.seed)


def points(args: argparse.Namespace, model: SSMD) -> list[Setting]:
    """Every setting that is asked for."""
    found = settings(model, args.orders)
    if args.optimal:
        num, seed = args.optimal, args.seed
        profile = kept_profile(args.folder, model, seed, num, lambda: own_profile(model, num, seed))
        found += optimal(model, np.asarray(profile))
    return found


def relatives_facts(data: Result, num: int) -> dict[str, Any]:
    """What judge and reference say of relatives of training proteins."""
    names = ("judge", "judge_low", "judge_high", "novelty", "composition", "distinct_kmers")
    measured = {name: getattr(data.row, name) for name in names}
    return {"split": "relatives", "rows": data.row.n, "likelihood": num, **measured}


def mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())


def load(name: str, device: str) -> SSMD:
    """A model with compiled blocks."""
    model = checkpoint.load(name, device)
    assert isinstance(model, SSMD)
    for block in model.trunk.blocks:  # type: ignore[union-attr]
        block.compile()
    return model


def make_sweep(
    args: argparse.Namespace,
    model: SSMD,
    judge: AutoregressiveModel,
    reference: Reference | ProteinReference,
    test: Store,
    length: int,
) -> Sweep:
    """How a model is measured; sequences of their own lengths are drawn as those of training."""
    ragged = isinstance(test, RaggedStore) and not args.length
    law = Heldout(model, test.excerpt(length, args.heldout), args.seed)
    return Sweep(
        model, judge.log_probs, reference, args.folder, args.n, args.batch_size, args.seed,
        length, model.lengths if ragged else None, model.device, autocast=True, heldout=law,
        identity={"heldout": args.heldout}, keep_tokens=False,
        engine="reference",  # an engine's copy of the model would not have its blocks compiled
    )  # fmt: skip


def compare(results: list[Result], costs: dict[str, float], seed: int) -> list[dict]:
    """Reductions under every order, and of everything against the standard sampler."""
    standard = [r for r in results if (r.row.sampler, r.row.order) == ("plain", "uniform")]
    separate = [r for r in results if r.row.sampler == SEPARATE]
    found = []
    for order in dict.fromkeys(r.row.order for r in results):
        ours = [r for r in results if r.row.order == order and r.row.sampler != SEPARATE]
        plain = [r for r in ours if r.row.sampler == "plain"]
        methods = [r for r in ours if r.row.sampler == "self-speculative"]
        for score in SCORES:
            found += reductions(plain, methods, costs, f"plain {order}", score, seed)
            own = {"separate model": 1.0}
            found += reductions(separate, methods, own, SEPARATE, score, seed)
            if order != "uniform":
                found += reductions(standard, ours, costs, "plain uniform", score, seed)
    return found


def judge_facts(folder: Path, tokenizer: Tokenizer) -> dict:
    config = checkpoint.load_config(checkpoint.resolve(folder))
    about = config.get("training") or config.get("source") or {}
    nats = about["validation"]["judge"]
    units = {ProteinTokenizer: "residue", CharTokenizer: "character"}
    unit = units.get(type(tokenizer), "token")
    return {"trunk": config["trunk"], "sha256": config["sha256"], "unit": f"bits per {unit}",
            "valid_bits": nats / math.log(2)}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="books27", help="a folder, or a bundled name")
    parser.add_argument("--plain", default=None, help="a separately trained model without head")
    parser.add_argument("--length", type=int, default=None, help="of all samples and test rows")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="of `selfspec prepare`")
    parser.add_argument("--orders", nargs="*", default=list(ORDERS))
    parser.add_argument("--n", type=int, default=8192)
    parser.add_argument("--heldout", type=int, default=512, help="held-out sequences")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--relatives", type=int, default=0, metavar="R", help="see above")
    parser.add_argument("--optimal", type=int, default=0, metavar="N", help="see above")
    parser.add_argument("--seconds", type=float, help="after which no setting begins")
    parser.add_argument("--most", type=float, default=math.inf, help="leave out longer samplers")
    parser.add_argument("--part", default=None, metavar="k/n")
    parser.add_argument("--finished", action="store_true", help="report what is drawn already")
    parser.add_argument("--command", default=None, help="to report, where several drew the rows")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/books27-quality.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
