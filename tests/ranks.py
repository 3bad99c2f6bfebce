"""Training runs in float64 that are the same on any number of processes.

torchrun --nproc-per-node 2 tests/ranks.py measure DATA
torchrun --nproc-per-node 2 tests/ranks.py adapt DATA
torchrun --nproc-per-node 2 tests/ranks.py train DATA/RUN ddp|fsdp STEPS DIE_AT step|save
"""

import itertools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import selfspec as ss
from selfspec import cross_entropy
from selfspec.cli import main
from selfspec.data.corpus import open_store
from selfspec.data.loader import write_store
from selfspec.data.ragged import write_sequences
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.recipes.recipe import make_trainer
from selfspec.train import (
    AdamWConfig,
    Cosine,
    Diffusion,
    MuonConfig,
    NextToken,
    Objective,
    TrainConfig,
    Trainer,
)
from selfspec.train.parallel import RankError, group, held_bytes, processes

V, L, WIDTH = 5, 12, 32
SHAPE = TrunkConfig(vocab_size=V, length=L, width=WIDTH, blocks=2, heads=2)
CONFIG = TrainConfig(
    steps=12,
    batch_size=8,
    adamw=AdamWConfig(lr=3e-3),
    schedule=Cosine(warmup=2),
    clip=0.5,
    ema_decay=0.8,
    log_every=1,
    valid_every=5,
    save_every=3,
)
MUON = MuonConfig(lr=3e-3)
JOBS: dict[str, tuple[Objective, dict[str, Any]]] = {
    "joint": (Diffusion(), {"steps": 50, "accumulate": 2}),
    "muon": (Diffusion(window_weight=1.0), {"muon": MUON, "recompute": True}),
    "frozen": (Diffusion(freeze_trunk=True), {"muon": MUON, "accumulate": 2}),
    "padded": (Diffusion(observed=(1,)), {}),
    "judge": (NextToken(), {}),
}
"""Objective and settings."""
FAMILIES = ("llama", "gpt2")
"""Causal models of the Hub, in folders of these names."""


def write_data(folder: Path) -> None:
    """Rows for training and validation; the numbers of neither divide among ranks."""
    rng = np.random.default_rng(0)
    counting = [(rng.integers(V) + np.arange(L)) % V for _ in range(61)]
    ragged = [rng.integers(V, size=size) for size in rng.integers(3, 20, size=61)]
    for name, rows in {"train": slice(39), "valid": slice(39, 61)}.items():
        write_store(folder / f"{name}.bin", counting[rows], V)
        write_sequences(folder / f"{name}-ragged.bin", ragged[rows], V)


def model(objective: Objective) -> SSMD | AutoregressiveModel:
    """In float64, without dropout, its head away from target = draft."""
    torch.manual_seed(0)
    if isinstance(objective, NextToken):
        return AutoregressiveModel(Trunk(replace(SHAPE, causal=True))).double()
    made = SSMD(Trunk(SHAPE), CausalHead(HeadConfig(heads=2), WIDTH))
    assert made.head is not None
    torch.nn.init.normal_(made.head.project.weight, std=0.1)
    return made.double()


def trainer(job: str, data: Path, folder: Path | None = None, **changes: Any) -> Trainer:
    """A run of a job on this process's rank."""
    objective, settings = JOBS[job]
    config = replace(CONFIG, **{**settings, **changes})
    kind = "-ragged" if job == "padded" else ""
    train, valid = (open_store(data / f"{name}{kind}.bin") for name in ("train", "valid"))
    return make_trainer(model(objective), objective, config, folder, train, valid, L, 100, "cpu")


def measure(job: str, data: Path, **changes: Any) -> list[dict[str, float]]:
    """Losses, gradient norm and validation of every step."""
    run, lines = trainer(job, data, **changes), []
    with run.prepared():
        for step in range(run.config.steps):
            run.update()
            line = run._read_meter()
            run._meter = type(run._meter)()
            if step % run.config.valid_every == 0:
                line |= {f"valid_{name}": value for name, value in run.validate().items()}
            lines.append({k: v for k, v in line.items() if k != "tokens_per_second"})
    run.feed.close()
    return lines


def state_bytes(job: str, data: Path, **changes: Any) -> dict[str, int]:
    """Bytes of this rank's weights, gradients and moments in one step."""
    run, sizes = trainer(job, data, **changes), {}
    step = run.optimisers.step

    def spy(factor: float) -> None:
        sizes["gradients"] = held_bytes(p.grad for p in run.params.values() if p.grad is not None)
        step(factor)

    run.optimisers.step = spy
    run.update()
    run.feed.close()
    sizes["weights"] = held_bytes(run.params.values())
    sizes["moments"] = held_bytes(run.optimisers.state().values())
    return sizes


def reductions(kind: str, data: Path, accumulate: int) -> int:
    """How often gradients travel in a step."""
    run, count = trainer("joint", data, parallel=kind, accumulate=accumulate), [0]

    def bucket_hook(group, bucket):  # type: ignore[no-untyped-def]
        count[0] += 1
        return allreduce_hook(group, bucket)

    def scatter(*args: Any, **options: Any) -> Any:
        count[0] += 1
        return plain(*args, **options)

    newer = hasattr(dist, "reduce_scatter_single")
    name = "reduce_scatter_single" if newer else "reduce_scatter_tensor"
    plain = getattr(dist, name)
    if isinstance(run.loss, DistributedDataParallel):
        run.loss.register_comm_hook(None, bucket_hook)
    run.update()
    count[0] = 0
    with mock.patch.object(dist, name, scatter):
        run.update()
    run.feed.close()
    return count[0]


def measure_all(folder: Path) -> None:
    """Every job on these processes, distributed in both ways."""
    found: dict[str, Any] = {}
    for kind in ("ddp", "fsdp"):
        found[kind] = {job: measure(job, folder, parallel=kind) for job in JOBS}
        found[f"{kind} reductions"] = [reductions(kind, folder, n) for n in (1, 2)]
        found[f"{kind} bytes"] = state_bytes("muon", folder, parallel=kind)
    if group().rank == 0:
        (folder / f"measured-{group().world}.json").write_text(json.dumps(found))


def adapt(folder: Path) -> None:
    """The causal models of a folder trained on as masked ones, on these processes."""
    world = group().world
    for family, kind in itertools.product(FAMILIES, ("ddp", "fsdp")):
        made = ss.adapt_causal(folder / family).double()
        run = ss.recipes.adapt_ar(
            made, folder / "text.jsonl", folder / f"{family}-{kind}-{world}", length=16, steps=12,
            batch_size=8, accumulate=2, parallel=kind, log_every=1, valid_every=5, device="cpu",
            progress=False,
        )  # fmt: skip
        ss.recipes.finish(run, progress=False)


def adapt_command(folder: Path, world: int) -> list[str]:
    """`selfspec adapt` of the first of them."""
    out = ["--out", str(folder / f"run-{world}"), "--device", "cpu", "--json"]
    size = ["--length", "16", "--batch-size", "8", "--steps", "3"]
    return ["adapt", str(folder / FAMILIES[0]), "--data", str(folder / "text.jsonl"), *size, *out]


def fill_disk(folder: Path) -> None:
    """No room for what the last rank writes at its second checkpoint: what each rank is told."""
    rank, world = group()
    run = trainer("joint", folder, folder / f"full-{world}", parallel="fsdp", steps=9)
    run.feed._batches = At(run.feed._batches, 4, lambda: limit_files(1000) if rank else None)
    try:
        run.run(progress=False)
    except RuntimeError as error:
        limit_files(resource.RLIM_INFINITY)
        told: list[Any] = [None] * world
        dist.all_gather_object(told, [type(error).__name__, str(error)])
        if rank == 0:
            (folder / f"told-{world}.json").write_text(json.dumps(told))


def stop_one(folder: Path) -> None:
    """The last rank alone is asked to end: the step at which each ends."""
    rank, world = group()
    run = trainer("joint", folder, folder / f"stopped-{world}", steps=9)
    if rank == world - 1:
        ask = partial(os.kill, os.getpid(), signal.SIGTERM)
        run.feed._batches = At(run.feed._batches, 4, ask)
    assert not run.run(progress=False)
    told: list[Any] = [None] * world
    dist.all_gather_object(told, run.step)
    if rank == 0:
        (folder / f"stopped-{world}.json").write_text(json.dumps(told))


def train_apart(folder: Path) -> None:
    """Every rank in a folder that it alone sees: what each is told."""
    rank, world = group()
    told: list[Any] = [None] * world
    try:
        trainer("judge", folder, folder / f"apart-{rank}").run(progress=False)
    except RuntimeError as error:
        dist.all_gather_object(told, [type(error).__name__, str(error)])
    if rank == 0:
        (folder / f"apart-{world}.json").write_text(json.dumps(told))


def limit_files(size: int) -> None:
    """To write a larger file then fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class At:
    """Batches during which something happens at one step."""

    def __init__(self, batches: Any, step: int, do: Callable[[], object]) -> None:
        self.batches, self.step, self.do = batches, step, do

    def batch(self, step: int) -> np.ndarray:
        if step == self.step:
            self.do()
        return self.batches.batch(step)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, kind: str, steps: int, die_at: int, while_saving: bool) -> None:
    """A run in `folder`; rank 1 is killed when it reads the batch of a step, or in the save then.

    What a rank that lives is told goes to standard error.
    """
    run = trainer("joint", folder.parent, folder, parallel=kind, steps=steps)
    if group().rank == 1:
        die = partial(setattr, os, "fsync", lambda _: kill()) if while_saving else kill
        run.feed._batches = At(run.feed._batches, die_at, die)
    try:
        run.run(progress=False)
    except RankError as error:
        sys.exit(f"told: {error}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    cross_entropy.LEAST = 5  # several portions, and not equally many on every rank
    name, folder, *arguments = sys.argv[1:]
    with processes("cpu"):
        if name == "measure":
            measure_all(Path(folder))
            stop_one(Path(folder))
            fill_disk(Path(folder))
            train_apart(Path(folder))
        elif name == "adapt":
            adapt(Path(folder))
            assert main(adapt_command(Path(folder), 2)) == 0
        else:
            kind, steps, die_at, phase = arguments
            train(Path(folder), kind, int(steps), int(die_at), phase == "save")
    # All is written; once in many runs gloo's threads abort the interpreter on its way out.
    os._exit(0)
