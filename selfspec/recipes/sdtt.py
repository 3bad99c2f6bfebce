"""Self-distillation through time: rounds in which a model learns two of its own steps in one.

Round r = 1, 2, … is a run of its own: the start is the teacher and where the student begins, the
step that the student learns is 2^r / `finest`, so that after it K = `finest` / 2^r steps do what
`finest` did, as far as the student can follow. Published: 7 rounds of 10,000 updates, batch 128,
learning rate 3e-4 (SDTT 2410.21035). The student is a plain trunk; a head is trained on it
afterwards. Untried at full size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfspec.data.corpus import Store
from selfspec.model import SSMD
from selfspec.nn.transformer import TrunkConfig
from selfspec.recipes.recipe import Recipe, default_device
from selfspec.train import (
    AdamWConfig,
    Cosine,
    Diffusion,
    Distillation,
    TrainConfig,
    Trainer,
    initialise,
)


@dataclass(frozen=True)
class Distilled(Recipe):
    """A round; its objective is a `Distillation` as soon as there is a start.

    Attributes:
        round: r ≥ 1.
        finest: steps of the first teacher.
        reverse: as in `Distillation`.
    """

    round: int = 1
    finest: int = 256
    reverse: bool = False

    def trainer(self, folder: Any, train: Store, valid: Any = None, start: Any = None,
                device: Any = None, **processes: Any) -> Trainer:  # fmt: skip
        """As `Recipe.trainer`, with the start as the teacher."""
        if start is None:
            raise ValueError("`start` must be a trained model for this recipe, got None")
        device, teacher = device or default_device(), self.build()
        initialise(teacher, start)
        assert isinstance(teacher, SSMD)
        step = 2**self.round / self.finest
        objective = Distillation(teacher.to(device).eval(), step=step, reverse=self.reverse)
        run = replace(self, objective=objective)
        return Recipe.trainer(run, folder, train, valid, start, device, **processes)


def sdtt(name: str, trunk: TrunkConfig, round: int = 1, **changes: Any) -> Distilled:
    """A round of distillation with the published settings.

    Args:
        name: of the recipe.
        trunk: the shape of teacher and student.
        round: r ≥ 1.
        **changes: of the `TrainConfig`.
    """
    settings = TrainConfig(
        steps=10_000, batch_size=128, adamw=AdamWConfig(lr=3e-4), schedule=Cosine(warmup=500)
    )
    return Distilled(
        name, trunk, Diffusion(), replace(settings, **changes), needs_start=True, round=round
    )


def distil(
    recipe: Distilled,
    start: SSMD | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    train: Store,
    valid: Store | None = None,
    rounds: int = 7,
    device: Any = None,
    progress: bool = True,
) -> SSMD | None:
    """All rounds, one after another; the student of a round is the teacher of the next one.

    Args:
        recipe: of the first round.
        start: the first teacher, or the folder of its checkpoint.
        folder: for the rounds' folders, `round-1`, …; finished ones are not run again.
        train, valid: tokens.
        rounds: how many.
        device: where to train; CUDA if there is one.
        progress: show a bar.

    Returns:
        The last student; None if a round was stopped.
    """
    for k in range(rounds):
        current = replace(recipe, round=recipe.round + k)
        place = Path(folder) / f"round-{current.round}"
        trainer = current.trainer(place, train, valid, start, device)
        if not trainer.run(progress=progress):
            return None
        start = trainer.model
    return start  # type: ignore[return-value]
