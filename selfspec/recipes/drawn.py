"""Rows that a model draws itself, kept as they are drawn.

    DIR/about.json         what is drawn: seed, length, fingerprints of trunk and vocabulary
    DIR/00000064.npy, …    the rows (n, L) of a batch, under the number of its first

Row r has the seed that it has in any run. A run that was killed while it drew goes on with the
next batch, also where it is to have fewer rows or more.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.files import write_bytes, write_json
from selfspec.generation import draw
from selfspec.hub import HubTrunk
from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.progress import tracked
from selfspec.prompts import layout
from selfspec.sampling import AnyOrderSampler

__all__ = ["check_facts", "own_rows"]


def own_rows(
    model: SSMD,
    num: int,
    room: int,
    seed: int,
    batch_size: int = 64,
    progress: bool = True,
    folder: Path | None = None,
) -> Iterator[np.ndarray]:
    """Rows of `room` tokens that the trunk draws, one token a pass, in a uniform order.

    Args:
        model: on a trunk of the Hub.
        num: rows.
        room: tokens a row, without what stands around them.
        seed: of the run.
        batch_size: rows that are drawn together.
        progress: show a bar.
        folder: where batches are kept; those that are there are not drawn again.

    Raises:
        ValueError: `num` below 2, or the folder holds rows of another model, seed or length.
        OSError: a batch could not be written; those before it are kept.
    """
    whole("num", num, least=2)
    if folder is not None:
        _claim(folder, model, room, seed)
    blank, _ = layout(None, None, model.mask_id, model.length, length=room, frame=model.frame)
    seeds = row_seeds(seed, num, model.device)
    with tracked(total=num, desc="drawing rows", unit="row", progress=progress) as bar:
        for start in range(0, num, batch_size):
            own = seeds[start : start + batch_size]
            path = None if folder is None else folder / f"{start:08d}.npy"
            rows = None if path is None else _kept(path, len(own), len(blank[0]))
            if rows is None:
                rows = _drawn(model, blank, own)
                if path is not None:
                    _keep(path, rows)
            bar.update(len(rows))
            yield from rows


def check_facts(about: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a file says what rows are made of; if it does, it must be these facts.

    Raises:
        ValueError: they are made of something else.
    """
    if not about.exists():
        return False
    old = json.loads(about.read_text())
    if old != facts:
        odd = next(key for key in {**old, **facts} if old.get(key) != facts.get(key))
        raise ValueError(f"`{odd}` must be {old.get(odd)}, as in {about}, to go on there, "
                         f"got {facts.get(odd)}; train in another folder")  # fmt: skip
    return True


def _claim(folder: Path, model: SSMD, room: int, seed: int) -> None:
    """Say what is drawn into the folder, or check that it already says so."""
    assert isinstance(model.trunk, HubTrunk)
    vocabulary = json.dumps(asdict(model.trunk.vocabulary)).encode()
    facts = {
        "seed": seed,
        "length": room + sum(map(len, model.frame)),
        "trunk": model.trunk.source.sha256,
        "mask_id": model.mask_id,
        "vocabulary": hashlib.sha256(vocabulary).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not check_facts(folder / "about.json", facts):
        write_json(folder / "about.json", facts)


def _drawn(model: SSMD, blank: Tensor, seeds: Tensor) -> np.ndarray:
    masked = blank.to(model.device).expand(len(seeds), -1)
    pad = torch.zeros_like(masked, dtype=torch.bool)
    return draw(AnyOrderSampler(model), masked, seeds, pad, len(seeds)).tokens.cpu().numpy()


def _kept(path: Path, rows: int, width: int) -> np.ndarray | None:
    """The first rows of a batch, if it has as many."""
    try:
        found = np.load(path).astype(np.int64)
    except (OSError, ValueError, EOFError):  # none there, or damaged: it is drawn again
        return None
    return found[:rows] if len(found) >= rows and found.shape[1:] == (width,) else None


def _keep(path: Path, rows: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, rows.astype(np.int32))
    write_bytes(path, file.getvalue())
