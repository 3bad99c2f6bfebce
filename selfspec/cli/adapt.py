"""`selfspec adapt`: a masked diffusion from a causal language model of the Hub."""

from __future__ import annotations

from selfspec.cli.common import HubRun, Run, check_folder, first_rank
from selfspec.cli.train import report


def adapt(
    name: str,
    /,
    run: Run,
    hub: HubRun,
    data: str,
    steps: int = 10_000,
    batch_size: int = 256,
) -> None:
    """Train a causal language model on as a masked diffusion; the same command resumes a run.

    The trained model is one that `selfspec attach` takes.

    Args:
        name: of a model on the Hugging Face Hub, a folder, or a .gguf file.
        run: where and from which seed.
        hub: rows, run and model.
        data: a text file, .jsonl or FASTA.
        steps: optimiser steps.
        batch_size: rows a step.
    """
    from selfspec import api

    check_folder(hub.out)
    model = api.adapt_causal(name, tokenizer=hub.tokenizer, revision=hub.revision)
    settings = hub.settings(run)
    api.train_adapted(model, data, hub.out, steps=steps, batch_size=batch_size, **settings)
    if first_rank():
        report(hub.out / "model", run)
