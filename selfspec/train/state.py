"""The training state on disk: one safetensors file, replaced as a whole.

    params/<name>                 the live weights, of what is trained
    average/<name>                their moving average
    moments/<name>/<moment>       the optimisers' state

Step, elapsed seconds and configuration are in the file's metadata. Everything else in a run is a
function of (seed, step), so nothing else has to be stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from selfspec.files import write_bytes


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the one before it is intact."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a failure to write within the block into a `CheckpointError` that names `path`."""
    try:
        yield
    except OSError as error:
        kept = "the one before it is intact" if path.exists() else "there is none before it"
        raise CheckpointError(f"{path} could not be written ({error}); {kept}") from error


def write_state(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes the training state beside `path` and renames it.

    Args:
        path: the file.
        tensors: all tensors by path, as in the head of this module.
        about: what goes to the metadata, in JSON types.

    Raises:
        CheckpointError: the file could not be written (a full disk, say); the old one is untouched.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blob = safetensors.torch.save(whole, {"about": json.dumps(about)})
    with explained(path):
        write_bytes(path, blob)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and metadata that `write_state` wrote.

    Raises:
        ValueError: the file is broken, or of something else.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
        return safetensors.torch.load_file(path), about
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a readable training state ({error!r})") from error


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below `prefix/`, without it."""
    start = prefix + "/"
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries with `prefix/` before each name; the inverse of `under`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}
