"""The head of a model of the Hub, trained on its frozen trunk.

Its rows are made of a file, or drawn by the model itself (`rows.py`). With `self` the head learns
the any-order conditionals of the trunk itself instead of those of the data: it can get as good as
the trunk at full cost, and no better, and what the trunk gets wrong it learns too. Drawing n rows
of L tokens costs n · L rows of trunk passes, where training on them for a step costs one a row.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from selfspec.hub import HubTrunk
from selfspec.inputs import check_model
from selfspec.model import SSMD
from selfspec.recipes.rows import Rows, read_data
from selfspec.train import (
    AdamWConfig,
    Diffusion,
    MuonConfig,
    TrainConfig,
    Trainer,
    WarmupStableDecay,
)

__all__ = ["attach", "settings"]


def settings(steps: int = 3000, batch_size: int = 64, **changes: Any) -> TrainConfig:
    """As the head of books27: Muon, a constant rate with a linear end."""
    warmup = min(200, steps // 10)
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        adamw=AdamWConfig(lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
        muon=MuonConfig(lr=3e-3, weight_decay=0.01),
        schedule=WarmupStableDecay(warmup=warmup, decay=0.3),
    )
    return replace(config, **changes)


def attach(
    model: SSMD,
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    rows: Rows | None = None,
    length: int | None = None,
    num: int = 4096,
    field: str = "text",
    unknown: str = "skip",
    window_weight: float = 0.0,
    device: torch.device | str | None = None,
    progress: bool = True,
    **changes: Any,
) -> Trainer:
    """A trainer of the head alone; the same call resumes a run.

    Args:
        model: from `attach_head`; it is trained in place.
        data: a text file (a document a line for "lines", one in all for "packed"), a `.jsonl` file,
            which may end in .gz or .xz, or FASTA (`data.fasta.SUFFIXES`); "self" for none.
        folder: of the run; the rows are kept in its subfolder `data`.
        rows: how documents become rows; by default "lines" for FASTA, else "packed".
        length: the longest row, with what stands around it; the model's length, at most 512, by
            default.
        num: rows to draw, with "self".
        field: of a JSON document, that holds its text.
        unknown: what becomes of a sequence of FASTA with a residue that the model does not know:
            "skip", "refuse" or "as-x", see `data.fasta.Unknown`.
        window_weight: as in `Diffusion`.
        device: where to train; CUDA if there is one.
        progress: show bars.
        **changes: of `settings`.

    Raises:
        ValueError: a model without head or whose trunk is not of the Hub, bad data, or a folder
            whose rows were made of something else.
        OSError: no such file.
        RuntimeError: another run is making rows in the folder.
    """
    check_model(model)
    if not isinstance(model.trunk, HubTrunk) or model.head is None:
        raise ValueError("`model` must be one from `attach_head`, with a head, got another")
    config = settings(**changes)
    found = read_data(
        model, data, folder, config, rows, length, num, field, unknown, device, progress
    )
    objective = Diffusion(True, window_weight, observed=found.observed)
    return Trainer(model, objective, config, found.batches, folder, found.valid)
