"""The small networks that guide a sampler, trained beside a finished model, which stays as it is.

    errors      the error predictor of `GuidedStarShapedSampler`
    policy      the policy of `PolicySampler`, by GRPO

The folder of such a run holds `model/scorer.safetensors`, for `Scorer.load`. The defaults are
untried at full size.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from selfspec.data.corpus import Store
from selfspec.model import SSMD
from selfspec.nn.scorer import Scorer, ScorerConfig
from selfspec.recipes.recipe import default_device, make_trainer
from selfspec.sampling.policy import FEATURES
from selfspec.train import (
    GRPO,
    AdamWConfig,
    Cosine,
    Errors,
    Objective,
    TrainConfig,
    Trainer,
)
from selfspec.train.guides import Quality

VALID_ROWS = 256


def errors(
    model: SSMD,
    folder: str | os.PathLike[str] | None,
    train: Store,
    valid: Store | None = None,
    shape: ScorerConfig | None = None,
    device: str | torch.device | None = None,
    **changes: Any,
) -> Trainer:
    """Trains an error predictor.

    Args:
        model: what draws the tokens; its weights do not move.
        folder: for checkpoints and logs; a run found there is resumed.
        train, valid: tokens.
        shape: of the predictor; one block of width 128 by default.
        device: where to train; CUDA if there is one.
        **changes: of the `TrainConfig`.

    Raises:
        ValueError: the data have another vocabulary, or a setting is out of its range.
    """
    settings = TrainConfig(
        steps=3000, batch_size=256, adamw=AdamWConfig(lr=1e-3), schedule=Cosine(warmup=100)
    )
    model = _frozen(model, device)
    shape = shape or ScorerConfig(vocab_size=model.vocab_size)
    objective = Errors(model, _around(model))
    return _trainer(shape, objective, model, replace(settings, **changes), folder, train, valid)


def policy(
    model: SSMD,
    quality: Quality,
    folder: str | os.PathLike[str] | None,
    train: Store,
    valid: Store | None = None,
    shape: ScorerConfig | None = None,
    device: str | torch.device | None = None,
    group: int = 8,
    alpha: float = 1.0,
    **changes: Any,
) -> Trainer:
    """Trains an unmasking policy; a step samples `batch_size` × `group` texts.

    Args:
        model: what the policy decides for; its weights do not move.
        quality: (B, L) tokens and pads → (B,) in [0, 1], such as `Likelihood` under a judge.
        folder: for checkpoints and logs; a run found there is resumed.
        train, valid: tokens, of which lengths and tokens that stand around a text are used.
        shape: of the policy; one block of width 128 by default.
        device: where to train; CUDA if there is one.
        group, alpha: as in `GRPO`.
        **changes: of the `TrainConfig`.

    Raises:
        ValueError: the data have another vocabulary, or a setting is out of its range.
    """
    # A sampler's batches have another shape in every pass: nothing is compiled.
    settings = TrainConfig(
        steps=500, batch_size=16, adamw=AdamWConfig(lr=1e-3), schedule=Cosine(warmup=20),
        ema_decay=0.9, compile=False, valid_every=100,
    )  # fmt: skip
    model = _frozen(model, device)
    shape = shape or ScorerConfig(features=FEATURES)
    objective = GRPO(model, _around(model), quality=quality, group=group, alpha=alpha)
    return _trainer(shape, objective, model, replace(settings, **changes), folder, train, valid)


def _frozen(model: SSMD, device: str | torch.device | None) -> SSMD:
    return model.to(device or default_device()).eval()


def _around(model: SSMD) -> tuple[int, ...]:
    """Tokens that stand around every sequence: always known."""
    return tuple(sorted({*model.frame[0], *model.frame[1]}))


def _trainer(
    shape: ScorerConfig,
    objective: Objective,
    model: SSMD,
    settings: TrainConfig,
    folder: str | os.PathLike[str] | None,
    train: Store,
    valid: Store | None,
) -> Trainer:
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        scorer = Scorer(shape)
    return make_trainer(
        scorer, objective, settings, folder, train, valid, model.length, VALID_ROWS, model.device
    )
