"""What the verbs share: flags, devices, how results are written."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from selfspec.data.corpus import Store
    from selfspec.data.tokenizers import Tokenizer
    from selfspec.model import SSMD, AutoregressiveModel
    from selfspec.sampling import Sampler

OrderName = Literal["uniform", "van-der-corput", "respaced", "cells"]


@dataclass(frozen=True)
class Run:
    """Flags of every verb."""

    device: str = "auto"
    """where to compute, such as cpu or cuda:1; auto is CUDA if any, under torchrun a GPU each."""
    seed: int = 0
    """of the run: the same seed gives the same result on the same machine."""
    json: bool = False
    """print figures as one JSON object."""

    def where(self) -> str:
        """The device, checked.

        Raises:
            ValueError: this machine has no such device, or it has no float64.
        """
        import torch

        if self.device == "auto":
            if not torch.cuda.is_available():
                return "cpu"
            return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
        try:
            # Laws are computed in float64; results come back.
            torch.empty(0, device=self.device, dtype=torch.float64).cpu()
        except (AssertionError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"`device` must be one of this machine, got {self.device!r} ({reason})"
            ) from error
        return self.device


@dataclass(frozen=True)
class Loading:
    """How the trunk of a checkpoint is found that holds a head alone."""

    trunk: str | None = None
    """name or folder of a head's trunk, where it is not what the checkpoint says."""
    trust_remote_code: bool = False
    """run Python code that comes with that trunk."""

    def model(self, checkpoint: str, device: str) -> SSMD:
        """The model of a checkpoint, see `selfspec.load`."""
        from selfspec import api

        options = {"trunk": self.trunk, "trust_remote_code": self.trust_remote_code}
        return api.load(checkpoint, device, **options)


@dataclass(frozen=True)
class Sampling:
    """How to sample: a budget, a quality, or raw settings."""

    nfe: float | None = None
    """the most function evaluations a sample, on average."""
    quality: Literal["fast", "balanced", "best"] | None = None
    """a named point of the checkpoint's calibration table; balanced by default."""
    order: OrderName | None = None
    """the rule for the order in which positions are revealed."""
    dtau: float | None = None
    """a window that advances this much time a pass, in (0, 1]."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """of that time."""
    window: int | None = None
    """a constant window of this many tokens, instead of --dtau."""
    rounds: int | None = None
    """the most passes of the causal head per trunk pass."""
    temperature: float = 1.0
    """divides the logits of draft and target alike."""
    top_p: float = 1.0
    """nucleus of draft and target alike."""

    def sampler(
        self, model: SSMD, order: OrderName | None = None, likelihood: bool = False
    ) -> Sampler:
        """The sampler that the flags ask for; `order` is used where none is given.

        One whose samples have a `likelihood`, if that is asked for.
        """
        from selfspec.calibration import ORDERS, WINDOWS, choose

        if self.dtau is not None and self.window is not None:
            raise ValueError("give `dtau` or `window`, got both")
        if self.dtau is None and self.schedule != "cosine":
            raise ValueError(f"`schedule` needs `dtau`, got {self.schedule} without")
        name = self.order or order
        return choose(
            model,
            self.nfe,
            self.quality,
            ORDERS[name]() if name else None,
            self.window if self.dtau is None else WINDOWS[self.schedule](self.dtau),
            self.rounds,
            self.temperature,
            self.top_p,
            likelihood,
        )


@dataclass(frozen=True)
class HubRun:
    """A run that trains a model of the Hub on a file."""

    out: Path
    """the folder of the run: rows, checkpoints, logs, and in its subfolder model the result."""
    rows: Literal["packed", "lines"] | None = None
    """documents packed one after another, or a row each (the default for FASTA)."""
    length: int | None = None
    """the longest row, with what stands around a sequence; at most 512 by default."""
    field: str = "text"
    """which field of a JSON document holds its text."""
    accumulate: int = 1
    """micro-batches a step: less memory, the same gradient."""
    tokenizer: str | None = None
    """the name of another tokenizer than the model's own."""
    revision: str | None = None
    """of the model on the Hub."""
    stop_after: float | None = None
    """seconds after which to stop, with a checkpoint."""

    def settings(self, run: Run) -> dict[str, Any]:
        """What `api.train_head` and `api.train_adapted` take alike."""
        names = ("rows", "length", "field", "accumulate", "stop_after")
        own = {name: getattr(self, name) for name in names}
        return own | {"seed": run.seed, "device": run.where()}


def check_tokens(tokenizer: Tokenizer, store: Store, model: SSMD) -> None:
    """Raises a `ValueError` where the tokens of a corpus are not the model's."""
    from selfspec.data.tokenizers import of_another

    if store.vocab_size != model.vocab_size or of_another(tokenizer, model.tokenizer):
        raise ValueError(f"`data` must be of the model's {model.vocab_size} tokens, got other "
                         f"{store.vocab_size} in {store.path.parent}")  # fmt: skip


def load_judge(name: str, model: SSMD) -> AutoregressiveModel:
    """A judge on the model's device.

    Raises:
        ValueError: there is none of this name, or it reads other tokens than the model's.
    """
    from selfspec import api

    try:
        judge = api.load_judge(name, model.device)
    except ValueError as error:
        raise ValueError(f"`judge` cannot be loaded: {error}") from error
    if judge.trunk.vocab_size != model.vocab_size:
        raise ValueError(f"`judge` must have the model's {model.vocab_size} tokens, "
                         f"got {judge.trunk.vocab_size}")  # fmt: skip
    return judge


def first_rank() -> bool:
    """Whether this process is the one that tells the user, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def check_out(out: Path | None) -> None:
    """What `write` could not write to, before hours of work; nothing is made yet.

    Raises:
        ValueError: it is a folder, or is to lie in a file. OSError: it is read-only.
    """
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"`out` must be a file, got the folder {out}")
    parent = _parent(out)
    replaced = out.is_file() or not out.exists()  # by a rename; devices and pipes are written to
    if not os.access(parent if replaced else out, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))


def check_folder(out: Path) -> None:
    """What could not become a folder, before hours of work; nothing is made yet.

    Raises:
        ValueError: it is a file, or is to lie in one.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"`out` must be a folder, got the file {out}")
    _parent(out)


def write(text: str, out: Path | None) -> None:
    """To a file, whole or not at all, or else to standard output: also where the file fails.

    Raises:
        OSError: the file could not be written, and the text went to standard output.
    """
    if out is None:
        print(text)
        return
    try:
        _write_file(text, out)
    except BrokenPipeError:  # a reader that has gone wants no more
        raise
    except OSError as error:  # what took hours to make is not to be lost
        print(text, flush=True)
        error.strerror = f"{error.strerror or error}; the result is on standard output"
        raise


def to_json(values: Any) -> str:
    """JSON text; what is no number becomes null."""
    return json.dumps(_finite(values), indent=1)


def one_line(settings: Mapping[str, Any]) -> str:
    """Settings of a sampler for people.

    >>> one_line({"sampler": "speculative", "window": {"kind": "cosine", "dtau": 0.04}})
    'speculative cosine dtau=0.04'
    """
    parts = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            parts.append(one_line(value))
        else:
            parts.append(value if isinstance(value, str) else f"{name}={value:g}")
    return " ".join(parts)


def note(text: str) -> None:
    """A line for the user beside the results: on standard error."""
    print(text, file=sys.stderr)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Aligned columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for cells in [header, *rows]:
        first, *others = zip(cells, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]))
    return "\n".join(line.rstrip() for line in lines)


def _parent(out: Path) -> Path:
    """The nearest folder that exists, of those that `out` is to lie in."""
    found = next(folder for folder in out.absolute().parents if folder.exists())
    if not found.is_dir():
        raise ValueError(f"`out` must lie in a folder, got {out}, which would lie in a file")
    return found


def _write_file(text: str, out: Path) -> None:
    """Text and a line break; `.gz` and `.xz` packed."""
    from selfspec.data.packed import packed
    from selfspec.files import named, write_bytes

    if out.exists() and not out.is_file():  # a device or a pipe: it stays what it is
        with named(out):
            out.write_text(f"{text}\n", encoding="utf-8")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, packed(out, f"{text}\n".encode()))


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
