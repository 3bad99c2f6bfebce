"""What a training run is made of, as data.

The learning rate of step k (counted from 0) is `lr · schedule.factor(k, steps)`. Every schedule
first climbs linearly over `warmup` steps, `(k + 1) / warmup`, and then follows its own rule; with
`t = (k - warmup) / (steps - warmup)` the share of the rest that is over:

    Cosine               floor + (1 - floor) · (1 + cos(π t)) / 2
    WarmupStableDecay    1 until the last `decay` of all steps, then linear down to `floor`
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from selfspec.checks import whole

Parallel = Literal["ddp", "fsdp"]
PARALLEL = get_args(Parallel)


def require(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises a `ValueError` that names argument, rule and value unless `condition` holds."""
    if not condition:
        raise ValueError(f"`{name}` must be {rule}, got {value}")


class Schedule(Protocol):
    """A learning-rate schedule: a factor in [0, 1] for each step."""

    def factor(self, step: int, steps: int) -> float:
        """The share of the full learning rate used in `step` (from 0) of `steps`."""
        ...


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine from 1 down to `floor`."""

    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        whole("warmup", self.warmup, least=0)
        require(0 <= self.floor <= 1, "floor", "between 0 and 1", self.floor)

    def factor(self, step: int, steps: int) -> float:
        """The share of the full learning rate used in `step` (from 0) of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        t = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * t)) / 2


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, a plateau at 1, then linear down to `floor` over the last `decay` share."""

    warmup: int = 0
    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        whole("warmup", self.warmup, least=0)
        require(0 <= self.decay <= 1, "decay", "between 0 and 1", self.decay)
        require(0 <= self.floor <= 1, "floor", "between 0 and 1", self.floor)

    def factor(self, step: int, steps: int) -> float:
        """The share of the full learning rate used in `step` (from 0) of `steps`."""
        climb = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = max(0, steps - step) / max(1.0, self.decay * steps)
        return min(climb, self.floor + (1 - self.floor) * min(1.0, left))


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW. Weight decay falls on matrices only, not on gains, biases and other vectors."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    eps: float = 1e-8

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "positive", self.lr)
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)


@dataclass(frozen=True)
class MuonConfig:
    """Muon for the hidden matrices: momentum, made orthogonal by five Newton-Schulz steps.

    The update is scaled by `0.2 · √max(rows, columns)`, so that its root mean square is that of an
    AdamW step and `lr` has AdamW's scale (Liu et al., Muon is Scalable for LLM Training, 2025).
    """

    lr: float = 2e-3
    momentum: float = 0.95
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "positive", self.lr)
        require(0 <= self.momentum < 1, "momentum", "at least 0 and below 1", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        steps: optimiser steps.
        batch_size: rows a step, over all ranks and micro-batches.
        seed: seed of the data order and of every draw.
        accumulate: micro-batches a step; it changes memory, not the gradient.
        adamw: optimiser of everything that `muon` leaves.
        muon: optimiser of the hidden matrices; None gives them to AdamW too.
        schedule: factor on both learning rates.
        clip: largest gradient norm.
        ema_decay: decay of the averaged weights (0: no average); see `ema.py`.
        autocast: bfloat16 autocast on CUDA. Elsewhere the weights' own precision is used.
        compile: compile the transformer blocks on CUDA, for as long as the run lasts.
        recompute: keep the inputs of a block only, and compute its inside again for the gradient
            (activation checkpointing): less memory, about a third more work.
        parallel: what several processes share, see `parallel.py`; one process ignores it.
        log_every: steps between two readings of the losses (the host waits for the device there).
        valid_every: steps between two validations (the last step always validates).
        save_every: steps between two checkpoints (the last step always saves).
    """

    steps: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    adamw: AdamWConfig = field(default_factory=AdamWConfig)
    muon: MuonConfig | None = None
    schedule: Schedule = field(default_factory=Cosine)
    clip: float = 1.0
    ema_decay: float = 0.999
    autocast: bool = True
    compile: bool = True
    recompute: bool = False
    parallel: Parallel = "ddp"
    log_every: int = 50
    valid_every: int = 1000
    save_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "valid_every", "save_every"):
            whole(name, getattr(self, name), least=1)
        require(self.parallel in PARALLEL, "parallel", f"one of {PARALLEL}", repr(self.parallel))
        whole("seed", self.seed, least=0)
        require(self.clip > 0, "clip", "positive", self.clip)
        require(0 <= self.ema_decay < 1, "ema_decay", "at least 0 and below 1", self.ema_decay)
        require(
            self.batch_size % self.accumulate == 0,
            "batch_size",
            f"a multiple of `accumulate` = {self.accumulate}",
            self.batch_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration in JSON types; a schedule becomes its class name and fields."""
        schedule = {"kind": type(self.schedule).__name__, **vars(self.schedule)}
        values = dataclasses.asdict(self) | {"schedule": schedule}
        values["adamw"]["betas"] = list(self.adamw.betas)
        return values
