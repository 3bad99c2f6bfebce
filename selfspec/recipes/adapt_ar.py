"""A causal language model of the Hub, trained on as a masked diffusion.

The model of `hub.adapt_causal` (attention without direction, a mask token, states that still
predict the next position) is trained whole by the masked-diffusion bound; then it is a trunk like
any other:

    selfspec adapt HuggingFaceTB/SmolLM2-135M --data books.jsonl --out runs/trunk
    selfspec attach runs/trunk/model --data books.jsonl --out runs/head

Everything moves, at AdamW's pace: weights that were trained for long want steps of their own sizes.
Rate, batch, steps and decay are this project's choice. **Only short runs on a CPU have been made so
far**: their figures are in docs/adapters.md.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from selfspec.hub.causal import CausalTrunk
from selfspec.inputs import check_model
from selfspec.model import SSMD
from selfspec.recipes.rows import Rows, read_data
from selfspec.train import AdamWConfig, Cosine, Diffusion, TrainConfig, Trainer

__all__ = ["adapt_ar", "settings"]


def settings(steps: int = 10_000, batch_size: int = 256, **changes: Any) -> TrainConfig:
    """AdamW on half a cosine, down to a tenth."""
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        adamw=AdamWConfig(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.01),
        schedule=Cosine(warmup=min(500, steps // 10), floor=0.1),
    )
    return replace(config, **changes)


def adapt_ar(
    model: SSMD,
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    rows: Rows | None = None,
    length: int | None = None,
    field: str = "text",
    device: torch.device | str | None = None,
    progress: bool = True,
    **changes: Any,
) -> Trainer:
    """A trainer of the whole model; the same call resumes a run.

    Args:
        model: from `adapt_causal`; it is trained in place.
        data, folder, rows, field: as in `recipes.attach`.
        length: the longest row, which becomes the model's length; that of the causal model, at most
            512, by default.
        device: where to train; CUDA if there is one.
        progress: show bars.
        **changes: of `settings`.

    Raises:
        ValueError: another model, bad data, or a folder whose rows were made of something else.
        OSError: no such file.
    """
    check_model(model)
    if not isinstance(model.trunk, CausalTrunk) or model.head is not None:
        raise ValueError("`model` must be one from `adapt_causal`, without head, got another")
    if data == "self":
        raise ValueError("`data` must be a file: an adapted model cannot write yet, got 'self'")
    config = settings(**changes)
    length = min(model.length, 512) if length is None else length
    found = read_data(model, data, folder, config, rows, length, 0, field, "skip", device, progress)
    model.trunk.length = length  # beyond it the model has not learned to draft
    objective = Diffusion(observed=found.observed)
    return Trainer(model, objective, config, found.batches, folder, found.valid)
