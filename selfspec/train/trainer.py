"""The training loop: one for all objectives.

Step k (from 0), with batch x_k and everything random drawn from a generator keyed by (seed, k):

    g_k = ∇ mean loss(w_k; x_k, draws_k)       in `accumulate` pieces, clipped to norm `clip`
    w_{k+1} = optimiser step with g_k          learning rate · schedule.factor(k, steps)
    a_{k+1} = moving average of w              `ema.py`

A run is therefore a function of (model, objective, config, batches) alone, and a run that was
killed and resumed ends with the weights of one that was not: bit for bit on the CPU, and on CUDA
as far as its kernels are deterministic.

The folder of a run holds `state.safetensors` (to resume), `model/` (the averaged weights, to use),
`log.jsonl`, `tensorboard/` where that is installed, and `lock`.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfspec import checkpoint
from selfspec.losses import token_nll
from selfspec.nn.head import CausalHead
from selfspec.nn.transformer import Block
from selfspec.train.config import TrainConfig, require
from selfspec.train.ema import EMA
from selfspec.train.feed import Batches, Feed
from selfspec.train.objectives import Objective
from selfspec.train.optim import Optimisers
from selfspec.train.process import interrupts, locked
from selfspec.train.report import Meter, Report, with_bits
from selfspec.train.state import explained, prefixed, read_state, under, write_state
from selfspec.weights import fingerprint

# What a random stream is for: the second number of its key.
TRAIN, DROPOUT, VALID = range(3)

# Settings that a resumed run may change, because the weights do not depend on them.
FREE = {"compile", "log_every", "valid_every", "save_every"}


class Trainer:
    """Trains a model in place.

    Args:
        model: `SSMD` or `AutoregressiveModel`, on the device to train on.
        objective: what to minimise, and which part of the model moves.
        config: all settings.
        batches: the training data.
        folder: where checkpoints and logs go, and from where a run is resumed; None keeps nothing.
        valid: (n, L) tokens, the fixed validation set, masked at pads; None for no validation.
        rank: this process; only rank 0 writes.
        world: number of processes. It decides which rows a rank reads; gradients are not exchanged
            here.

    Raises:
        ValueError: the objective does not suit the model, or there are no validation rows.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        config: TrainConfig,
        batches: Batches,
        folder: str | os.PathLike[str] | None = None,
        valid: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if valid is not None and len(valid) == 0:
            raise ValueError("`valid` must have at least one row, got 0")
        self.model, self.objective, self.config = model, objective, config
        self.valid, self.rank, self.world = valid, rank, world
        self.folder = Path(folder) if folder is not None else None
        self.part = objective.trainable(model)
        self._trainable_before = [(p, p.requires_grad) for p in model.parameters()]
        model.eval().requires_grad_(False)
        self.part.requires_grad_(True)
        self.device = next(model.parameters()).device
        self.optimisers = Optimisers(model, config.adamw, config.muon, model.trunk.vocab_size)
        self.params = self.optimisers.params
        frozen = [p for p in model.parameters() if not p.requires_grad]
        self._frozen = {"frozen": fingerprint(frozen)} if frozen else {}
        self.ema = EMA(list(self.params.values()), config.ema_decay)
        self.feed = Feed(batches, self.device)
        self.step = 0
        self.elapsed = 0.0
        self.validation: dict[str, float] = {}
        self._meter = Meter()

    def run(self, stop_after: float | None = None, progress: bool = True) -> bool:
        """Trains to the last step, from the checkpoint in the folder if there is one.

        Ctrl-C (or SIGTERM) ends the run after the step in hand, with a checkpoint; a second one
        ends it at once. A finished model holds the averaged weights.

        Args:
            stop_after: seconds after which this call stops, as by Ctrl-C.
            progress: show a bar.

        Returns:
            Whether the last step was reached.

        Raises:
            RuntimeError: another run holds the folder, or the loss is not finite.
            CheckpointError: a checkpoint could not be written; the one before it is intact.
            ValueError: the checkpoint in the folder is of another run.
        """
        writes = self.rank == 0 and self.folder is not None
        lock = locked(self.folder) if writes and self.folder else nullcontext()
        fast = self.config.compile and self.device.type == "cuda"
        blocks = compiled(self.model) if fast else nullcontext()
        with lock, interrupts() as caught, _forked_rng(self.device), blocks:
            self.resume()
            if self.step == self.config.steps:
                self.save()  # it may have been killed between the two files
            report = Report(
                self.folder if writes else None,
                self.step,
                self.config.steps,
                progress and self.rank == 0,
            )
            message = None
            try:
                self._loop(report, caught, stop_after)
                if self.folder and self.step < self.config.steps:
                    message = f"stopped at step {self.step}; run it again to resume"
            finally:
                self.feed.close()
                report.close(message)
        finished = self.step >= self.config.steps
        if finished:
            self.ema.copy_to_params()
        for param, trained in self._trainable_before:
            param.requires_grad_(trained)
        self.model.eval()
        return finished

    def _loop(self, report: Report, caught: list[int], stop_after: float | None) -> None:
        config, start = self.config, time.monotonic() - self.elapsed
        deadline = time.monotonic() + (math.inf if stop_after is None else stop_after)
        stop = False
        while self.step < config.steps and not stop:
            self.update()
            report.bar.update()
            done = self.step == config.steps
            stop = bool(caught) or time.monotonic() > deadline
            saves = done or stop or self.step % config.save_every == 0
            validates = self.valid is not None and (done or self.step % config.valid_every == 0)
            if not (saves or validates or self.step % config.log_every == 0):
                continue
            values = self._read_meter()
            self.elapsed = time.monotonic() - start
            report.write(self.step, self.elapsed, values)
            if validates:
                self.validation = self.validate()
                report.write(self.step, self.elapsed, with_bits(self.validation, "valid_"))
            if saves:
                self.save()
            self._meter = Meter()

    def update(self) -> None:
        """One optimiser step. Nothing in it waits for the device."""
        config = self.config
        self.part.train()
        tokens, pad, count = self.feed(self.step)
        rows = config.batch_size // self.world
        require(len(tokens) == rows, "batches", f"of {rows} rows (`batch_size`)", len(tokens))
        drawn = self.objective.draw(tokens, self._generator(TRAIN, self.step), pad)
        pieces = zip(*(tensor.chunk(config.accumulate) for tensor in drawn.values()), strict=True)
        for micro, piece in enumerate(dict(zip(drawn, piece, strict=True)) for piece in pieces):
            torch.manual_seed(self._key(DROPOUT, self.step, micro))
            with self._autocast():
                total, parts = self.objective.loss(self.model, **piece)
            (total / config.accumulate).backward()
            self._meter.add(parts, 1 / config.accumulate)
        norm = nn.utils.clip_grad_norm_(self.params.values(), config.clip)
        self._meter.add({"grad_norm": norm})
        self.optimisers.step(config.schedule.factor(self.step, config.steps))
        self.step += 1
        self.ema.update(self.step)
        self._meter.end_step(count * self.world)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses of the averaged weights over the validation set, in nats per token.

        The draws are the same at every call and do not depend on the training seed. `draft` is the
        masked-diffusion bound.
        """
        assert self.valid is not None
        self.part.eval()
        rows = self.config.batch_size // self.world // self.config.accumulate
        sums: dict[str, float | Tensor] = {}
        with self.ema.applied():
            for index, start in enumerate(range(0, len(self.valid), rows)):
                tokens, pad, _ = self.feed.to_device(self.valid[start : start + rows])
                generator = torch.Generator(self.device).manual_seed(key(0, VALID, index))
                with self._autocast():
                    drawn = self.objective.draw(tokens, generator, pad)
                    _, parts = self.objective.loss(self.model, **drawn)
                for name, part in parts.items():
                    sums[name] = sums.get(name, 0.0) + part * len(tokens)
        return {name: float(total) / len(self.valid) for name, total in sums.items()}

    def save(self) -> None:
        """Writes the checkpoint and the averaged model to the folder, if there is one.

        Raises:
            CheckpointError: one could not be written; the state before it is intact.
        """
        if self.folder is None or self.rank != 0:
            return
        tensors = {
            **prefixed("params", self.params),
            **prefixed("average", dict(zip(self.params, self.ema.average, strict=True))),
            **prefixed("moments", self.optimisers.state()),
        }
        progress = {"step": self.step, "elapsed": self.elapsed, "validation": self.validation}
        about = {**progress, "run": self._identity()}
        write_state(self.folder / "state.safetensors", tensors, about)
        with explained(self.folder / "model"), self.ema.applied():
            checkpoint.save(self.model, self.folder / "model", training=about)

    def resume(self) -> None:
        """Takes over the checkpoint in the folder, if there is one.

        Raises:
            ValueError: it is of another model, objective or configuration.
        """
        path = self.folder / "state.safetensors" if self.folder else None
        if path is None or not path.exists():
            return
        tensors, about = read_state(path)
        _check_same_run(about["run"], self._identity(), path)
        weights, average = under(tensors, "params"), under(tensors, "average")
        if {n: w.shape for n, w in weights.items()} != {n: p.shape for n, p in self.params.items()}:
            raise ValueError(f"`model` must be the model of {path}, got other parameters")
        with torch.no_grad():
            for name, param in self.params.items():
                param.copy_(weights[name])
            for shadow, name in zip(self.ema.average, self.params, strict=True):
                shadow.copy_(average[name])
        self.optimisers.load_state(under(tensors, "moments"))
        self.step, self.elapsed = about["step"], about["elapsed"]
        self.validation = about["validation"]

    def _read_meter(self) -> dict[str, float]:
        means = self._meter.read()
        if not all(map(math.isfinite, means.values())):
            raise RuntimeError(f"the loss or its gradient is not finite by step {self.step}")
        rest = {name: means.pop(name) for name in ("grad_norm", "tokens_per_second")}
        factor = self.config.schedule.factor(self.step - 1, self.config.steps)
        return with_bits(means) | rest | {"lr": self.config.adamw.lr * factor}

    def _identity(self) -> dict[str, Any]:
        return {"objective": repr(self.objective), **self.config.to_dict(), **self._frozen}

    def _key(self, stream: int, *counters: int) -> int:
        return key(self.config.seed, stream, *counters, self.rank)

    def _generator(self, stream: int, *counters: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self._key(stream, *counters))

    def _autocast(self) -> Any:
        enabled = self.config.autocast and self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Within the block the model's transformer blocks, its head with inputs and residual, and the
    cross-entropy are compiled, for shapes that stay the same.

    There are few: one width or, with pads, one a bucket; of trunk and head, with and without
    gradients.
    Afterwards they are not compiled: a sampler's batches have another shape at every pass.
    """
    parts = [module for module in model.modules() if isinstance(module, Block | CausalHead)]
    for part in (*parts, token_nll):
        part.compile(dynamic=False)
    try:
        with torch._dynamo.config.patch(recompile_limit=64):  # beyond it blocks would run eagerly
            yield
    finally:
        for part in (*parts, token_nll):
            part._compiled_call_impl = None  # `Module.compile` has no inverse


def key(*counters: int) -> int:
    """A 63-bit seed that is a function of the counters, each at least 0."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0] >> np.uint64(1))


def initialise(model: Any, source: Any) -> None:
    """Copies the weights of a trained model: the trunk, and the head if both have one.

    Args:
        model: the model to train.
        source: a model of the same trunk, or the folder of a checkpoint.

    Raises:
        ValueError: the trunks (or the heads) differ in their parameters.
    """
    if isinstance(source, str | os.PathLike):
        source = checkpoint.load(Path(source))
    _copy(model.trunk, source.trunk, "trunk")
    if getattr(model, "head", None) and getattr(source, "head", None):
        _copy(model.head, source.head, "head")  # type: ignore[union-attr]


def _copy(target: nn.Module, source: nn.Module, name: str) -> None:
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise ValueError(f"`source` must have the model's {name}, got another: {error}") from error


def _forked_rng(device: torch.device) -> Any:
    devices: Sequence[Any] = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices)


def _check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    for name in dict.fromkeys(itertools.chain(old, new)):
        if name not in FREE and old.get(name) != new.get(name):
            raise ValueError(
                f"`{name}` must be {old.get(name)}, as in {path}, to resume it, "
                f"got {new.get(name)}; train in another folder to start afresh"
            )
