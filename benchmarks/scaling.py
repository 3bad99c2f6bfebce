"""Training on several GPUs: how much faster than on one, and what sharding saves.

    python benchmarks/scaling.py --gpus 1 2 --out benchmarks/results/training-scaling.json
    python benchmarks/scaling.py --gpus 1 2 --tiny --out scaling.json      a rehearsal on the CPU
    CUDA_VISIBLE_DEVICES= python benchmarks/scaling.py --gpus 2 --what memory \\
        --out benchmarks/results/memory-cpu.json                           in the memory of the host

It starts itself under torchrun. A row of `rows` is one of `training.py` on so many GPUs, each with
as many rows a step as one GPU alone; `efficiency` is its throughput over that of the first row,
for each GPU. MFU counts the peak of all GPUs. What is lost is told apart by

    alone_ms        a step of each GPU without the exchange of gradients: the slowest sets the pace
    exchange_ms     one all-reduce of as many numbers as there are gradients, nothing beside it

A row of `memory` is one step of a model of GPT-2 XL's shape by AdamW, on the largest number of
GPUs, or of processes where there are none (two need about 100 GiB): bytes that rank 0 holds of
weights, gradients and moments (together `state`), and of the moving average. `share` is `state`
over that of DDP.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from training import CASES, TINY, make, matrix_peak, measure

from selfspec.arena.report import commit, machine, running
from selfspec.files import write_json
from selfspec.metrics.timing import median_seconds
from selfspec.nn.head import HeadConfig
from selfspec.nn.transformer import TrunkConfig
from selfspec.train import Trainer
from selfspec.train.parallel import group, held_bytes, processes

XL = TrunkConfig(vocab_size=50257, length=1024, width=1600, blocks=47, heads=25)
KINDS = ("ddp", "fsdp")
TASKS = ("speed", "memory")


def speed(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """A row of `training.py` on this many processes."""
    row = measure(args.model, device, args.scale, args.tiny, exchange, parallel=args.parallel)
    peak = matrix_peak(device)
    row["parallel"], row["peak_tflops_per_s"] = args.parallel, peak / 1e12
    row["mfu"] = row["tflops_per_s"] * 1e12 / peak / group().world
    return row


def exchange(trainer: Trainer) -> dict[str, Any]:
    """What several processes lose by waiting for each other, and by what they send."""
    if not isinstance(trainer.loss, DistributedDataParallel):
        return {}
    with trainer.loss.no_sync():
        step = median_seconds(trainer.update, trainer.device, repeats=10, warmup=2)
    flat = torch.zeros(sum(p.numel() for p in trainer.params.values()), device=trainer.device)
    sent = median_seconds(lambda: dist.all_reduce(flat), trainer.device, repeats=10, warmup=3)
    found: list[Any] = [None] * group().world
    dist.all_gather_object(found, 1e3 * step.median)
    return {"alone_ms": found, "exchange_ms": 1e3 * sent.median}


def memory(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """What this rank holds in one step of the large model."""
    shape, head = (TINY, HeadConfig(2)) if args.tiny else (XL, HeadConfig(25))
    settings = {"muon": None, "recompute": True, "accumulate": 1, "parallel": args.parallel}
    trainer = make(shape, head, 1, device, **settings)
    sizes: dict[str, int] = {}
    step = trainer.optimisers.step

    def spy(factor: float) -> None:
        gradients = [p.grad for p in trainer.params.values() if p.grad is not None]
        sizes["gradients"] = held_bytes(gradients)
        step(factor)

    trainer.optimisers.step = spy
    with trainer.prepared():
        trainer.update()
    trainer.feed.close()
    sizes["weights"] = held_bytes(trainer.params.values())
    sizes["moments"] = held_bytes(trainer.optimisers.state().values())
    return {
        "parallel": args.parallel,
        "gpus": group().world,
        "parameters": sum(p.numel() for p in trainer.params.values()),
        "bytes": sizes | {"average": held_bytes(trainer.ema.average)},
        "state": sum(sizes.values()),
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    }


def on(world: int, task: str, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a task gives on so many processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    own = [str(world), __file__, "--task", task, "--parallel", kind, "--model", args.model]
    own += ["--scale", str(args.scale), *(["--tiny"] if args.tiny else [])]
    with TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        subprocess.run([*launch, *own, "--out", str(out)], check=True)
        row = json.loads(out.read_text())
    print(json.dumps(row, indent=1), flush=True)
    return row


def work(args: argparse.Namespace) -> None:
    """One process of those that torchrun started."""
    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if cuda else "cpu")
    with processes(device):
        row = (speed if args.task == "speed" else memory)(device, args)
        if group().rank == 0:
            write_json(args.out, row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", choices=CASES, default="150M-1024")
    parser.add_argument("--what", choices=TASKS, nargs="+", default=TASKS, help="to measure")
    parser.add_argument("--parallel", choices=KINDS, default="ddp", help="for the throughput")
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows a step")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        return work(args)
    report: dict[str, Any] = {
        "machine": machine(),
        "command": running(),
        "commit": commit(),
        "seed": 0,
        "tiny": args.tiny,
        "rows": [],
        "memory": [],
    }
    for world in args.gpus if "speed" in args.what else ():
        row = on(world, "speed", args.parallel, args)
        first = (report["rows"] or [row])[0]
        row["efficiency"] = row["tokens_per_s"] / first["tokens_per_s"] * first["gpus"] / world
        report["rows"].append(row)
        write_json(args.out, report)
    for kind in KINDS if "memory" in args.what else ():
        row = on(max(args.gpus), "memory", kind, args)
        row["share"] = row["state"] / (report["memory"] or [row])[0]["state"]
        report["memory"].append(row)
        write_json(args.out, report)


if __name__ == "__main__":
    main()
