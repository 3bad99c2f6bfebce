"""English books in 27 symbols, 256 characters at a time: models that train in minutes on one GPU.

    trunk                    11 blocks of width 256, plain masked diffusion
    head                     one causal block on the frozen trunk
    joint                    both together, from the two above or from scratch
    windows                  both, fine-tuned where samplers read the head
    spaced                   the head alone, fine-tuned on the windows of van der Corput's order
    sdtt                     the trunk, distilled to fewer steps: a round of `sdtt.distil`
    plain12                  12 blocks without a head: the baseline of as many blocks
    judge, small_judge       autoregressive models that score samples

In order: `trunk`, then `head` with the trunk's folder as its start, then `joint` with the head's,
then `windows` with `joint`'s, then `spaced`, if samplers are to use that order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfspec.nn.head import HeadConfig
from selfspec.nn.transformer import TrunkConfig
from selfspec.orders import VanDerCorputOrder
from selfspec.recipes.recipe import Recipe
from selfspec.recipes.sdtt import Distilled
from selfspec.recipes.sdtt import sdtt as distillation
from selfspec.train import (
    AdamWConfig,
    Diffusion,
    MuonConfig,
    NextToken,
    OrderedDiffusion,
    TrainConfig,
    WarmupStableDecay,
)

TRUNK = TrunkConfig(vocab_size=27, length=256, width=256, blocks=11, heads=4)
# Narrow attention heads can watch more offsets from the position predicted: docs/LOG.md.
HEAD = HeadConfig(heads=8, blocks=1)


def _settings(steps: int, lr: float, **changes: Any) -> TrainConfig:
    """1,024 rows of 256 characters a step, constant learning rate with a linear end."""
    settings = TrainConfig(
        steps=steps,
        batch_size=1024,
        adamw=AdamWConfig(lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
        muon=MuonConfig(lr=lr, weight_decay=0.01),
        schedule=WarmupStableDecay(warmup=200, decay=0.3),
    )
    return replace(settings, **changes)


def trunk(steps: int = 6000, **changes: Any) -> Recipe:
    """The trunk alone, by the masked-diffusion bound; `joint` brings the learning rate down."""
    changes = {"schedule": WarmupStableDecay(warmup=200, decay=0.0), **changes}
    return Recipe("books27-trunk", TRUNK, Diffusion(), _settings(steps, 3e-3, **changes))


def head(steps: int = 3000, **changes: Any) -> Recipe:
    """The causal head on a frozen trunk, which must be given as the start."""
    return Recipe(
        "books27-head",
        TRUNK,
        Diffusion(freeze_trunk=True),
        _settings(steps, 3e-3, **changes),
        HEAD,
        needs_start=True,
    )


def joint(steps: int = 3000, **changes: Any) -> Recipe:
    """Trunk and head together, by the sum of both losses."""
    changes = {"schedule": WarmupStableDecay(warmup=100, decay=0.9), **changes}
    return Recipe("books27-joint", TRUNK, Diffusion(), _settings(steps, 2.5e-3, **changes), HEAD)


def windows(steps: int = 3000, **changes: Any) -> Recipe:
    """Trunk and head together, with more weight on the places that samplers read."""
    objective = Diffusion(window_weight=1.0)
    return replace(
        joint(steps, **changes), name="books27-windows", objective=objective, needs_start=True
    )


def spaced(steps: int = 2000, **changes: Any) -> Recipe:
    """The head alone on spaced windows; the places of a window weigh more than all the others."""
    objective = OrderedDiffusion(freeze_trunk=True, window_weight=3.0, order=VanDerCorputOrder())
    changes = {"schedule": WarmupStableDecay(warmup=100, decay=0.9), **changes}
    recipe = head(steps, **changes)
    return replace(recipe, name="books27-spaced", objective=objective)


def sdtt(round: int = 1, **changes: Any) -> Distilled:
    """The trunk, distilled; its start is the teacher."""
    return distillation("books27-sdtt", TRUNK, round, **changes)


def plain12(steps: int = 6000, **changes: Any) -> Recipe:
    """Plain masked diffusion with twelve blocks."""
    shape = replace(TRUNK, blocks=12)
    return Recipe("books27-plain12", shape, Diffusion(), _settings(steps, 3e-3, **changes))


def judge(steps: int = 3000, **changes: Any) -> Recipe:
    """The judge: an autoregressive model of 8 blocks of width 384."""
    shape = replace(TRUNK, width=384, blocks=8, heads=6, causal=True)
    return Recipe("books27-judge", shape, NextToken(), _settings(steps, 2e-3, **changes))


def small_judge(steps: int = 2000, **changes: Any) -> Recipe:
    """A judge small enough to ship: 6 blocks of width 192."""
    shape = replace(TRUNK, width=192, blocks=6, heads=3, causal=True)
    return Recipe("books27-small-judge", shape, NextToken(), _settings(steps, 3e-3, **changes))
