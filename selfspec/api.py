"""The façade: load, save, generate, calibrate, train.

    model = load("books27")
    generate(model, 8, nfe=14)                                  eight texts, 14 evaluations each
    generate(model, prompt="the ____ sat on the ____")          infilling
    generate(model, prompt="once upon a time ", length=128)     continuation
    generate(proteins, prompt="MKT____GKST____")                 scaffolding of a motif

Everything here is a few lines over the layers below, which stay usable on their own.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from selfspec import calibration, checkpoint, prompts, recipes
from selfspec.checkpoint import save as save
from selfspec.data.corpus import open_corpus
from selfspec.engine import Engine, engine_for, unsupported
from selfspec.hub import Reunion, download
from selfspec.hub import attach_head as attach_head
from selfspec.hub import push_to_hub as push_to_hub
from selfspec.interfaces import Samples
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.noise import row_seeds
from selfspec.orders import Order
from selfspec.recipes import Recipe
from selfspec.sampling import Sampler
from selfspec.schedules import Window
from selfspec.train import Objective, Trainer

__all__ = [
    "attach_head",
    "calibrate",
    "generate",
    "load",
    "load_judge",
    "push_to_hub",
    "save",
    "train",
    "train_head",
]

Path = str | os.PathLike[str]
log = logging.getLogger("selfspec")


def load(
    name: Path,
    device: torch.device | str = "cpu",
    *,
    trunk: Any = None,
    tokenizer: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> SSMD:
    """A masked diffusion model from a checkpoint, in evaluation mode.

    Args:
        name: of a checkpoint that comes with the package ("books27"), a folder, or "owner/name" of
            one on the Hugging Face Hub.
        device: where to put it.
        revision: of a checkpoint on the Hub.
        trunk, tokenizer, trust_remote_code: of a head on a model of the Hub, see `hub.Reunion`: by
            default both are loaded from where the checkpoint says.

    Raises:
        ValueError: no such checkpoint, a corrupt one, one of an autoregressive judge, or a trunk
            with other weights than those that the head was made for.
        OSError: no such repository on the Hub.
    """
    reunite = Reunion(trunk, tokenizer, trust_remote_code)
    folder = os.fspath(name)
    if folder.count("/") == 1 and not os.path.exists(folder):
        folder = download(folder, revision)
    model = checkpoint.load(folder, device, reunite)
    if not isinstance(model, SSMD):
        raise ValueError(f"`name` must be a masked diffusion model, got the judge {str(name)!r}")
    return model


def load_judge(name: Path, device: torch.device | str = "cpu") -> AutoregressiveModel:
    """An autoregressive judge from a checkpoint; `judge.log_probs` scores tokens. As `load`."""
    model = checkpoint.load(os.fspath(name), device)
    if not isinstance(model, AutoregressiveModel):
        raise ValueError(f"`name` must be an autoregressive judge, got the model {str(name)!r}")
    return model


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
    batch_size: int = 64,
    engine: Engine | Literal["reference"] | None = None,
    trace: bool = False,
    progress: bool = False,
) -> Samples:
    """Sample from a model: from nothing, around a prompt, or behind one.

    Args:
        model: from `load`.
        num: samples; of every prompt, if there are any.
        prompt: text, or several, where each `mask_char` is one position to fill and the rest
            stays. A prompt without any comes back as it is, at no cost, unless `length` is given.
        mask_char: a character outside the alphabet.
        length: characters a sample; a shorter prompt is continued to the right up to it. The
            prompt's own length by default; without a prompt a length drawn as those of the training
            data, or the model's if these had no lengths of their own.
        nfe, quality, order, window, rounds: what to spend, see `calibration.choose`.
        sampler: draws the samples instead; then none of the above, `temperature` and `top_p` apply.
        temperature, top_p: of draft and target alike; 1 and 1 sample from the model itself.
        seed: of the run; row r depends on (seed, r) alone, not on `num` or `batch_size` (up to
            the rounding of float32, which may differ from one batch shape to another).
        batch_size: rows drawn at once.
        engine: what draws; one for this model by default. "reference" is the plain loop of
            `sampling/`, in the model's own precision also on CUDA.
        trace: keep every pass, for a user interface to replay; drawn by the reference.
        progress: show a bar.

    Returns:
        `Samples`, with `.text` where the model has a tokenizer; samples of one prompt stand
        together.

    Raises:
        ValueError: a bad argument, named with its rule and value.
    """
    for name, value in {"num": num, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
    knobs = (nfe, quality, order, window, rounds)
    if sampler is None:
        sampler = calibration.choose(model, *knobs, temperature, top_p)
    elif any(knob is not None for knob in knobs):
        raise ValueError("`sampler` brings its own settings: leave `nfe`, `quality`, `order`, "
                         "`window` and `rounds` out")  # fmt: skip
    texts = [prompt] if isinstance(prompt, str) else prompt
    seeds = row_seeds(seed, num * (1 if texts is None else len(texts)), model.device)
    if texts is None:
        tokens, pad = prompts.unprompted(
            seeds, model.mask_id, model.length, model.lengths, length, model.frame
        )
    else:
        masks = prompts.layout(
            texts, model.tokenizer, model.mask_id, model.length, mask_char, length, model.frame
        )
        tokens, pad = (rows.repeat_interleave(num, dim=0).to(model.device) for rows in masks)
    samples = _draw(sampler, tokens, seeds, pad, batch_size, engine, trace, progress)
    if model.tokenizer is not None:
        samples.text = prompts.decode(model.tokenizer, samples.tokens, pad, mask_char, model.frame)
    return samples


def _draw(
    sampler: Sampler,
    tokens: Tensor,
    seeds: Tensor,
    pad: Tensor,
    batch_size: int,
    engine: Engine | Literal["reference"] | None,
    trace: bool,
    progress: bool,
) -> Samples:
    """By the engine, where it can."""
    reason = unsupported(sampler)
    if engine != "reference" and not trace and reason is None:
        rows = min(batch_size, len(tokens))
        engine = engine or engine_for(sampler.model, rows, tokens.shape[1])
        return engine.sample(sampler, tokens, seeds, pad, progress)
    if engine != "reference" and reason is not None:
        log.warning("drawn by the reference, not by the engine: %s", reason)
    batches = zip(*(x.split(batch_size) for x in (tokens, seeds, pad)), strict=True)
    return Samples.concatenate(
        [sampler.sample(*batch, trace=trace, progress=progress) for batch in batches]
    )


def calibrate(
    model: SSMD, judge: AutoregressiveModel, folder: Path | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Measure the table from which `nfe=` and `quality=` are resolved, and give it to the model.

    Args:
        model: with a head.
        judge: of the same tokens.
        folder: the checkpoint into whose config the table is written too; its weights stay as
            they are.
        **settings: `samplers`, `n`, `seed`, `batch_size`, `progress`, see `calibration.measure`.

    Returns:
        The rows.
    """
    model.calibration = calibration.measure(model, judge.log_probs, **settings)
    if folder is not None:
        calibration.store(os.fspath(folder), model.calibration)
    return model.calibration


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
    """Train by a recipe, or train a model further.

    Args:
        what: a recipe, or a model, which is left as it is: a copy is trained.
        data: a corpus as `selfspec prepare` writes it.
        folder: for checkpoints and logs; a run found there is resumed.
        start: for a recipe, a model or the folder of a checkpoint to start from.
        objective: for a model, what to minimise; the loss of its kind by default.
        device: CUDA if there is one.
        stop_after: seconds after which to stop, with a checkpoint; the run is then unfinished.
        progress: show a bar with losses, speed and time left.
        **settings: of `TrainConfig`, over the recipe's; `steps` and `batch_size` for a model.

    Returns:
        The trained model, with the averaged weights.

    Raises:
        ValueError: bad data, settings or start, or an argument that goes with the other kind.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written, and the same call resumes.
    """
    if isinstance(what, Recipe):
        if objective is not None:
            raise ValueError("`objective` goes with a model: a recipe has its own")
        recipe = what.override(**settings)
    else:
        if start is not None:
            raise ValueError("`start` goes with a recipe: a model is its own start")
        recipe, start = Recipe.of(what, objective, **settings), what
    tokenizer, stores = open_corpus(data)
    if "train" not in stores:
        raise ValueError(f"`data` must have a split 'train', got {sorted(stores)} in {data}")
    recipe = replace(recipe, tokenizer=tokenizer)
    trainer = recipe.trainer(folder, stores["train"], stores.get("valid"), start, device)
    return _run(trainer, stop_after, progress)


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
        **options: `rows`, `length`, `num`, `field`, `device` and the settings of the run, see
            `recipes.attach`.

    Returns:
        The model, with the averaged weights of its head.

    Raises:
        ValueError: bad data or settings. OSError: no such file.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written, and the same call resumes.
    """
    trainer = recipes.attach(model, data, folder, progress=progress, **options)
    return _run(trainer, stop_after, progress)


def _run(trainer: Trainer, stop_after: float | None, progress: bool) -> Any:
    if not trainer.run(stop_after, progress) and stop_after is None:
        raise KeyboardInterrupt
    return trainer.model
