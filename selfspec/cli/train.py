"""`selfspec train`: a model by a recipe."""

from __future__ import annotations

from pathlib import Path

from selfspec.cli.common import Run, to_json


def train(
    recipe: str,
    /,
    run: Run,
    data: Path,
    out: Path,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    start: str | None = None,
    stop_after: float | None = None,
) -> None:
    """Train by a recipe; the same command resumes a run that was stopped.

    Args:
        recipe: its name; an unknown one lists them all.
        run: where and from which seed.
        data: a folder written by `selfspec prepare`; for uniref50 the FASTA itself.
        out: the folder of the run: checkpoints and logs; the model is in its subfolder `model`.
        steps: optimiser steps, instead of the recipe's.
        batch_size: rows a step, instead of the recipe's.
        accumulate: micro-batches a step: less memory, the same gradient.
        start: the checkpoint to start from; for uniref50 a trunk, instead of the published one.
        stop_after: seconds after which to stop, with a checkpoint.
    """
    from selfspec import api, checkpoint, recipes

    if recipe not in (known := {**recipes.ALL, **recipes.ON_TRUNKS}):
        raise ValueError(f"`recipe` must be one of {', '.join(known)}, got {recipe!r}")
    asked = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate}
    settings = {name: value for name, value in asked.items() if value is not None}
    if recipe in recipes.ON_TRUNKS:
        given = {"trunk": start} if start else {}
        make = recipes.ON_TRUNKS[recipe]
        trainer = make(data, out, **given, device=run.where(), seed=run.seed, **settings)
        recipes.finish(trainer, stop_after)
    else:
        api.train(
            recipes.ALL[recipe](seed=run.seed, **settings),
            data,
            out,
            start=checkpoint.resolve(start) if start else None,
            device=run.where(),
            stop_after=stop_after,
        )
    report(out / "model", run)


def report(model: Path, run: Run) -> None:
    """What the last checkpoint of a run says of it."""
    from selfspec import checkpoint

    done = checkpoint.load_config(model)["training"]
    losses = done["validation"]
    if run.json:
        return print(to_json({"model": str(model), "step": done["step"], **losses}))
    nats = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    print(f"{model}: step {done['step']}, validation in nats per token: {nats or 'none'}")
