"""`selfspec adapt`: a masked diffusion from a causal language model of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selfspec.cli.common import Run, first_rank
from selfspec.cli.train import report


def adapt(
    name: str,
    /,
    run: Run,
    data: str,
    out: Path,
    rows: Literal["packed", "lines"] = "packed",
    length: int | None = None,
    field: str = "text",
    steps: int = 10_000,
    batch_size: int = 256,
    accumulate: int = 1,
    tokenizer: str | None = None,
    revision: str | None = None,
    stop_after: float | None = None,
) -> None:
    """Train a causal language model on as a masked diffusion; the same command resumes a run.

    Args:
        name: of a model on the Hugging Face Hub, a folder, or a .gguf file.
        run: where and from which seed.
        data: a text file, .jsonl or FASTA.
        out: the folder of the run: rows, checkpoints and logs; the model is in its subfolder model,
            which `selfspec attach` takes.
        rows: documents packed one after another, or a row a document (a line of a text file).
        length: the longest row and sample; at most 512 by default.
        field: which field of a JSON document holds its text.
        steps: optimiser steps.
        batch_size: rows a step.
        accumulate: micro-batches a step: less memory, the same gradient.
        tokenizer: the name of another tokenizer than the model's own.
        revision: of the model on the Hub.
        stop_after: seconds after which to stop, with a checkpoint.
    """
    from selfspec import api

    model = api.adapt_causal(name, tokenizer=tokenizer, revision=revision)
    api.train_adapted(
        model,
        data,
        out,
        rows=rows,
        length=length,
        field=field,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        seed=run.seed,
        device=run.where(),
        stop_after=stop_after,
    )
    if first_rank():
        report(out / "model", run)
