"""What is kept of a run, and when another one may go on from it.

`state/` holds weights, averages and moments, with what identifies the run: model, objective,
settings and data. A run that differs in one of them is another run, which is not resumed. `model/`
holds the averaged weights, to use.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from selfspec import checkpoint
from selfspec.model import SSMD
from selfspec.train import parallel
from selfspec.train.ema import EMA
from selfspec.train.optim import Optimisers
from selfspec.train.state import (
    Stored,
    Unreadable,
    checkpoints,
    explained,
    prefixed,
    read_about,
    read_state,
    under,
    write_state,
)

# Settings that a resumed run may change: but for rounding and dropout the weights do not depend on
# them. On fewer processes it may need more micro-batches.
FREE = {"accumulate", "compile", "log_every", "parallel", "recompute", "save_every", "valid_every"}

log = logging.getLogger("selfspec")


class Kept:
    """What a checkpoint holds.

    Args:
        model: that is trained.
        optimisers: its moments, and the live weights.
        ema: their averages.
    """

    def __init__(self, model: Any, optimisers: Optimisers, ema: EMA) -> None:
        self.model, self.optimisers, self.ema = model, optimisers, ema

    def write(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Writes the checkpoint and the averaged model.

        Args:
            folder: of the run.
            progress: in JSON types, with its `step`; `run` is what it is resumed as.

        Raises:
            CheckpointError: one could not be written; the state before it is intact.
        """
        tensors = {**self._weights(), **prefixed("moments", self.optimisers.state())}
        about = {**progress, "model": self._shape()}
        write_state(folder / "state", progress["step"], tensors, about)
        averages = parallel.on_first(self._averages())
        with parallel.together(), explained(folder / "model"):
            if parallel.group().rank == 0:
                named = {f"model.{name}": average for name, average in averages.items()}
                call = (folder / "model",), {"training": progress}
                functional_call(Saving(self.model), named, *call)

    def read(self, folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """Takes over the latest readable checkpoint, if there is any.

        Args:
            folder: of the run.
            run: what it is resumed as.

        Returns:
            Its progress.

        Raises:
            ValueError: it is of another model, objective or configuration, or none is readable.
        """
        problem = None
        for path in checkpoints(folder / "state"):
            try:
                progress = self._read(path, run)
            except Unreadable as error:
                problem = problem or error
                continue
            if problem and parallel.group().rank == 0:
                log.warning("%s; the run goes on from step %d", problem, progress["step"])
            return progress
        if problem:
            raise problem
        return None

    def _read(self, path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
        about = read_about(path)
        # Of checkpoints that do not say it, the parameters alone are compared.
        _check_same_run(about.get("model", {}), self._shape() if "model" in about else {}, path)
        _check_same_run(about["run"], run, path)
        tensors = read_state(path, partial(self._places, path))
        self.optimisers.load_state(under(tensors, "moments"))
        return about

    def _weights(self) -> dict[str, Tensor]:
        """Weights and averages, by their paths in a checkpoint."""
        params = {name: param.detach() for name, param in self.optimisers.params.items()}
        return {**prefixed("params", params), **prefixed("average", self._averages())}

    def _averages(self) -> dict[str, Tensor]:
        pairs = zip(self.optimisers.params.items(), self.ema.average, strict=True)
        return {name: parallel.sharded_like(part, param) for (name, param), part in pairs}

    def _places(self, path: Path, stored: Stored) -> dict[str, Tensor]:
        """The tensors that a checkpoint is read into: the live ones, and moments to be filled."""
        weights = self._weights()
        sizes = {n: about.size for n, about in stored.items() if not n.startswith("moments/")}
        own = {name: weight.shape for name, weight in weights.items()}
        if odd := sorted(sizes.items() ^ own.items()):
            name = odd[0][0]
            was, now = (list(each[name]) if name in each else "none" for each in (sizes, own))
            raise ValueError(f"`model` must be the model of {path}, got other parameters: "
                             f"{name.partition('/')[2]} was {was}, is {now}; train in another "
                             "folder")  # fmt: skip
        moments = {}
        for name, about in under(stored, "moments").items():
            param = self.optimisers.params[name.rsplit("/", 1)[0]]
            empty = torch.empty(about.size, dtype=about.properties.dtype, device=param.device)
            moments[name] = torch.empty_like(param) if about.size == param.shape else empty
        return {**weights, **prefixed("moments", moments)}

    def _shape(self) -> dict[str, Any]:
        """Of the head, by the names of arguments, and the mask that it is trained with."""
        if not isinstance(self.model, SSMD):
            return {}
        head = asdict(self.model.head.config) if self.model.head else {}
        return {"blocks": 0, **head, "mask_id": self.model.mask_id}


class Saving(nn.Module):
    """Saving a model as a module, so that it can be called with other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, folder: Path, **about: Any) -> None:
        """Writes the model, with the weights that it has in this call."""
        save: Any = getattr(self.model, "save", partial(checkpoint.save, self.model))  # type: ignore[arg-type]
        save(folder, **about)


def _check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    for name in dict.fromkeys(itertools.chain(old, new)):
        if name not in FREE and old.get(name) != new.get(name):
            raise ValueError(
                f"`{name}` must be {old.get(name)}, as in {path}, to resume it, "
                f"got {new.get(name)}; train in another folder to start afresh"
            )
