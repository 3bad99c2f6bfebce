"""Seconds, not passes: the engine beside what a user could run instead, on one machine.

    python benchmarks/latency.py --out benchmarks/results/latency-h200.json
    python benchmarks/latency.py --models books27 --batches 1 64 --seconds 500
    python benchmarks/latency.py --models 150M-1024 --batches 64 --settings 0

Rows that are in the file already are not measured again, so that a run may be cut into several;
the most important ones come first, and the file is written after each. All in bfloat16 matrices.

    engine-speculative, engine-plain          compiled, CUDA graphs, batch = slots
    reference-speculative, reference-plain    `sampling/`, eager
    mdlm-loop                                 the published loop around the same trunk, eager
    ar-kv                                     as many blocks, static cache, compiled, CUDA graphs
    trunk-only                                the floor: as many bare trunk passes as
                                              engine-speculative, unembedded at as many places as
                                              those reveal; windows have more

`ms_per_pass` of the engine is over the passes that it ran, `passes_run`; some of the last have
slots without a row, which only `ms_per_sample` counts.

A plain method comes twice: "equal" says whether it takes as many evaluations as engine-speculative
("nfe"), or so many that it is as good ("quality"), by the reduction of the same settings in
books27-quality.json. Times are medians over at least five runs after warm-up.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from baselines import CachedDecoder, mdlm_loop
from torch import nn

from selfspec import checkpoint
from selfspec.arena.report import commit, machine, running
from selfspec.engine import Engine
from selfspec.engine.graphs import copied
from selfspec.files import write_json
from selfspec.interfaces import Samples
from selfspec.measuring import knobs
from selfspec.metrics.timing import Timing, median_seconds
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Block, Trunk, TrunkConfig
from selfspec.sampling import FixedCountSampler, Sampler, SpeculativeSampler
from selfspec.schedules import CosineWindow, LinearSchedule, LinearWindow

Settings = tuple[int, CosineWindow | LinearWindow]
SETTINGS: tuple[Settings, ...] = (
    (4, CosineWindow(0.083)),
    (4, CosineWindow(0.02)),
    (1, LinearWindow(0.06)),
)
"""Rounds and window: the two published ones, and one of a single round."""
QUALITY = Path(__file__).parent / "results/books27-quality.json"
ACCEPTANCE = 0.93
METHODS = ("engine-speculative", "trunk-only", "engine-plain", "mdlm-loop", "reference-speculative",
           "ar-kv", "reference-plain")  # fmt: skip
BATCHES = (64, 1, 256, 8)
TINY = TrunkConfig(vocab_size=2000, length=32, width=32, blocks=2, heads=2)
LARGE = TrunkConfig(vocab_size=50257, length=1024, width=768, blocks=11, heads=12)


@dataclass(frozen=True)
class Case:
    """What a row is about."""

    model: str
    settings: Settings
    batch: int
    method: str
    equal: str = "nfe"

    @property
    def row(self) -> dict[str, Any]:
        """As a report says it."""
        return {
            "model": self.model,
            "settings": knobs(*self.settings),
            "batch": self.batch,
            "method": self.method,
            "equal": self.equal,
        }

    def done(self, rows: list[dict[str, Any]]) -> bool:
        """Whether a report has this row."""
        return any(self.row.items() <= row.items() for row in rows)


@cache
def reduction(settings: Settings) -> float:
    """Evaluations of plain sampling over those of self-speculative at the same judge score.

    Raises:
        KeyError: it has not been measured.
    """
    for row in json.loads(QUALITY.read_text())["reduction"]:
        about = (row["baseline"], row["account"], row["score_name"], row["order"])
        if about == ("plain uniform", "same trunk", "judge", "uniform") and row[
            "settings"
        ] == knobs(*settings):
            return row["ratio"]
    raise KeyError(f"no reduction of {knobs(*settings)} in {QUALITY.name}")


class Bench:
    """Measures rows of one model.

    Args:
        model: in float32, on the device.
        fast: compile and record graphs.
        waves: batches that the engine draws in one run, through slots of one batch.
    """

    def __init__(self, name: str, model: SSMD, fast: bool, waves: int):
        self.name, self.model, self.fast, self.waves = name, model, fast, waves
        self.device, self.length = model.device, model.length
        self.low = copied(model, self.device.type == "cuda")
        self.drawn: dict[tuple[Settings, int], Samples] = {}

    def measure(self, case: Case) -> dict[str, Any]:
        """The row of a case; engine-speculative of the same settings and batch comes first."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = {
            "engine-speculative": self.engine,
            "engine-plain": self.engine,
            "reference-speculative": self.reference,
            "reference-plain": self.reference,
            "mdlm-loop": self.mdlm,
            "ar-kv": self.autoregressive,
            "trunk-only": self.trunk_only,
        }[case.method]
        with torch.no_grad():
            found = run(case)
        seconds = found.pop("timing").median
        samples = found.pop("samples", case.batch)
        passes = found.get("passes_run") or found["trunk_passes"] * samples / case.batch
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        gc.collect()
        return {
            **case.row,
            **found,
            "ms_per_sample": 1e3 * seconds / samples,
            "samples_per_s": samples / seconds,
            "ms_per_pass": 1e3 * seconds / passes,
            "peak_mib": peak / 2**20,
        }

    def engine(self, case: Case) -> dict[str, Any]:
        """Draws `waves` batches through slots of one."""
        sampler, rows = self.sampler(case), case.batch * self.waves
        engine = Engine(self.model, case.batch, waiting=rows, compile=self.fast)
        masked = torch.full((rows, self.length), self.model.mask_id)
        samples: list[Samples] = []
        passes: list[int] = [0]

        def draw() -> None:
            samples.append(engine.sample(sampler, masked, 0))
            passes.append(engine.steps.passes)

        timing = self.time(draw)
        if case.method == "engine-speculative":
            self.drawn[case.settings, case.batch] = samples[-1]
        return {"timing": timing, "samples": rows, "waves": self.waves, **account(samples[-1]),
                "passes_run": passes[-1] - passes[-2], "reason": engine.steps.reason}  # fmt: skip

    def reference(self, case: Case) -> dict[str, Any]:
        """Draws one batch."""
        sampler, samples = self.sampler(case, self.low), []
        masked = torch.full((case.batch, self.length), self.model.mask_id, device=self.device)
        with self.precision():
            timing = self.time(lambda: samples.append(sampler.sample(masked, 0)))
        return {"timing": timing, **account(samples[-1])}

    def mdlm(self, case: Case) -> dict[str, Any]:
        """The published loop; on as many rows at a time as its full-length laws leave room for."""
        steps = max(1, self.passes(case) - 1)  # it makes one more pass in the end
        room = 2**32 // (self.length * self.model.vocab_size)
        at_once = min(case.batch, 2 ** max(0, room.bit_length() - 1))
        made: list[int] = []

        def draw() -> None:
            for _ in range(case.batch // at_once):
                made.append(mdlm_loop(self.low, at_once, self.length, steps)[1])

        with self.precision():
            timing = self.time(draw)
        passes = sum(made) / len(made)
        return {"timing": timing, **self.plain_account(passes), "rows_at_once": at_once}

    def autoregressive(self, case: Case) -> dict[str, Any]:
        """As many blocks as trunk and head together."""
        shape = self.model.trunk.config  # type: ignore[union-attr]
        blocks = self.model.num_trunk_blocks + self.model.num_head_blocks
        trunk = Trunk(replace(shape, causal=True, blocks=blocks)).to(self.device)  # type: ignore[type-var]
        low = copied(SSMD(trunk), self.device.type == "cuda").trunk
        decoder = CachedDecoder(low, case.batch, self.fast)  # type: ignore[arg-type]
        with self.precision():
            timing = self.time(decoder.sample)
        passes = float(self.length)
        return {"timing": timing, "nfe": passes, "trunk_passes": passes, "head_passes": 0.0,
                "acceptance": None}  # fmt: skip

    def trunk_only(self, case: Case) -> dict[str, Any]:
        """Bare passes, recorded as one graph: what no sampler with this trunk can go below.

        Over samples with every other place masked, as equal numbers take less power and less time.
        """
        drawn = self.drawn[case.settings, case.batch]
        passes = float(drawn.trunk_passes.double().mean())
        window = -(-self.length // round(passes))
        model, passes_done = copied(self.model, self.device.type == "cuda"), max(1, round(passes))
        every_other = torch.arange(self.length) % 2 == 0
        tokens = drawn.tokens[: case.batch].cpu().masked_fill(every_other, model.mask_id)
        tokens = tokens.to(self.device)
        places = torch.arange(window, device=self.device).expand(case.batch, -1)
        bare: Callable[[], Any] = lambda: model.draft(model.encode(tokens), places)  # noqa: E731
        if self.fast:
            for module in model.modules():
                if isinstance(module, Block):
                    module.compile(dynamic=False)
            bare = recorded(bare, self.precision, self.device)
        with self.precision():
            timing = self.time(lambda: [bare() for _ in range(passes_done)])
        timing = Timing(tuple(s * passes / passes_done for s in timing.seconds))
        return {"timing": timing, **self.plain_account(passes)}

    def sampler(self, case: Case, model: SSMD | None = None) -> Sampler:
        """Of a case; plain ones with as many passes as `passes` says."""
        model = self.model if model is None else model
        rounds, window = case.settings
        if case.method.endswith("speculative"):
            return SpeculativeSampler(model, window=window, rounds=rounds)
        # Of cosine steps the first reveal nothing and take no pass.
        return FixedCountSampler(model, schedule=LinearSchedule(), steps=self.passes(case))

    def passes(self, case: Case) -> int:
        """Trunk passes of a plain method that are as many evaluations, or give as good samples."""
        nfe = float(self.drawn[case.settings, case.batch].nfe.mean())
        blocks = self.model.num_trunk_blocks + self.model.num_head_blocks
        times = reduction(case.settings) if case.equal == "quality" else 1.0
        return max(1, round(times * nfe * blocks / self.model.num_trunk_blocks))

    def plain_account(self, passes: float) -> dict[str, Any]:
        blocks = self.model.num_trunk_blocks + self.model.num_head_blocks
        nfe = passes * self.model.num_trunk_blocks / blocks
        return {"nfe": nfe, "trunk_passes": passes, "head_passes": 0.0, "acceptance": None}

    def precision(self) -> Any:
        if self.device.type != "cuda":
            return nullcontext()
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)

    def time(self, call: Callable[[], object]) -> Timing:
        return median_seconds(call, self.device, repeats=5, warmup=2)


def recorded(
    call: Callable[[], Any], precision: Callable[[], Any], device: torch.device
) -> Callable[[], Any]:
    """A call as a CUDA graph."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.stream(stream), precision():
        for _ in range(3):
            call()
        with torch.cuda.graph(graph, stream=stream):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


def account(samples: Samples) -> dict[str, Any]:
    """Means over the samples."""
    return {
        "nfe": float(samples.nfe.mean()),
        "trunk_passes": float(samples.trunk_passes.double().mean()),
        "head_passes": float(samples.head_passes.double().mean()),
        "acceptance": samples.acceptance,
    }


def random_model(shape: TrunkConfig, device: str) -> SSMD:
    """Random weights; the head's output is scaled until its law differs from the draft as much as
    a trained head's: mean Σ min(p, q) = 0.93 over the masked places of half revealed rows.
    """
    torch.manual_seed(0)
    model = SSMD(Trunk(shape), CausalHead(HeadConfig(heads=shape.heads), shape.width))
    assert model.head is not None
    nn.init.normal_(model.head.project.weight, std=shape.width**-0.5)
    model = model.to(device).eval().requires_grad_(False)
    projection = model.head.project.weight  # type: ignore[union-attr]
    start, low, high = projection.clone(), 1e-4, 1e2
    for _ in range(16):
        scale = (low * high) ** 0.5
        projection.copy_(start * scale)
        low, high = (scale, high) if overlap(model) > ACCEPTANCE else (low, scale)
    return model


@torch.no_grad()
def overlap(model: SSMD) -> float:
    """Mean of Σ_v min(p(v), q(v)) over 64 places behind the middle of σ."""
    generator = torch.Generator().manual_seed(1)
    length = model.length
    tokens = torch.randint(model.vocab_size, (2, length), generator=generator)
    order = torch.rand(2, length, generator=generator).argsort(1)
    half = torch.full((2,), length // 2)
    masked = tokens.scatter(1, order[:, length // 2 :], model.mask_id)
    places = (length // 2 + 1 + torch.arange(min(64, length // 2 - 1))).expand(2, -1)
    masked, tokens, order, half, places = (
        x.to(model.device) for x in (masked, tokens, order, half, places)
    )
    hidden = model.encode(masked)
    draft = model.draft(hidden, order.gather(1, places)).double().softmax(-1)
    target = model.target(hidden, tokens, order, half, places).double().softmax(-1)
    return float(torch.minimum(draft, target).sum(-1).mean())


def cases(
    models: list[str], which: list[int], batches: list[int], methods: list[str]
) -> Iterator[Case]:
    """The most important first: large batches and the published settings."""
    for settings in (SETTINGS[k] for k in which):
        for batch in batches:
            for model in models:
                for method in methods:
                    yield Case(model, settings, batch, method)
                    if method in ("engine-plain", "mdlm-loop"):
                        yield Case(model, settings, batch, method, "quality")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency.json"))
    parser.add_argument("--models", nargs="+", default=["books27", "150M-1024"])
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--settings", nargs="+", type=int, choices=range(len(SETTINGS)),
                        default=list(range(len(SETTINGS))), help="which of the three")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=540, help="start no row after this time")
    parser.add_argument("--waves", type=int, default=8, help="batches in a run of the engine")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU")
    return parser.parse_args()


def make(name: str, device: str, tiny: bool) -> SSMD:
    if name == "books27":
        model = checkpoint.load(name, device)
        assert isinstance(model, SSMD)
        return model
    return random_model(TINY if tiny else LARGE, device)


def main() -> None:
    args = parse()
    begun, device = time.monotonic(), "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {"rows": []}
    if args.out.exists():
        report = json.loads(args.out.read_text())
    commands = dict.fromkeys([*filter(None, report.get("command", "").split("; ")), running()])
    report |= {
        "machine": machine(),
        "seed": 0,
        "command": "; ".join(commands),
        "precision": "bfloat16 matrices, float64 draws" if device == "cuda" else "float32",
        "commit": commit(),
    }  # fmt: skip
    bench: Bench | None = None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        bench = None
        for case in cases([model], args.settings, args.batches, args.methods):
            done = case.done(report["rows"])
            needed = case.method == "engine-speculative" or not done
            if not needed or time.monotonic() - begun > args.seconds:
                continue
            bench = bench or Bench(model, make(model, device, args.tiny), device == "cuda"
                                   and not args.eager, args.waves)  # fmt: skip
            started = time.monotonic()
            row = attempt(bench, case)
            print(f"{time.monotonic() - started:6.1f} s", json.dumps(row), flush=True)
            if not done:
                report["rows"].append(row)
                write_json(args.out, report)


def attempt(bench: Bench, case: Case) -> dict[str, Any]:
    """A row, or one that says what went wrong."""
    try:
        return bench.measure(case)
    except (RuntimeError, KeyError) as error:
        gc.collect()
        return case.row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


if __name__ == "__main__":
    main()
