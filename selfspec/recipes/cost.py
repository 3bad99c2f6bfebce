"""What a recipe costs: parameters, tokens, floating-point operations, GPU-hours.

A forward pass takes, per token, with width C, length L, V tokens and an MLP r times as wide,

    block         2 (4 + 2r) C² + 4 L C        projections and MLP, attention over all positions
    head          2 · 4 C² a pass besides its blocks
    unembedding   2 V C                        at the places that the loss looks at

and training three times as much: the gradients of inputs and of weights cost a forward each. What
is frozen has no gradient of weights, and none of inputs where nothing below it is trained.

With i uniform on 0..L-1 the draft is looked at in (L + 1)/2 places of a row on average, the target,
one place behind, in (L - 1)/2; an autoregressive model predicts all of them.

    GPU-hours = tokens · operations per token / (operations per second and GPU · 3600)

The speed is the measured one of the nearest of two widths, that of `books27` or of `openwebtext`:
small matrices keep a GPU waiting for memory.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from selfspec.nn.head import HeadConfig
from selfspec.nn.transformer import TrunkConfig
from selfspec.recipes.books27 import HEAD as SMALL_HEAD
from selfspec.recipes.books27 import TRUNK as SMALL_TRUNK
from selfspec.recipes.openwebtext import HEAD, TRUNK
from selfspec.recipes.recipe import Recipe
from selfspec.train import Diffusion
from selfspec.weights import shapes_only

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "training-h200.json"
"""In a checkout of the repository: what `benchmarks/training.py` measured."""
SHAPES = {"books27": (SMALL_TRUNK, SMALL_HEAD), "150M-1024": (TRUNK, HEAD)}
"""Trunk and head of what was measured, by their names there."""


@dataclass(frozen=True)
class Cost:
    """Of a whole run.

    Attributes:
        parameters: of the model.
        tokens: read, over all steps.
        flops: floating-point operations.
    """

    parameters: int
    tokens: int
    flops: float

    def gpu_hours(self, speed: float) -> float:
        """Hours of one GPU of `speed` operations a second in training."""
        return self.flops / speed / 3600


def cost(recipe: Recipe) -> Cost:
    """The cost of a recipe, validation not counted."""
    with shapes_only():
        parameters = sum(p.numel() for p in recipe.build().parameters())
    tokens = recipe.train.steps * recipe.train.batch_size * recipe.trunk.length
    frozen = isinstance(recipe.objective, Diffusion) and recipe.objective.freeze_trunk
    per_token = sum(flops(recipe.trunk, recipe.head, frozen).values())
    return Cost(parameters, tokens, tokens * per_token)


def flops(trunk: TrunkConfig, head: HeadConfig | None, frozen: bool = False) -> dict[str, float]:
    """Operations of a training step per token, by part.

    Args:
        trunk: its shape.
        head: None without one.
        frozen: only the head is trained.
    """
    width = trunk.width
    unembedding = 2.0 * trunk.vocab_size * width
    drafted = 1.0 if trunk.causal else (trunk.length + 1) / trunk.length / 2
    parts = {
        "trunk": (1 if frozen else 3) * trunk.blocks * _block(trunk.mlp_ratio, trunk),
        "unembedding": (1 if frozen else 3) * drafted * unembedding,
    }
    if head is not None:
        parts["head"] = 3 * (head.blocks * _block(head.mlp_ratio, trunk) + 8 * width**2)
        parts["unembedding"] += (2 if frozen else 3) * (1 - drafted) * unembedding
    return parts


def measured_speed(width: int, path: Path = MEASURED) -> float | None:
    """Operations a second and GPU of training on the fewest GPUs measured; None if none was.

    Args:
        width: C; the shape with the nearest one counts.
        path: what `benchmarks/training.py` wrote.

    Raises:
        ValueError: the file is broken.
    """
    if not path.exists():
        return None
    name = min(SHAPES, key=lambda name: abs(math.log(SHAPES[name][0].width / width)))
    try:
        rows = [row for row in json.loads(path.read_bytes())["rows"] if row["model"] == name]
        least = min(rows, key=lambda row: row.get("gpus", 1), default=None)
        if least is None:
            return None
        tokens_per_s = least["tokens_per_s"] / least.get("gpus", 1)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`path` must be a report of training, got {path}: {error!r}") from error
    return tokens_per_s * sum(flops(*SHAPES[name]).values())


def _block(mlp_ratio: int, trunk: TrunkConfig) -> float:
    return 2.0 * (4 + 2 * mlp_ratio) * trunk.width**2 + 4.0 * trunk.length * trunk.width
