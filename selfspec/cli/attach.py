"""`selfspec attach`: a causal head for a masked model of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selfspec.cli.common import Run, first_rank
from selfspec.cli.train import report


def attach(
    name: str,
    /,
    run: Run,
    data: str,
    out: Path,
    rows: Literal["packed", "lines"] = "packed",
    length: int | None = None,
    num: int = 4096,
    field: str = "text",
    unknown: Literal["skip", "refuse", "as-x"] = "skip",
    steps: int = 3000,
    batch_size: int = 64,
    accumulate: int = 1,
    blocks: int = 1,
    heads: int | None = None,
    tokenizer: str | None = None,
    mask_id: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    merge: bool = False,
    stop_after: float | None = None,
) -> None:
    """Train a head on a frozen masked model; the same command resumes a run that was stopped.

    Args:
        name: of a model on the Hugging Face Hub, or a folder.
        run: where and from which seed.
        data: a text file, .jsonl or FASTA; "self" to train on what the model itself draws.
        out: the folder of the run: rows, checkpoints and logs; the head is in its subfolder model.
        rows: documents packed one after another, or a row a document (a line of a text file).
        length: the longest row, with what stands around a sequence; at most 512 by default.
        num: rows to draw, with --data self.
        field: which field of a JSON document holds its text.
        unknown: what becomes of a sequence of FASTA with a residue that the model does not know.
        steps: optimiser steps.
        batch_size: rows a step.
        accumulate: micro-batches a step: less memory, the same gradient.
        blocks: of the head.
        heads: attention heads of the head; one for 32 channels by default.
        tokenizer: the name of another tokenizer than the model's own.
        mask_id: the mask token, where neither tokenizer nor config knows it.
        revision: of the model on the Hub.
        trust_remote_code: run Python code that comes with the model.
        merge: at the end, write trunk and head into one file, in the subfolder whole.
        stop_after: seconds after which to stop, with a checkpoint.
    """
    from selfspec import api

    if stop_after is not None and merge:
        raise ValueError("`merge` goes with a run to its end, got `stop_after` too")
    model = api.attach_head(
        name,
        blocks,
        heads=heads,
        tokenizer=tokenizer,
        mask_id=mask_id,
        revision=revision,
        trust_remote_code=trust_remote_code,
        seed=run.seed,
    )
    api.train_head(
        model,
        data,
        out,
        rows=rows,
        length=length,
        num=num,
        field=field,
        unknown=unknown,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        seed=run.seed,
        device=run.where(),
        stop_after=stop_after,
    )
    if not first_rank():
        return
    if merge:
        api.save(model, out / "whole", merge=True)
    report(out / "model", run)
