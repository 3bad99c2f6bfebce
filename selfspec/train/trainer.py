"""The training loop: one for all objectives.

Step k (from 0), with batch x_k and everything random drawn from a generator keyed by (seed, k):

    g_k = ∇ mean loss(w_k; x_k, draws_k)       in `accumulate` pieces, clipped to norm `clip`
    w_{k+1} = optimiser step with g_k          learning rate · schedule.factor(k, steps)
    a_{k+1} = moving average of w              `ema.py`

A run is therefore a function of (model, objective, config, batches) alone, and a run that was
killed and resumed ends with the weights of one that was not: bit for bit on the CPU, and on CUDA
as far as its kernels are deterministic. On how many processes changes no more than rounding and
dropout: `parallel.py`.

The folder of a run holds `state/` (to resume) and `model/` (the averaged weights, to use), both
of `resume.py`, `log.jsonl`, `tensorboard/` where that is installed, and `lock`. All processes must
see it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfspec.train import parallel
from selfspec.train.blocks import compiled, recomputed
from selfspec.train.config import TrainConfig, require
from selfspec.train.ema import EMA
from selfspec.train.feed import Batches, Feed
from selfspec.train.objectives import Chance, Objective
from selfspec.train.optim import Optimisers
from selfspec.train.process import held, interrupts
from selfspec.train.report import Meter, Report, with_bits
from selfspec.train.resume import Kept
from selfspec.weights import fingerprint

# What a random stream is for: the second number of its key.
TRAIN, DROPOUT, VALID = range(3)


class Trainer:
    """Trains a model in place, on all processes of the default process group if there is one.

    With `parallel="fsdp"` the model stays sharded afterwards; load the one in the folder.

    Args:
        model: `SSMD`, `AutoregressiveModel` or `Scorer`, on the device to train on.
        objective: what to minimise, and which part of the model moves.
        config: all settings.
        batches: the training data.
        folder: where checkpoints and logs go, and from where a run is resumed; None keeps nothing.
        valid: (n, L) tokens, the fixed validation set, masked at pads; None for no validation.
        data: what the batches are made of; a run is resumed on the same alone.

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
        data: str | None = None,
    ) -> None:
        if valid is not None and len(valid) == 0:
            raise ValueError("`valid` must have at least one row, got 0")
        self.model, self.objective, self.config = model, objective, config
        self.valid = valid
        self.rank, self.world = parallel.group()
        self.folder = Path(folder) if folder is not None else None
        self.part = objective.trainable(model)
        self._trainable_before = [(p, p.requires_grad) for p in model.parameters()]
        model.eval().requires_grad_(False)
        self.part.requires_grad_(True)
        self.device = next(model.parameters()).device
        frozen = [p for p in model.parameters() if not p.requires_grad]
        given = {"frozen": fingerprint(frozen) if frozen else None, "data": data}
        self._given = {name: value for name, value in given.items() if value is not None}
        self.loss = parallel.distributed(Loss(model, objective), config.parallel, self.device)
        symbols = getattr(model, "trunk", model).vocab_size
        self.optimisers = Optimisers(model, config.adamw, config.muon, symbols)
        self.params = self.optimisers.params
        self.ema = EMA([parallel.shard(p) for p in self.params.values()], config.ema_decay)
        self._kept = Kept(model, self.optimisers, self.ema)
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
            ValueError: the checkpoint in the folder is of another run, or `stop_after` is below 0.
        """
        if stop_after is not None and not stop_after >= 0:  # nor nan, which would never come
            raise ValueError(f"`stop_after` must be at least 0 seconds, got {stop_after}")
        with (
            held(self.folder),
            interrupts() as caught,
            _forked_rng(self.device),
            self.prepared(),
            parallel.connected(lambda: self.step),
        ):
            self.resume()
            if self.step == self.config.steps:
                self.save()  # it may have been killed between the two
            first = self.rank == 0
            report = Report(
                self.folder if first else None, self.step, self.config.steps, progress and first
            )
            message = None
            try:
                self._loop(report, caught, stop_after)
                if self.folder and first and self.step < self.config.steps:
                    message = f"stopped at step {self.step}; run it again to resume"
            finally:
                self.feed.close()
                report.close(message)
        finished = self.step >= self.config.steps
        if finished:
            self.ema.copy_to_params()
        if hasattr(self.model, "record"):  # so that it says in every later checkpoint
            self.model.record |= {"training": self._progress()}
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
            stop = parallel.any_rank(bool(caught) or time.monotonic() > deadline)
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
        """One optimiser step. The device never waits for the host.

        The host waits in the loss, to learn how many places that looks at, until the device has
        come as far as the pass of the trunk.
        """
        config = self.config
        self.part.train()
        tokens, pad, count = self.feed(self.step)
        rows = config.batch_size // self.world
        require(len(tokens) == rows, "batches", f"of {rows} rows (`batch_size`)", len(tokens))
        generator = torch.Generator(self.device).manual_seed(key(config.seed, TRAIN, self.step))
        drawn = self.objective.draw(tokens, Chance(generator, self.rank, self.world), pad)
        pieces = zip(*(tensor.chunk(config.accumulate) for tensor in drawn.values()), strict=True)
        for micro, piece in enumerate(dict(zip(drawn, piece, strict=True)) for piece in pieces):
            torch.manual_seed(key(config.seed, DROPOUT, self.step, micro, self.rank))
            with parallel.accumulating(self.loss, micro == config.accumulate - 1):
                with self._autocast():
                    total, parts = self.loss(**piece)
                (total / config.accumulate).backward()
            self._meter.add(parts, 1 / config.accumulate)
        self._meter.add({"grad_norm": parallel.clip_gradients(self.params.values(), config.clip)})
        self.optimisers.step(config.schedule.factor(self.step, config.steps))
        self.step += 1
        self.ema.update(self.step)
        self._meter.end_step(count * self.world)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean losses of the averaged weights over the validation set, in nats per token.

        The draws are the same at every call and do not depend on the training seed, only on the
        size of a micro-batch. `draft` is the masked-diffusion bound.
        """
        assert self.valid is not None
        self.part.eval()
        rows = self.config.batch_size // self.config.accumulate
        sums: dict[str, float | Tensor] = {}
        with self.ema.applied():
            for index, start in enumerate(range(0, len(self.valid), rows)):
                tokens, pad, _ = self.feed.to_device(self.valid[start : start + rows])
                generator = torch.Generator(self.device).manual_seed(key(0, VALID, index))
                drawn = self.objective.draw(tokens, Chance(generator), pad)
                for own, count in parallel.shares(len(tokens)):
                    with self._autocast():
                        _, parts = self.loss(**{name: each[own] for name, each in drawn.items()})
                    for name, part in parts.items():
                        sums[name] = sums.get(name, 0.0) + part * count
        parallel.forget_gathered(self.loss)
        means = parallel.mean(torch.stack([torch.as_tensor(total) for total in sums.values()]))
        return dict(zip(sums, (means / len(self.valid)).tolist(), strict=True))

    def save(self) -> None:
        """Writes the checkpoint and the averaged model to the folder, if there is one.

        Raises:
            CheckpointError: one could not be written; the state before it is intact.
        """
        if self.folder is not None:
            self._kept.write(self.folder, self._progress())

    def resume(self) -> None:
        """Takes over the latest readable checkpoint in the folder, if there is any.

        Raises:
            ValueError: it is of another model, objective or configuration, or none is readable.
        """
        about = self._kept.read(self.folder, self._identity()) if self.folder else None
        if about is not None:
            self.step, self.elapsed = about["step"], about["elapsed"]
            self.validation = about["validation"]

    def _read_meter(self) -> dict[str, float]:
        means = self._meter.read()
        if not all(map(math.isfinite, means.values())):
            raise RuntimeError(f"the loss or its gradient is not finite by step {self.step}")
        rest = {name: means.pop(name) for name in ("grad_norm", "tokens_per_second")}
        factor = self.config.schedule.factor(self.step - 1, self.config.steps)
        return with_bits(means) | rest | {"lr": self.config.adamw.lr * factor}

    def _progress(self) -> dict[str, Any]:
        progress = {"step": self.step, "elapsed": self.elapsed, "validation": self.validation}
        return {**progress, "run": self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {"objective": repr(self.objective), **self.config.to_dict(), **self._given}

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Within the block the model is as the run wants it: compiled, recomputing."""
        with ExitStack() as stack:
            if self.config.recompute:
                stack.enter_context(recomputed(self.model))
            if self.config.compile and self.device.type == "cuda":
                stack.enter_context(compiled(self.model))
            yield

    def _autocast(self) -> Any:
        enabled = self.config.autocast and self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


class Loss(nn.Module):
    """The loss as a module, which is what PyTorch can distribute."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, **drawn: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """As `Objective.loss`."""
        return self.objective.loss(self.model, **drawn)


def key(*counters: int) -> int:
    """A 63-bit seed that is a function of the counters, each at least 0."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _forked_rng(device: torch.device) -> Any:
    devices: Sequence[Any] = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices)
