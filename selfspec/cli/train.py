"""`selfspec train`: a model by a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from selfspec.cli.common import Run, check_folder, first_rank, to_json


def train(
    recipe: str,
    /,
    run: Run,
    data: Path,
    out: Path,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    parallel: Literal["ddp", "fsdp"] | None = None,
    recompute: bool = False,
    start: str | None = None,
    stop_after: float | None = None,
) -> None:
    """Train by a recipe; the same command resumes a run that was stopped.

    On several GPUs: torchrun --nproc-per-node 8 -m -- selfspec train RECIPE ...

    Args:
        recipe: its name; an unknown one lists them all.
        run: where and from which seed.
        data: a folder written by `selfspec prepare`; for uniref50 the FASTA itself.
        out: the folder of the run: checkpoints and logs; the model is in its subfolder `model`.
        steps: optimiser steps, instead of the recipe's.
        batch_size: rows a step, instead of the recipe's.
        accumulate: micro-batches a step: less memory, the same gradient.
        parallel: what several processes share: ddp only the gradients, fsdp all state.
        recompute: activation checkpointing: less memory, more work.
        start: the checkpoint to start from; for uniref50 a trunk, instead of the published one.
        stop_after: seconds after which to stop, with a checkpoint.
    """
    from selfspec import api, checkpoint, recipes
    from selfspec.train.parallel import processes

    if recipe not in (known := {**recipes.ALL, **recipes.ON_TRUNKS}):
        raise ValueError(f"`recipe` must be one of {', '.join(known)}, got {recipe!r}")
    check_folder(out)
    asked = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate,
             "parallel": parallel, "recompute": recompute or None}  # fmt: skip
    settings = {name: value for name, value in asked.items() if value is not None}
    if recipe in recipes.ON_TRUNKS:
        given = {"trunk": start} if start else {}
        make = recipes.ON_TRUNKS[recipe]
        with processes(run.where()):
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
    if first_rank():
        report(out / "model", run, characters_per_token(data))


def report(model: Path, run: Run, characters: float = 1.0) -> None:
    """What the last checkpoint of a run says of it; `characters` a token has."""
    from selfspec import checkpoint

    done = checkpoint.load_config(model)["training"]
    losses = done["validation"]
    bits = {name: value / characters / math.log(2) for name, value in losses.items()}
    if run.json:
        more = {} if characters == 1 else {"bits_per_character": bits}
        return print(to_json({"model": str(model), "step": done["step"], **losses, **more}))
    nats = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    print(f"{model}: step {done['step']}, validation in nats per token: {nats or 'none'}")
    if losses and characters != 1:
        each = ", ".join(f"{name} {value:.4f}" for name, value in bits.items())
        print(f"in bits per character: {each}")


def characters_per_token(data: Path) -> float:
    """Of the validation split of a corpus of subwords; 1 for other corpora."""
    from selfspec.data.bpe import BPETokenizer
    from selfspec.data.corpus import open_corpus

    if not data.is_dir():
        return 1.0
    tokenizer, stores = open_corpus(data)
    if not isinstance(tokenizer, BPETokenizer) or "valid" not in stores:
        return 1.0
    tokens = stores["valid"].tokens
    return tokenizer.count_characters(tokens) / len(tokens)
