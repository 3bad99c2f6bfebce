"""`selfspec sample`: texts from nothing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfspec.cli.common import (
    Loading,
    Run,
    Sampling,
    check_folder,
    check_out,
    first_rank,
    note,
    one_line,
    to_json,
    write,
)

Format = Literal["text", "fasta"]

if TYPE_CHECKING:
    from selfspec.interfaces import Samples
    from selfspec.model import SSMD


def sample(
    sampling: Sampling,
    run: Run,
    loading: Loading,
    num: int = 1,
    checkpoint: str = "books27",
    length: int | None = None,
    format: Format = "text",
    watch: bool = False,
    out: Path | None = None,
) -> None:
    """Generate texts with a checkpoint.

    On several GPUs: torchrun --nproc-per-node 8 -m -- selfspec sample --num 1000000 --out FOLDER

    Args:
        sampling: how to sample.
        run: where and from which seed.
        loading: how the trunk of a head is found.
        num: how many texts.
        checkpoint: the name of a bundled checkpoint, or a folder.
        length: tokens a text; by default as the training data, or the model's own length.
        format: a text a line, or FASTA for models of proteins.
        watch: replay drafting and verifying of the first text in the terminal.
        out: a file for the texts, instead of standard output; or a folder (a path without
            suffix) for shards of tokens, which a second run of the same command completes. Under
            torchrun every process draws its share of them, and the first tells of its own; texts
            are the first's alone.
    """
    model = loading.model(checkpoint, run.where())
    if out is not None and not out.suffix:
        check_folder(out)
        for name, asked in {"watch": watch, "format": format != "text"}.items():
            if asked:
                raise ValueError(f"`{name}` goes with texts: give `out` as a file, got a folder")
        return draw_to_folder(model, checkpoint, sampling, run, out, num, length)
    draw(model, sampling, run, format, watch, out, num=num, length=length)


def draw_to_folder(
    model: SSMD,
    checkpoint: str,
    sampling: Sampling,
    run: Run,
    out: Path,
    num: int,
    length: int | None,
) -> None:
    """Draw shards of tokens, by as many processes as there are."""
    from selfspec.calibration import describe
    from selfspec.engine import Engine, draw_shards, unsupported
    from selfspec.weights import fingerprint

    sampler = sampling.sampler(model)
    if reason := unsupported(sampler):
        raise ValueError(f"`checkpoint` must be one for the engine to draw shards, got: {reason}")
    cuda = model.device.type == "cuda"
    slots = max(1, min(num, 256 if cuda else 64))
    framed = None if length is None else length + sum(map(len, model.frame))
    engine = Engine(model, slots, framed, compile=cuda)
    about = {
        "checkpoint": checkpoint,
        "weights": fingerprint(model.parameters()),
        "sampler": describe(sampler),
        "temperature": sampler.temperature,
        "top_p": sampler.top_p,
    }
    rank, world = (int(os.environ.get(name, default)) for name, default in
                   (("RANK", 0), ("WORLD_SIZE", 1)))  # fmt: skip
    start = time.perf_counter()
    drawn = draw_shards(
        engine, sampler, out, num, run.seed, length, rank=rank, world=world, about=about,
        progress=rank == 0,
    )  # fmt: skip
    if not first_rank():  # nobody waits for the others, which may end much later or not at all
        return
    seconds, shared = time.perf_counter() - start, {} if world == 1 else {"processes": world}
    if run.json:
        told = {**about, "seed": run.seed, "n": drawn, **shared, "seconds": seconds}
        return print(to_json(told))
    share = f" by the first of {world} processes" if shared else ""
    note(f"{drawn} samples{share} in {seconds:.1f} s · {out}")


def draw(
    model: SSMD,
    sampling: Sampling,
    run: Run,
    format: Format,
    watch: bool,
    out: Path | None,
    **options: Any,
) -> None:
    """Generate, replay if asked to, and write texts and account; by the first process alone."""
    if not first_rank():
        return
    from selfspec import api
    from selfspec.calibration import describe
    from selfspec.cli.watch import play

    if format == "fasta" and not getattr(model.tokenizer, "residues", ""):
        raise ValueError("`format` must be text for a model that is not of proteins, got fasta")
    if format == "fasta" and run.json:
        raise ValueError("`format` must be text with `json`, which is another one, got fasta")
    check_out(out)
    sampler = sampling.sampler(model)
    start = time.perf_counter()
    samples = api.generate(
        model, sampler=sampler, seed=run.seed, trace=watch, progress=True, **options
    )
    seconds = time.perf_counter() - start
    if watch:
        play(model, samples, sys.stderr if run.json else sys.stdout)
    report = {"sampler": describe(sampler), "seed": run.seed, **account(samples, seconds)}
    texts = samples.text or [" ".join(map(str, row)) for row in samples.tokens.tolist()]
    if run.json:
        rows = zip(texts, samples.nfe.tolist(), strict=True)
        report["samples"] = [{"text": text, "nfe": nfe} for text, nfe in rows]
        return write(to_json(report), out)
    fasta = format == "fasta"
    write(as_fasta(model, samples, run.seed) if fasta else "\n".join(texts), out)
    count = f"{report['n']} sample{'s' if report['n'] > 1 else ''}"
    passes = "{trunk_passes:.1f} trunk and {head_passes:.1f} head passes".format(**report)
    judged = f" · acceptance {report['acceptance']:.2f}" if samples.head_passes.any() else ""
    note(f"{count} · {report['nfe']:.1f} NFE ({passes}){judged} · {seconds:.1f} s")
    note(one_line(report["sampler"]))


def as_fasta(model: SSMD, samples: Samples, seed: int) -> str:
    """Samples as FASTA, their cost and score in the headers.

    The score is that of `one_pass_score` per residue, in nats; a model without a head has none.
    """
    from selfspec.data.fasta import to_fasta
    from selfspec.likelihood import one_pass_score
    from selfspec.prompts import in_frame

    assert samples.pad is not None
    scores = [""] * len(samples)
    if model.head is not None:
        scores = []
        for tokens, pad in zip(samples.tokens.split(64), samples.pad.split(64), strict=True):
            around = in_frame(pad, model.frame)
            nats = one_pass_score(model, tokens, pad=pad, observed=around)
            mean = nats / (~pad & ~around).sum(1)
            scores += [f" score={value:.4f}" for value in mean.tolist()]
    facts = zip(samples, samples.nfe.tolist(), scores, strict=True)
    return to_fasta(
        (f"sample-{seed}-{row} length={len(text)} nfe={nfe:.2f}{score}", text)
        for row, (text, nfe, score) in enumerate(facts)
    ).rstrip()


def account(samples: Samples, seconds: float) -> dict[str, Any]:
    """What the samples cost, on average."""
    return {
        "n": len(samples),
        "nfe": float(samples.nfe.mean()),
        "trunk_passes": float(samples.trunk_passes.double().mean()),
        "head_passes": float(samples.head_passes.double().mean()),
        "acceptance": samples.acceptance,
        "seconds": seconds,
    }
