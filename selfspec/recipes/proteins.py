"""Proteins of up to 512 residues, an ESM-2-shaped trunk: models that train in minutes on one GPU.

    trunk       11 blocks of width 320 (ESM-2's smallest width; 13.5M parameters), masked diffusion
    head        one causal block on the frozen trunk
    joint       both together, from the two above or from scratch
    windows     the head again, still on the frozen trunk, fine-tuned where samplers read it
    judge       an autoregressive model that scores samples

The data are those of `selfspec prepare proteins`: sequences of their own lengths, longer ones
cropped to 512 residues at random places, held out by cluster. They are few (6 million residues an
epoch against UniRef50's 17 billion), hence weight decay and few epochs, of 66 steps each. With more
of them all models go on to learn the families that they see and get worse at all others; the judge,
which sees a token in one context only, first. Dropout slows both down in the trunk, which has none,
like ESM-2's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfspec.data.tokenizers import ProteinTokenizer
from selfspec.nn.head import HeadConfig
from selfspec.nn.transformer import TrunkConfig
from selfspec.recipes.recipe import Recipe
from selfspec.train import (
    AdamWConfig,
    Diffusion,
    MuonConfig,
    NextToken,
    Objective,
    TrainConfig,
    WarmupStableDecay,
)

TRUNK = TrunkConfig(vocab_size=20, length=512, width=320, blocks=11, heads=5)
HEAD = HeadConfig(heads=10, blocks=1, dropout=0.2)


def _recipe(
    name: str,
    objective: Objective,
    steps: int,
    lr: float,
    changes: dict[str, Any],
    shape: TrunkConfig = TRUNK,
    head: HeadConfig | None = None,
) -> Recipe:
    """256 proteins a step, constant learning rate with a linear end."""
    settings = TrainConfig(
        steps=steps,
        batch_size=256,
        adamw=AdamWConfig(lr=lr, betas=(0.9, 0.98), weight_decay=0.1),
        muon=MuonConfig(lr=lr, weight_decay=0.1),
        schedule=WarmupStableDecay(warmup=200, decay=0.3),
    )
    settings = replace(settings, **changes)
    return Recipe(
        f"proteins-{name}", shape, objective, settings, head, tokenizer=ProteinTokenizer()
    )


def trunk(steps: int = 3000, **changes: Any) -> Recipe:
    """The trunk alone, by the masked-diffusion bound."""
    return _recipe("trunk", Diffusion(), steps, 2e-3, changes)


def head(steps: int = 2000, **changes: Any) -> Recipe:
    """The causal head on a frozen trunk, which must be given as the start."""
    recipe = _recipe("head", Diffusion(freeze_trunk=True), steps, 3e-3, changes, head=HEAD)
    return replace(recipe, needs_start=True)


def joint(steps: int = 3000, **changes: Any) -> Recipe:
    """Trunk and head together, by the sum of both losses."""
    changes = {"schedule": WarmupStableDecay(warmup=100, decay=0.9), **changes}
    return _recipe("joint", Diffusion(), steps, 1e-3, changes, head=HEAD)


def windows(steps: int = 800, **changes: Any) -> Recipe:
    """The head alone, with more weight on the places that samplers read."""
    changes = {"schedule": WarmupStableDecay(warmup=100, decay=0.9), **changes}
    objective = Diffusion(freeze_trunk=True, window_weight=1.0)
    recipe = _recipe("windows", objective, steps, 1e-3, changes, head=HEAD)
    return replace(recipe, needs_start=True)


def judge(steps: int = 600, **changes: Any) -> Recipe:
    """The judge: an autoregressive model of 8 blocks of width 320."""
    shape = replace(TRUNK, blocks=8, causal=True, dropout=0.2)
    return _recipe("judge", NextToken(), steps, 2e-3, changes, shape)
