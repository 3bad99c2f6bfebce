"""Where the numbers of a run go: a bar, `log.jsonl`, and TensorBoard where it is installed.

A line of the log is one JSON object with `step` and `elapsed` (seconds) and either the means since
the last line (each loss in nats per token and, with `_bits`, in bits; `reward` and `steps` of a
policy; `grad_norm`, `tokens_per_second`; and AdamW's `lr` at this step) or a validation
(`valid_...`).

Where nobody sees the bar, lines on standard error say how far the run is: at every validation, and
after a minute without.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from selfspec.files import named, write_bytes
from selfspec.progress import tracked, watched
from selfspec.train.parallel import mean

NO_NATS = {"reward", "steps"}
"""What is no loss."""
SILENCE = 60
"""Seconds without a line that stands for the bar."""


def with_bits(losses: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """Each loss in nats per token and, as `<name>_bits`, in bits."""
    nats = {f"{prefix}{name}": value for name, value in losses.items()}
    bits = {f"{prefix}{n}_bits": v / math.log(2) for n, v in losses.items() if n not in NO_NATS}
    return nats | bits


class Meter:
    """Means over steps, kept on the device until read; its clock starts when it is made."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._tokens = 0
        self._start = time.monotonic()

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Adds values of this step, or a share of them."""
        for name, value in values.items():
            value = value.detach() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def end_step(self, tokens: int) -> None:
        """Ends a step that had this many tokens."""
        self._steps += 1
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """The means over the ranks too, and `tokens_per_second`; waits for the device."""
        sums = mean(torch.stack(list(self._sums.values()))).tolist()
        means = {name: s / self._steps for name, s in zip(self._sums, sums, strict=True)}
        return means | {"tokens_per_second": self._tokens / (time.monotonic() - self._start)}


class Report:
    """The log of a run.

    Args:
        folder: where `log.jsonl` and the TensorBoard files go; None writes none.
        step: the step at which the run starts; later lines, of a run that was killed after its
            last checkpoint, are dropped.
        steps: length of the run.
        progress: show a bar, or lines where nobody would see it.
    """

    def __init__(self, folder: Path | None, step: int, steps: int, progress: bool) -> None:
        self.bar = tracked(total=steps, initial=step, progress=progress, unit="step")
        self._lines, self._told = progress and not watched(), time.monotonic()
        self._shown: dict[str, str] = {}
        self._path = folder / "log.jsonl" if folder else None
        self._board = _tensorboard(folder, step) if folder else None
        if self._path:
            _drop_after(self._path, step)

    def write(self, step: int, elapsed: float, values: Mapping[str, float]) -> None:
        """Appends a line and refreshes the bar, or what stands for it."""
        if self._path:
            line = {"step": step, "elapsed": round(elapsed, 3), **values}
            with named(self._path), self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._shown |= {
            name.removesuffix("_bits"): f"{value:.3f}"
            for name, value in values.items()
            if name.endswith("_bits")
        }
        if "tokens_per_second" in values:
            self._shown["tok/s"] = f"{values['tokens_per_second']:,.0f}"
        self.bar.set_postfix(self._shown)
        validated = any(name.startswith("valid_") for name in values)
        if self._lines and (validated or time.monotonic() - self._told > SILENCE):
            self._tell(step, elapsed)

    def _tell(self, step: int, elapsed: float) -> None:
        """What the bar would show, as a line."""
        self._told = time.monotonic()
        shown = ", ".join(f"{name} {value}" for name, value in self._shown.items())
        print(f"step {step} of {self.bar.total}, {elapsed:.0f} s: {shown}", file=sys.stderr)

    def close(self, message: str | None = None) -> None:
        """Ends the bar, with one line below it, on standard error, if there is something to say."""
        self.bar.close()
        if self._board:
            self._board.close()
        if message:
            tqdm.write(message, file=sys.stderr)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_bytes(path, "".join(line + "\n" for line in kept).encode())
