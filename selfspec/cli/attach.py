"""`selfspec attach`: a causal head for a masked model of the Hub."""

from __future__ import annotations

from typing import Literal

from selfspec.cli.common import HubRun, Run, check_folder, first_rank
from selfspec.cli.train import report


def attach(
    name: str,
    /,
    run: Run,
    hub: HubRun,
    data: str,
    num: int = 4096,
    unknown: Literal["skip", "refuse", "as-x"] = "skip",
    steps: int = 3000,
    batch_size: int = 64,
    blocks: int = 1,
    heads: int | None = None,
    mask_id: int | None = None,
    trust_remote_code: bool = False,
    merge: bool = False,
) -> None:
    """Train a head on a frozen masked model; the same command resumes a run that was stopped.

    Args:
        name: of a model on the Hugging Face Hub, or a folder.
        run: where and from which seed.
        hub: rows, run and model.
        data: a text file, .jsonl or FASTA; "self" to train on what the model itself draws.
        num: rows to draw, with --data self.
        unknown: what becomes of a sequence of FASTA with a residue that the model does not know.
        steps: optimiser steps.
        batch_size: rows a step.
        blocks: of the head.
        heads: attention heads of the head; by default as many as leave each at least 32 channels.
        mask_id: the mask token, where neither tokenizer nor config knows it.
        trust_remote_code: run Python code that comes with the model.
        merge: at the end, write trunk and head into one file, in the subfolder whole.
    """
    from selfspec import api

    if blocks < 1:
        raise ValueError(f"`blocks` must be at least 1 to train a head, got {blocks}")
    if hub.stop_after is not None and merge:
        raise ValueError("`merge` goes with a run to its end, got `stop_after` too")
    check_folder(hub.out)
    model = api.attach_head(
        name,
        blocks,
        heads=heads,
        tokenizer=hub.tokenizer,
        mask_id=mask_id,
        revision=hub.revision,
        trust_remote_code=trust_remote_code,
        seed=run.seed,
    )
    if merge and not getattr(model.trunk, "writable", True):  # before hours of training
        raise ValueError("`merge` must be left out for a trunk that is remote code and cannot be "
                         f"written, got it for {name!r}")  # fmt: skip
    api.train_head(
        model,
        data,
        hub.out,
        num=num,
        unknown=unknown,
        steps=steps,
        batch_size=batch_size,
        **hub.settings(run),
    )
    if not first_rank():
        return
    if merge:
        api.save(model, hub.out / "whole", merge=True)
    report(hub.out / "model", run)
