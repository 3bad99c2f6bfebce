"""Runs from their beginning to their end: by a recipe, from a model, of a head alone."""

from __future__ import annotations

import os
from typing import Any

import torch

from selfspec.checks import of_kind
from selfspec.data.corpus import open_corpus
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.recipes.adapt_ar import adapt_ar
from selfspec.recipes.attach import attach
from selfspec.recipes.recipe import Recipe
from selfspec.train import Objective, Trainer
from selfspec.train.parallel import processes, together

__all__ = ["finish", "train", "train_adapted", "train_head"]

Path = str | os.PathLike[str]


def train(
    what: Recipe | SSMD | AutoregressiveModel,
    data: Path,
    folder: Path | None = None,
    *,
    start: Any = None,
    objective: Objective | None = None,
    device: torch.device | str | None = None,
    stop_after: float | None = None,
    progress: bool = True,
    **settings: Any,
) -> SSMD | AutoregressiveModel:
    """Train by a recipe, or train a model further; under torchrun with all its processes.

    Args:
        what: a recipe; or a model, of which a copy is trained.
        data: a corpus as `selfspec prepare` writes it.
        folder: for checkpoints and logs; a run found there is resumed.
        start: with a recipe: a model or the folder of a checkpoint to start from.
        objective: with a model: what to minimise; by default the loss of its kind.
        device: by default CUDA if available.
        stop_after: seconds after which to stop with a checkpoint, the run unfinished.
        progress: show a bar with losses, speed and time left.
        **settings: of `TrainConfig`; they override the recipe's. A model needs `steps` and
            `batch_size`.

    Returns:
        The trained model, with the averaged weights. With `parallel="fsdp"` its weights are still
        sharded over the processes; the whole model is in the folder.

    Raises:
        ValueError: bad data, settings or start, or an argument that goes with the other kind.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written, and the same call resumes.
    """
    of_kind("what", what, Recipe | SSMD | AutoregressiveModel, "a recipe or a model")
    if isinstance(what, Recipe):
        if objective is not None:
            raise ValueError("`objective` goes with a model: a recipe has its own")
        recipe = what.override(**settings)
    else:
        if start is not None:
            raise ValueError("`start` goes with a recipe: a model is its own start")
        recipe, start = Recipe.of(what, objective, **settings), what
    with processes(device):
        with together():
            tokenizer, stores = open_corpus(data, verify=True)
            if "train" not in stores:
                raise ValueError(
                    f"`data` must have a split 'train', got {sorted(stores)} in {data}"
                )
        recipe = recipe.read_by(tokenizer)
        trainer = recipe.trainer(folder, stores["train"], stores.get("valid"), start, device)
        return finish(trainer, stop_after, progress)


def train_head(
    model: SSMD,
    data: Path,
    folder: Path,
    *,
    stop_after: float | None = None,
    progress: bool = True,
    **options: Any,
) -> SSMD:
    """Train the head of a model from `attach_head` on its frozen trunk, in place.

    Args:
        model: from `attach_head`.
        data: a text file, `.jsonl` or FASTA, or "self": what the model itself draws.
        folder: for rows, checkpoints and logs; a run found there is resumed.
        stop_after, progress: as in `train`.
        **options: `rows`, `length`, `num`, `field`, `unknown`, `device` and the settings of the
            run, see `recipes.attach`.

    Returns:
        The model, with the averaged weights of its head.

    Raises:
        ValueError: bad data or settings. OSError: no such file.
        RuntimeError: another run uses the folder, or the loss is not finite.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written, and the same call resumes.
    """
    with processes(options.get("device")):
        trainer = attach(model, data, folder, progress=progress, **options)
        return finish(trainer, stop_after, progress)


def train_adapted(
    model: SSMD,
    data: Path,
    folder: Path,
    *,
    stop_after: float | None = None,
    progress: bool = True,
    **options: Any,
) -> SSMD:
    """Train all weights of a model from `adapt_causal`, in place; then use `attach_head`.

    Arguments, result and errors as `train_head`; the options are those of `recipes.adapt_ar`.
    """
    with processes(options.get("device")):
        trainer = adapt_ar(model, data, folder, progress=progress, **options)
        return finish(trainer, stop_after, progress)


def finish(trainer: Trainer, stop_after: float | None = None, progress: bool = True) -> Any:
    """Train to the last step, or for so many seconds; returns the model.

    Raises:
        KeyboardInterrupt: Ctrl-C; the checkpoint is written, and the same call resumes.
    """
    if not trainer.run(stop_after, progress) and stop_after is None:
        raise KeyboardInterrupt
    return trainer.model
