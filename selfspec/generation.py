"""Samples from a model: what is to be drawn is laid out, a sampler chosen, and the engine draws.

generate(model, 8, nfe=14)                                  eight texts, 14 evaluations each
generate(model, prompt="the ____ sat on the ____")          infilling
generate(model, prompt="once upon a time ", length=128)     continuation
generate(proteins, prompt="MKT____GKST____")                scaffolding of a motif
"""

import logging
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from selfspec import calibration, prompts
from selfspec.checks import whole
from selfspec.engine import Engine, engine_for, unsupported
from selfspec.interfaces import Samples
from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.orders import Order
from selfspec.sampling import Sampler
from selfspec.schedules import Window

__all__ = ["chosen_engine", "draw", "generate"]

EngineChoice = Engine | Literal["reference"] | None
"""What is to draw: an engine, the plain loop, or whichever `chosen_engine` takes."""

log = logging.getLogger("selfspec")


def generate(
    model: SSMD,
    num: int = 1,
    *,
    prompt: str | Sequence[str] | None = None,
    mask_char: str = "_",
    length: int | None = None,
    nfe: float | None = None,
    quality: calibration.Quality | None = None,
    order: Order | None = None,
    window: Window | int | None = None,
    rounds: int | None = None,
    sampler: Sampler | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 64,
    engine: EngineChoice = None,
    trace: bool = False,
    progress: bool = False,
) -> Samples:
    """Sample from a model: whole texts, the gaps of a prompt, or its continuation.

    Args:
        model: from `load`.
        num: number of samples; with prompts, of samples for each prompt.
        prompt: one text or several. Each `mask_char` is a position to fill, the rest is kept. A
            prompt without any is returned as it is, at no cost, unless `length` is given.
        mask_char: a character outside the alphabet; with a BPE any character, which then cannot
            occur as text.
        length: tokens per sample; a shorter prompt is continued to the right. By default the length
            of the prompt; without a prompt, a length drawn from those of the training data, or the
            model's length if the training data had only one.
        nfe, quality, order, window, rounds: the budget or the settings, see `calibration.choose`.
        sampler: draws the samples instead, of this `model`; then the five arguments before,
            `temperature` and `top_p` must not be given.
        temperature, top_p: applied to draft and target alike; 1 and 1 sample from the model itself.
        seed: of the run; row r depends on (seed, r) alone, not on `num` or `batch_size` (up to
            the rounding of float32, which may differ from one batch shape to another).
        first: the number r of the first row, if several processes share a run.
        batch_size: rows drawn at once.
        engine: an `Engine` to draw with; by default one is made for this model. "reference" uses
            the plain loop of `sampling/`, in the model's own precision also on CUDA.
        trace: keep every pass, for a replay; uses the reference loop.
        progress: show a progress bar.

    Returns:
        `Samples`, with `.text` if the model has a tokenizer; samples of one prompt are adjacent.

    Raises:
        ValueError: a bad argument, named with its rule and value.
    """
    for name, value, least in (("num", num, 1), ("batch_size", batch_size, 1), ("first", first, 0)):
        whole(name, value, least)
    if length is not None:
        whole("length", length)
    knobs = (nfe, quality, order, window, rounds)
    if sampler is None:
        sampler = calibration.choose(model, *knobs, temperature, top_p)
    elif not isinstance(sampler, Sampler):
        raise ValueError(f"`sampler` must be a Sampler, got {sampler!r}")
    elif sampler.model is not model:
        raise ValueError("`sampler` must be one of `model`, got another model's")
    elif any(knob is not None for knob in knobs) or (temperature, top_p) != (1.0, 1.0):
        raise ValueError("`sampler` brings its own settings: leave `nfe`, `quality`, `order`, "
                         "`window`, `rounds`, `temperature` and `top_p` out")  # fmt: skip
    if not isinstance(engine, Engine) and engine not in (None, "reference"):
        raise ValueError(f'`engine` must be an Engine, "reference" or None, got {engine!r}')
    texts = prompts.as_texts(prompt)
    rows = num * (1 if texts is None else len(texts))
    seeds = row_seeds(seed, rows, model.device, first)
    if texts is None:
        tokens, pad = prompts.unprompted(
            seeds, model.mask_id, model.length, model.lengths, length, model.frame
        )
    else:
        masks = prompts.layout(
            texts, model.tokenizer, model.mask_id, model.length, mask_char, length, model.frame
        )
        tokens, pad = (mask.repeat_interleave(num, dim=0).to(model.device) for mask in masks)
    samples = draw(sampler, tokens, seeds, pad, batch_size, engine, trace, progress)
    if model.tokenizer is not None:
        samples.text = prompts.decode(model.tokenizer, samples.tokens, pad, mask_char, model.frame)
    return samples


def draw(
    sampler: Sampler,
    tokens: Tensor,
    seeds: Tensor,
    pad: Tensor,
    batch_size: int = 64,
    engine: EngineChoice = None,
    trace: bool = False,
    progress: bool = False,
) -> Samples:
    """Fill every masked position: by the engine, where it can, else by the sampler itself.

    Args:
        sampler: draws them.
        tokens, seeds, pad: as in `Sampler.sample`, a seed a row.
        batch_size, engine, trace, progress: as in `generate`.
    """
    rows = min(batch_size, len(tokens))
    found = None if trace else chosen_engine(sampler, rows, tokens.shape[1], engine)
    if found is not None:
        return found.sample(sampler, tokens, seeds, pad, progress)
    batches = zip(*(x.split(batch_size) for x in (tokens, seeds, pad)), strict=True)
    return Samples.concatenate(
        [sampler.sample(*batch, trace=trace, progress=progress) for batch in batches]
    )


def chosen_engine(
    sampler: Sampler,
    rows: int,
    length: int,
    engine: EngineChoice = None,
    bfloat16: bool | None = None,
) -> Engine | None:
    """The engine that draws so many rows of a length at once; None for the sampler itself.

    Args:
        sampler: says whether an engine can run it.
        rows, length: of a batch.
        engine: as in `generate`.
        bfloat16: as in `Engine`, of one that is made here.
    """
    if isinstance(engine, Engine):
        return engine
    if engine == "reference":
        return None
    if reason := unsupported(sampler):
        log.info("drawn by the reference, not by the engine: %s", reason)
        return None
    return engine_for(sampler.model, rows, length, bfloat16)
