"""English books in subwords, 1,024 at a time: models of GPT-2's shape.

    trunk      11 blocks of width 768, plain masked diffusion
    head       one causal block on the frozen trunk
    joint      both together, from the two above or from scratch
    judge      an autoregressive model of 12 blocks that scores samples

    selfspec prepare jsonl --source books --vocab-size 8192 --out data/books-bpe
    selfspec train books-bpe-trunk --data data/books-bpe --out runs/trunk
    selfspec train books-bpe-head --data data/books-bpe --out runs/head --start runs/trunk/model

The shape is that of `openwebtext`, without dropout; optimisers and stages are those of `books27`,
whose learning rates were not tuned again for it. All of it is this project's choice. 8,192 tokens
suit 60 million of them better than GPT-2's 50,257, most of which such a corpus hardly shows; the
vocabulary is that of the data, whatever it is. `selfspec recipes` says what the stages cost. **None
has been run to its end by this project.**
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfspec.nn.head import HeadConfig
from selfspec.recipes.openwebtext import TRUNK as WEB_TRUNK
from selfspec.recipes.recipe import Recipe
from selfspec.schedules import LinearWindow
from selfspec.train import (
    AdamWConfig,
    Diffusion,
    MuonConfig,
    NextToken,
    OrderedDiffusion,
    TrainConfig,
    WarmupStableDecay,
)

TRUNK = replace(WEB_TRUNK, vocab_size=8192, dropout=0.0)
HEAD = HeadConfig(heads=12, blocks=1)
WINDOWS = tuple(LinearWindow(tokens / TRUNK.length) for tokens in (8, 16, 32, 64, 96))
"""Where samplers of 16 to 256 passes read the head: a small part of all places at 1,024."""


def _settings(steps: int, lr: float, **changes: Any) -> TrainConfig:
    """256 rows of 1,024 tokens a step, constant learning rate with a linear end."""
    settings = TrainConfig(
        steps=steps,
        batch_size=256,
        accumulate=4,
        adamw=AdamWConfig(lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
        muon=MuonConfig(lr=lr, weight_decay=0.01),
        schedule=WarmupStableDecay(warmup=min(200, steps // 10), decay=0.3),
        valid_every=500,
        save_every=500,
    )
    return replace(settings, **changes)


def trunk(steps: int = 2500, **changes: Any) -> Recipe:
    """The trunk alone, by the masked-diffusion bound; `joint` brings the learning rate down."""
    changes = {"schedule": WarmupStableDecay(warmup=min(200, steps // 10), decay=0.0), **changes}
    return _recipe("trunk", Diffusion(), _settings(steps, 2e-3, **changes), head=None)


def head(steps: int = 1000, **changes: Any) -> Recipe:
    """The causal head on a frozen trunk, which must be given as the start."""
    settings = _settings(steps, 2e-3, **changes)
    return _recipe("head", Diffusion(freeze_trunk=True), settings, needs_start=True)


def joint(steps: int = 1500, **changes: Any) -> Recipe:
    """Trunk and head together, by the sum of both losses and of that in `WINDOWS`."""
    changes = {"schedule": WarmupStableDecay(warmup=min(100, steps // 10), decay=0.9), **changes}
    objective = OrderedDiffusion(windows=WINDOWS)
    return _recipe("joint", objective, _settings(steps, 2.5e-3, **changes))


def judge(steps: int = 2500, **changes: Any) -> Recipe:
    """The judge: an autoregressive model of 12 blocks."""
    shape = replace(TRUNK, blocks=12, causal=True)
    return _recipe("judge", NextToken(), _settings(steps, 1e-3, **changes), head=None, trunk=shape)


def _recipe(name: str, objective: Any, settings: TrainConfig, **changes: Any) -> Recipe:
    parts = {"trunk": TRUNK, "head": HEAD, "tokenizer": None, **changes}
    return Recipe(f"books-bpe-{name}", objective=objective, train=settings, **parts)
