"""The training state on disk: a folder for each of the last two checkpoints, named by its step.

    about.json                    step, elapsed seconds, validation, configuration; the files
    *.safetensors                 one file a rank, what it holds of

        params/<name>                 the live weights, of what is trained
        average/<name>                their moving average
        moments/<name>/<moment>       the optimisers' state

Everything else in a run is a function of (seed, step), so nothing else has to be stored. The files
are those of `torch.distributed.checkpoint`, which reads them on any number of ranks.

All ranks write into a folder that ends in `.part`, and rank 0 renames it: under its name a
checkpoint is whole. Should the disk damage the last one, the one before it is there.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from torch import Tensor

from selfspec.files import write_json
from selfspec.train.parallel import RankError, group, of_first, together

Value = TypeVar("Value")
Stored = Mapping[str, Any]
"""What a checkpoint says of its tensors, by path: `size` and `properties.dtype` of each."""


class CheckpointError(RankError):
    """A checkpoint could not be written; the one before it is intact."""


class Unreadable(ValueError):
    """A checkpoint is broken, or the folder is of something else."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a failure to write within the block into a `CheckpointError` that names `path`."""
    try:
        yield
    except OSError as error:
        before = any(entry.suffix != ".part" for entry in path.glob("*"))
        kept = "the one before it is intact" if before else "there is none before it"
        raise CheckpointError(f"{path} could not be written ({error}); {kept}") from error


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the latest first; the same list on every rank."""
    return of_first(
        lambda: sorted((p for p in folder.glob("*") if p.name.isdecimal()), reverse=True)
    )


def write_state(
    folder: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Writes a checkpoint; all ranks call it.

    Args:
        folder: of the checkpoints; the last but one is deleted.
        step: its name.
        tensors: by path, as in the head of this module; sharded ones, or equal ones on every rank.
        about: what goes to `about.json`, in JSON types.

    Raises:
        CheckpointError: it could not be written (a full disk, say); the old ones are untouched.
    """
    path = folder / f"{step:08d}"
    part = path.with_suffix(".part")
    first = group().rank == 0
    try:
        with together(), explained(folder):
            if first:
                _delete(part)
                part.mkdir(parents=True)
        with explained(folder):
            _dcp("save", part, tensors)
        with together(), explained(folder):
            if first:
                files = sorted(file.name for file in part.glob("*.safetensors"))
                write_json(part / "about.json", {**about, "files": files})
                _delete(path)
                part.replace(path)
    finally:
        if first:
            shutil.rmtree(part, ignore_errors=True)
    if first:
        found = _numbered(folder)
        before = [other for other in found if other < path]
        for other in {*found} - {path, *before[:1]}:  # a later one was not readable
            shutil.rmtree(other, ignore_errors=True)


def read_about(path: Path) -> dict[str, Any]:
    """`about.json` of a checkpoint; all ranks call it.

    Raises:
        Unreadable: there is none, it is broken, or a file that it names is missing.
    """
    with _readable(path), together():
        about = json.loads((path / "about.json").read_bytes())
        for name in about["files"]:
            (path / name).stat()
        return about


def read_state(path: Path, place: Callable[[Stored], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a checkpoint; all ranks call it.

    Args:
        path: the checkpoint.
        place: from what is stored, by path, the tensors to read it into; they may be sharded.

    Raises:
        Unreadable: a file is broken or missing, or of something else.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    with _readable(path), together():
        stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    tensors = place(stored)
    with _readable(path):
        _dcp("load", path, tensors)
    return tensors


def under(tensors: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """The entries below `prefix/`, without it."""
    start = prefix + "/"
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def prefixed(prefix: str, tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The entries with `prefix/` before each name; the inverse of `under`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _dcp(verb: str, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Saves or loads by PyTorch's distributed checkpoints, in safetensors.

    Raises:
        OSError: a rank failed; the same on all of them.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import (
        HuggingFaceStorageReader,
        HuggingFaceStorageWriter,
    )
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():  # that one process is alone is no news
        warnings.filterwarnings("ignore", "torch.distributed is")
        try:
            if verb == "save":
                writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
                save(dict(tensors), storage_writer=writer)
            else:
                load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)))
        except CheckpointException as error:  # no `Exception`: it would pass by every handler
            rank, (cause, _) = min(error.failures.items())
            where = f" (rank {rank})" if group().world > 1 else ""
            raise OSError(f"{cause}{where}") from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns a failure to read within the block into an `Unreadable` that names `path`."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, ValueError, RankError) as error:
        raise Unreadable(f"{path}: not a readable training state ({error})") from error


def _numbered(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*") if path.name.isdecimal()), reverse=True)


def _delete(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
