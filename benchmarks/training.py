"""How much of the device's matrix peak training uses, and what limits it.

    python benchmarks/training.py --out benchmarks/results/training-h200.json

A step is `Trainer.update`: batch, loss, gradient, clipping, optimisers, average. MFU is the model's
floating-point operations over the time of a step and the peak measured in the same run by a large
bfloat16 product; operations are those of `recipes/cost.py`, which counts what the method needs:
the draft is unembedded at masked places only, about half of them, and the target at all of these
but one a row. What a portion is filled up with is no work of the model's. (Reports of before this
was so counted both unembeddings at all places, where they ran.)

`head_io` is the share of a step's time that goes to the head's inputs and residual: the head
without its block, forward and backward, timed alone.
"""

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from selfspec.arena.report import commit, machine, running
from selfspec.files import write_json
from selfspec.metrics.timing import median_seconds
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.recipes import books27
from selfspec.recipes.cost import flops
from selfspec.train import Diffusion, Trainer
from selfspec.train.parallel import group

BOOKS = books27.TRUNK
LARGE = TrunkConfig(vocab_size=50257, length=1024, width=768, blocks=11, heads=12)
TINY = TrunkConfig(vocab_size=50, length=16, width=16, blocks=2, heads=2)
CASES = {"books27": (BOOKS, books27.HEAD, 1024, 1), "150M-1024": (LARGE, HeadConfig(12), 256, 4)}
"""Shapes, rows a step, micro-batches."""


class Random:
    """Batches of random tokens: what they are does not change the work."""

    def __init__(self, rows: int, shape: TrunkConfig):
        self.shape, self.size = shape, (rows, shape.length)

    def batch(self, step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(self.shape.vocab_size, size=self.size)


def make(
    shape: TrunkConfig, head: HeadConfig, rows: int, device: torch.device, **settings: Any
) -> Trainer:
    """A run of `rows` rows a step on each process of the group."""
    torch.manual_seed(0)
    model = SSMD(Trunk(shape), CausalHead(head, shape.width)).to(device)
    settings = {"steps": 10**6, "batch_size": rows * group().world, **settings}
    config = replace(books27.joint().train, **settings)
    return Trainer(model, Diffusion(), config, Random(rows, shape))


def measure(
    name: str,
    device: torch.device,
    scale: float,
    tiny: bool,
    also: Callable[[Trainer], dict[str, Any]] = lambda trainer: {},
    **settings: Any,
) -> dict[str, Any]:
    """One row, with what `also` finds of the run; each process has as many rows as one alone."""
    shape, head, rows, accumulate = CASES[name]
    if tiny:
        shape, head, rows = TINY, HeadConfig(2), 8
    rows, world = max(accumulate, int(rows * scale)), group().world
    trainer = make(shape, head, rows, device, accumulate=accumulate, **settings)
    model, fast = trainer.model, device.type == "cuda"
    with trainer.prepared():
        step = median_seconds(trainer.update, device, repeats=10, warmup=4)
        kernels = limits(trainer.update, device)
        peak = torch.cuda.max_memory_allocated() / 2**20 if fast else 0.0
        io = head_io(model, rows // accumulate, device) * accumulate
        more = also(trainer)
    trainer.feed.close()
    work = {part: rows * world * shape.length * each for part, each in flops(shape, head).items()}
    total = sum(work.values())
    return {
        "model": name,
        "gpus": world,
        "rows": rows * world,
        "accumulate": accumulate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_ms": 1e3 * step.median,
        "tokens_per_s": rows * world * shape.length / step.median,
        "flops": work,
        "tflops_per_s": total / step.median / 1e12,
        "head_io": io / step.median,
        "peak_mib": peak,
        "kernels": kernels,
        **more,
    }


def head_io(model: SSMD, rows: int, device: torch.device) -> float:
    """Seconds of the head's inputs and residual, forward and backward, for one micro-batch."""
    assert model.head is not None
    bare = copy.deepcopy(model.head)
    bare._compiled_call_impl = None
    bare.blocks = nn.ModuleList()
    if device.type == "cuda":
        bare.compile(dynamic=False)
    shape = (rows, model.length, model.trunk.width)
    hidden, embedded = (torch.randn(shape, device=device, requires_grad=True) for _ in range(2))  # type: ignore[arg-type]
    order = torch.rand(shape[:2], device=device).argsort(1)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out = bare(hidden, embedded, order)
        out.backward(torch.ones_like(out))

    return median_seconds(run, device, repeats=10, warmup=3).median


def limits(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """The ten kernels that take most of the device's time, with their shares."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        call()
        if cuda:
            torch.cuda.synchronize()
    spent = [(event.self_device_time_total if cuda else event.self_cpu_time_total, event)
             for event in found.key_averages()]  # fmt: skip
    total = sum(time for time, _ in spent) or 1.0
    spent.sort(key=lambda pair: -pair[0])
    return [
        {"name": event.key[:100], "calls": event.count, "share": round(time / total, 4)}
        for time, event in spent[:10]
    ]


def matrix_peak(device: torch.device, size: int = 8192) -> float:
    """Operations a second of a bfloat16 product of random matrices."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = size if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))

    def ten() -> None:
        for _ in range(10):
            torch.matmul(a, b)

    return 10 * 2 * size**3 / median_seconds(ten, device, repeats=10, warmup=3).median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.json"))
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows a step")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matrix_peak(device)
    report: dict[str, Any] = {
        "machine": machine(),
        "command": running(),
        "commit": commit(),
        "seed": 0,
        "peak_tflops_per_s": peak / 1e12,
        "rows": [],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row = measure(model, device, args.scale, args.tiny)
        row["mfu"] = row["tflops_per_s"] * 1e12 / peak
        report["rows"].append(row)
        print(json.dumps(row, indent=1), flush=True)
        write_json(args.out, report)


if __name__ == "__main__":
    main()
