"""Quality against NFE of a model of GPT-2's scale: books in subwords, 1,024 tokens at a time.

    selfspec prepare jsonl --source books --vocab-size 8192 --out DATA
    python benchmarks/books_bpe.py --data DATA --runs RUNS --seconds 540 joint
    python benchmarks/books_bpe.py --data DATA --runs RUNS --seconds 110 judge
    python benchmarks/books_bpe.py --data DATA --runs RUNS --seconds 400 quality

    joint       trunk and head together, from RUNS/head, from RUNS/trunk, or from scratch
    trunk       the trunk alone, if it is to come first
    head        a head on that trunk, frozen
    judge       an autoregressive judge of the same tokens, with no part in the training
    quality     both curves, the exact likelihood of held-out rows, and the report

The recipes are those of `selfspec/recipes/books_bpe.py`, with as many steps as fit in --seconds at
the speed of the first ones, so that the learning rate comes down in time. A stage that was stopped
goes on with the steps it has; one that is finished is not run again.

Samples are judged twice. The **first judge** reads characters (the bundled one of `books27`, which
has read the same books): text is brought to the 27 symbols of text8 and scored in overlapping
windows of 256, each character but the first 128 with 128 or more before it, in bits per character.
That hides case, punctuation, line ends and what lies further back. The **second judge** is that of
the stage `judge`: it sees all 1,024 tokens as they are, in bits per token, as published figures do.
Words, 4-grams and spelling are of the 27 symbols, entropy of the tokens.

The table has a row for each NFE of the published one: a curve between its two nearest settings,
straight in log NFE, sample by sample (all settings have the same seeds). Rows of self-speculative
sampling follow one number of rounds and kind of window each, chosen before anything was measured.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from books27 import affordable
from quality import Heldout, compare, cost, judge_facts, load, plain, speculative
from torch import Tensor, nn

from selfspec import checkpoint
from selfspec.api import load_judge
from selfspec.arena import (
    Reference,
    Result,
    Setting,
    Sweep,
    accounts,
    reductions,
    row_table,
    write_report,
)
from selfspec.arena.intervals import mean_interval
from selfspec.checkpoint import BUNDLED
from selfspec.data.bpe import BPETokenizer
from selfspec.data.corpus import Store, open_corpus
from selfspec.data.tokenizers import CharTokenizer, normalise
from selfspec.files import write_json
from selfspec.metrics import load_vocabulary, ngram_counts, ngram_kl
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.recipes import Recipe, books_bpe
from selfspec.schedules import CosineWindow, LinearWindow

START = {"trunk": (), "head": ("trunk",), "joint": ("head", "trunk"), "judge": ()}
"""What a stage starts from: the first of these that there is."""
TABLE = (32, 64, 128, 256)
"""NFE of the published table."""
STEPS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
CURVES: dict[str, tuple[int, type[CosineWindow | LinearWindow], tuple[float, ...]]] = {
    "one round": (1, LinearWindow, (96, 64, 40, 24, 16, 10, 6, 4)),
    "two rounds": (2, LinearWindow, (96, 48, 24, 12, 6, 4)),
    "four rounds": (4, CosineWindow, (0.06, 0.04, 0.02, 0.01, 0.005, 0.0035)),
}
"""Rounds, window, and tokens a pass (linear) or Δτ (cosine, as published)."""
SCORES = ("judge", "second_judge", "heldout_bits")
REDUCTION = ("baseline_cost", "ratio", "low", "high", "bound", "unresolved")
CHARACTERS = CharTokenizer()
CONTEXT = 128
"""Characters a judge has at least before what it scores, but at the beginning of a text."""
SEED = 0


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rows: int = 128
    """A step: as many tokens as suit so short a run (arXiv 2401.02954, batch against compute)."""
    accumulate: int = 2
    shape: tuple[int, int, int] = (11, 768, 12)
    """Blocks of the trunk, width, attention heads."""
    judge: tuple[int, int, int] = (8, 512, 8)
    length: int = 1024
    n: int = 64
    """Samples a setting."""
    heldout: int = 16
    """Rows whose exact likelihood is computed, `length` passes each."""
    scored: int = 64
    """Passes of them at once: two float64 tables of logits each."""
    most: float = math.inf
    """Leave out settings of more trunk passes."""

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe at this size."""
        blocks, width, heads = self.judge if recipe.trunk.causal else self.shape
        trunk = replace(recipe.trunk, blocks=blocks, width=width, heads=heads, length=self.length)
        head = recipe.head and replace(recipe.head, heads=heads)
        settings = {"batch_size": self.rows, "accumulate": self.accumulate, "ema_decay": 0.99}
        recipe = replace(recipe, trunk=trunk, head=head, valid_rows=256)
        return recipe.override(**settings)


TINY = Size(rows=8, shape=(2, 32, 2), judge=(1, 32, 2), length=64, n=4, heldout=2)


def train(args: argparse.Namespace, size: Size, stage: str) -> None:
    """Runs a recipe for --seconds."""
    began, run = time.monotonic(), args.runs / stage
    tokenizer, stores = open_corpus(args.data)
    recipe = size.apply(getattr(books_bpe, stage)(10**6)).read_by(tokenizer)
    starts = (args.runs / other / "model" for other in START[stage])
    data = stores["train"], stores.get("valid"), next(filter(Path.exists, starts), None)
    if not (plan := run / "steps.json").exists():
        # A tenth is left for validations and checkpoints.
        steps = args.steps or affordable(recipe.trainer(None, *data), 0.9 * args.seconds, began)
        run.mkdir(parents=True, exist_ok=True)
        write_json(plan, {"steps": steps})
    steps = json.loads(plan.read_text())["steps"]
    settings = getattr(books_bpe, stage)(steps).train
    every = max(1, steps // 4)
    recipe = recipe.override(
        steps=steps, schedule=settings.schedule, save_every=every, valid_every=every
    )
    trainer = recipe.trainer(run, *data)
    left = None if args.seconds is None else max(0, args.seconds - time.monotonic() + began)
    finished = trainer.run(left)
    print(stage, f"{trainer.step} of {steps} steps", json.dumps(trainer.validation), flush=True)
    if not finished:
        raise SystemExit(f"stage {stage}: stopped; run it again to go on")


class Text:
    """Rows of tokens as text of 27 symbols, without the ends of documents."""

    def __init__(self, tokenizer: BPETokenizer):
        self.tokenizer, self.end = tokenizer, tokenizer.decode([tokenizer.end])

    def __call__(self, row: np.ndarray) -> str:
        return normalise(self.tokenizer.decode(row).replace(self.end, "\n"))


class CharacterJudge(nn.Module):
    """An autoregressive model of characters on rows of subwords, for `metrics.judge_nll`.

    Every entry of a row is the mean log-probability of a character in its text, so that the mean
    over tokens is nats per character.
    """

    def __init__(self, judge: AutoregressiveModel, text: Callable[[np.ndarray], str]):
        super().__init__()
        self.judge, self.text = judge, text

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) subwords → (B, L) nats; nan where a row has no letter."""
        texts = [CHARACTERS.encode(self.text(row)) for row in tokens.cpu().numpy()]
        logs = [self.score(torch.from_numpy(ids).to(tokens.device)).mean() for ids in texts]
        return torch.stack(logs).unsqueeze(1).expand(tokens.shape)

    def score(self, ids: Tensor) -> Tensor:
        """(N,) characters → (N,) float64 log-probabilities, each in the window it ends latest in.

        Windows begin every `length - CONTEXT` characters, and all but the first score only what
        the one before did not reach.
        """
        length = self.judge.trunk.config.length
        stride = length - CONTEXT
        num = max(0, -(-(len(ids) - length) // stride)) + 1
        padded = torch.zeros(length + (num - 1) * stride, dtype=torch.long, device=ids.device)
        padded[: len(ids)] = ids
        logs = self.judge.log_probs(padded.unfold(0, length, stride)).double()
        return torch.cat([logs[0], logs[1:, CONTEXT:].flatten()])[: len(ids)]


@dataclass(frozen=True)
class Words(Reference):
    """`Reference` on rows of subwords; the 4-grams are of the characters of `decode`."""

    def measure(self, tokens: np.ndarray) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
        """What `Reference` has, and the KL of 4-grams."""
        out, arrays = Reference(self.decode, self.vocabulary).measure(tokens)
        assert self.decode is not None
        assert self.grams is not None
        counts = sum(grams(self.decode(row)) for row in tokens)
        return out | {"kl_4gram": ngram_kl(self.grams, np.asarray(counts))}, arrays


def grams(text: str) -> np.ndarray:
    """Counts of the 4-grams of a text; none where it is shorter."""
    ids = CHARACTERS.encode(text)
    return ngram_counts(ids) if len(ids) >= 4 else np.zeros(CHARACTERS.vocab_size**4, np.int64)


def points(model: SSMD) -> list[Setting]:
    """Plain sampling by both schedules down to one token a pass, and the curves above."""
    length = model.length
    found = [plain(model, "uniform", s, k) for s in ("cosine", "linear") for k in STEPS
             if k < length]  # fmt: skip
    found.append(plain(model, "uniform", "linear", length))
    for rounds, kind, values in CURVES.values():
        for value in values:
            share = value / books_bpe.TRUNK.length if kind is LinearWindow else value
            found.append(speculative(model, "uniform", rounds, kind(share)))
    return found


def quality(args: argparse.Namespace, size: Size, _: str) -> None:
    """Measures the model, cheap settings first, until time is up; writes the report."""
    began = time.monotonic()
    tokenizer, stores = open_corpus(args.data)
    model = load(str(args.runs / args.model / "model"), device())
    sweep = make_sweep(args, size, model, tokenizer, stores["test"])
    jobs = sorted((s for s in points(model) if cost(s) <= size.most), key=cost)
    part, parts = map(int, args.part.split("/")) if args.part else (0, 1)
    left = (args.seconds or math.inf) - (time.monotonic() - began)
    results = sweep.run(jobs[part::parts], stop_after=left)
    print(f"{len(results)} of {len(jobs[part::parts])} settings", flush=True)
    if args.part:
        return
    blocks = accounts(model.num_trunk_blocks, model.num_head_blocks)
    costs = {"same trunk": blocks["same trunk"]}
    found = compare(results, costs, SEED)
    data = sweep.measure_data(stores["test"].excerpt(size.length, size.n))
    about = facts(args, size, model, tokenizer, stores)
    report = write_report(args.out, [*results, data], found, SEED, about, args.command)
    lines = with_reductions(table(results), results, costs)
    write_json(args.out, report | {"table": lines})
    print(row_table(report["rows"]), *map(printed, lines), sep="\n")


def make_sweep(
    args: argparse.Namespace, size: Size, model: SSMD, tokenizer: Any, test: Store
) -> Sweep:
    """How the model is measured."""
    text = Text(tokenizer)
    vocabulary = load_vocabulary(BUNDLED / "books27" / "vocabulary.txt.xz")
    own = args.runs / "judge" / "model"
    rows = test.excerpt(size.length, size.heldout)
    return Sweep(
        model, CharacterJudge(load_judge(args.judge, device()), text),
        Words(text, vocabulary, grams(text(test.tokens))), args.runs / "quality", size.n,
        size.n, SEED, device=device(), heldout=Heldout(model, rows, SEED, size.scored),
        identity={"heldout": size.heldout}, engine="reference",
        second_judge=load_judge(own, device()).log_probs if own.exists() else None,
    )  # fmt: skip


def table(results: list[Result]) -> list[Result]:
    """Every curve at the NFE of `TABLE` that lie within it."""
    curves = [
        [r for r in results if r.row.sampler == "plain" and r.row.settings["schedule"] == schedule]
        for schedule in ("cosine", "linear")
    ]
    curves += [
        [r for r in results if r.row.settings.get("rounds") == rounds] for rounds, *_ in
        CURVES.values()
    ]  # fmt: skip
    found = [between(curve, nfe) for nfe in TABLE for curve in curves]
    return [result for result in found if result is not None]


def with_reductions(
    found: list[Result], results: list[Result], costs: dict[str, float]
) -> list[dict[str, Any]]:
    """The rows of the table, those of self-speculative sampling with their `reduction` by score."""
    rows = [asdict(result.row) for result in found]
    base = [result for result in results if result.row.sampler == "plain"]
    ours = [i for i, result in enumerate(found) if result.row.sampler != "plain"]
    for score in SCORES:
        methods = [found[i] for i in ours]
        records = reductions(base, methods, costs, "plain uniform", score, SEED)
        for i, record in zip(ours, records, strict=False):  # none where the score is missing
            kept = {name: record[name] for name in REDUCTION}
            rows[i].setdefault("reduction", {})[score] = kept
    return rows


def printed(row: Mapping[str, Any]) -> str:
    """A row of the table as a line of text."""
    knobs = " ".join(f"{name}={value}" for name, value in row["settings"].items())
    scores = ", ".join(f"{name} {row[name]:.3f}" for name in (*SCORES, "entropy") if row[name])
    less = "; ".join(
        f"by {score} {record['bound'] or ''} {record['ratio']:.2f}"
        f" ({record['low'] or 0:.2f}–{record['high'] or math.inf:.2f})"
        for score, record in row.get("reduction", {}).items()
    )
    return f"{row['nfe']:.0f} NFE, {row['sampler']} {knobs}: {scores} {less}".rstrip()


def between(curve: list[Result], nfe: float) -> Result | None:
    """A curve at this NFE, straight in log NFE between two settings; None outside its range."""
    curve = sorted(curve, key=lambda result: result.row.nfe)
    pair = next(((a, b) for a, b in pairwise(curve) if a.row.nfe <= nfe <= b.row.nfe), None)
    if pair is None:
        return None
    a, b = pair
    share = math.log(nfe / a.row.nfe) / math.log(b.row.nfe / a.row.nfe)

    def mix(x: Any, y: Any) -> Any:
        return None if x is None or y is None else (1 - share) * x + share * y

    arrays = {name: mix(a.arrays[name], b.arrays[name]) for name in SCORES if name in a.arrays}
    arrays["nfe"] = np.full(a.row.n, float(nfe))
    arrays["trunk_passes"] = mix(a.arrays["trunk_passes"], b.arrays["trunk_passes"])
    names = ("trunk_passes", "head_passes", "judge", "second_judge", "heldout_bits", "spelling",
             "word_entropy", "distinct_4", "kl_4gram", "entropy", "acceptance")  # fmt: skip
    means = {name: mix(getattr(a.row, name), getattr(b.row, name)) for name in names}
    for judge in ("judge", "second_judge"):
        if judge in arrays:
            interval = mean_interval(arrays[judge], seed=SEED)
            means |= {f"{judge}_low": interval.low, f"{judge}_high": interval.high}
    fixed = {k: v for k, v in a.row.settings.items() if k not in ("steps", "dtau")}
    knob = "dtau" if "dtau" in a.row.settings else "steps"
    fixed["between"] = [a.row.settings[knob], b.row.settings[knob]]
    return Result(replace(a.row, nfe=float(nfe), settings=fixed, seconds=None, **means), arrays)


def facts(
    args: argparse.Namespace, size: Size, model: SSMD, tokenizer: Any, stores: Mapping[str, Store]
) -> dict[str, Any]:
    """What is known of judges, data and training."""
    own = args.runs / "judge" / "model"
    second = {"second_judge": judge_facts(own, tokenizer)} if own.exists() else {}
    trained = checkpoint.load_config(args.runs / args.model / "model")["training"]
    test = stores["test"].tokens
    return {
        "judge": judge_facts(args.judge, CHARACTERS)
        | {"reads": "27 symbols, windows of 256 that overlap by 128"},
        **second,
        "data": {"split": "test", "rows": min(size.n, len(test) // size.length),
                 "train_tokens": len(stores["train"].tokens),
                 "characters_per_token": tokenizer.count_characters(test) / len(test)},
        "heldout": {"split": "test", "rows": size.heldout, "unit": "bits per token"},
        "model": {"parameters": sum(p.numel() for p in model.parameters()),
                  "steps": trained["step"], "of": trained["run"]["steps"],
                  "tokens_a_step": trained["run"]["batch_size"] * model.length,
                  "seconds": trained["elapsed"], "validation_nats": trained["validation"]},
    }  # fmt: skip


def device() -> str:
    """CUDA if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


STAGES = {**dict.fromkeys(START, train), "quality": quality}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="of `selfspec prepare`, in subwords"
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path,
                        default=Path("benchmarks/results/books-bpe-quality.json"))  # fmt: skip
    parser.add_argument("--judge", type=Path, default=Path("books27-judge"), help="of characters")
    parser.add_argument("--model", default="joint", help="the stage whose model is measured")
    parser.add_argument("--seconds", type=float, help="after which a stage ends")
    parser.add_argument("--steps", type=int, help="of training, rather than what fits in --seconds")
    parser.add_argument("--n", type=int, help="samples a setting")
    parser.add_argument("--part", metavar="k/n", help="draw one part of the settings, no report")
    parser.add_argument("--tiny", action="store_true", help="a few of everything, on a CPU")
    parser.add_argument("--command", help="to report")
    parser.add_argument("stages", nargs="+", choices=STAGES)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    size = TINY if args.tiny else Size()
    size = replace(size, n=args.n or size.n)
    for stage in args.stages:
        start = time.monotonic()
        if stage != "quality" and args.seconds is None and args.steps is None:
            parser.error("training needs --seconds or --steps")
        STAGES[stage](args, size, stage)
        print(f"stage {stage}: {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
