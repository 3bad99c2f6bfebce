"""Train the models of `books27` one after another.

    python benchmarks/books27.py --data DATA --runs RUNS trunk=6000 head=1500 joint=4000

Each `stage=steps` runs a recipe of `selfspec/recipes/books27.py` and keeps it in RUNS/stage; a run
that was stopped is resumed. `head` starts from `trunk`, `joint` from `head`, `windows` from
`joint`; `stage=steps@other` starts from RUNS/other instead, also where a stage would start afresh.
`stage=300s` has as many steps as end about 300 seconds later, at the speed of the first ones, so
that the learning rate comes down in time; how many is kept in RUNS/stage/steps.json.
A trunk with fewer blocks than the recipe's is deepened by blocks that add nothing at first.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from types import ModuleType
from typing import Any

import torch
from torch import nn

from selfspec import checkpoint
from selfspec.data.corpus import Store, open_store
from selfspec.data.ragged import RaggedStore
from selfspec.files import write_json
from selfspec.metrics import median_seconds
from selfspec.model import SSMD
from selfspec.nn.transformer import Trunk, is_output
from selfspec.recipes import Recipe, books27
from selfspec.train import Trainer

START = {"head": "trunk", "joint": "head", "windows": "joint"}


def with_blocks(trunk: Trunk, blocks: int) -> Trunk:
    """The trunk with more blocks, which write nothing yet, so that its law stays."""
    other = Trunk(replace(trunk.config, blocks=blocks))
    other.load_state_dict(trunk.state_dict(), strict=False)
    for block in other.blocks[trunk.config.blocks :]:
        for name, layer in block.named_modules():
            if is_output(name):
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    return other


def source(folder: Path, recipe: Recipe) -> SSMD:
    """The model to start from: its head only where the recipe has the same."""
    model = checkpoint.load(folder)
    assert isinstance(model, SSMD)
    assert isinstance(model.trunk, Trunk)
    same = model.head is not None and model.head.config == recipe.head
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.train.seed)
        return SSMD(with_blocks(model.trunk, recipe.trunk.blocks), model.head if same else None)


def affordable(trainer: Any, seconds: float, began: float, ragged: bool = False) -> int:
    """Steps that end `seconds` after `began`, at the speed of some that are thrown away.

    Ragged batches have a few widths, compiled one by one: two of their pools hold them all.
    """
    warmup, repeats, middle = (32, 32, fmean) if ragged else (4, 8, median)
    with trainer.prepared():
        timing = median_seconds(trainer.update, trainer.device, repeats, warmup)
    trainer.feed.close()
    return max(1, int((seconds - (time.monotonic() - began)) / middle(timing.seconds)))


def planned(run: Path, make: Callable[[int], Trainer], seconds: float, ragged: bool) -> int:
    """The steps of a run that is to end after about so many seconds; kept with it."""
    plan, began = run / "steps.json", time.monotonic()
    if not plan.exists():
        # A tenth is left for compiling once more, validations and checkpoints.
        steps = affordable(make(10**6), 0.9 * seconds, began, ragged)
        run.mkdir(parents=True, exist_ok=True)
        write_json(plan, {"steps": steps})
    return json.loads(plan.read_text())["steps"]


def main(recipes: ModuleType = books27, about: str | None = __doc__) -> None:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.bin, valid.bin")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--device", default=None)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, over the recipe's")
    parser.add_argument("stages", nargs="+", metavar="stage=steps[@start]")
    args = parser.parse_args()
    stores = [open_store(args.data / f"{split}.bin") for split in ("train", "valid")]
    for item in args.stages:
        run_stage(args, recipes, item, *stores)


def run_stage(
    args: argparse.Namespace, recipes: ModuleType, item: str, train: Store, valid: Store
) -> None:
    """Runs `stage=steps[@start]`."""
    stage, _, rest = item.partition("=")
    steps, _, other = rest.partition("@")
    other = other or START.get(stage)

    def make(steps: int, folder: Path | None = None) -> Trainer:
        recipe = getattr(recipes, stage.replace("-", "_"))(steps=steps, **args.settings)
        start = source(args.runs / other / "model", recipe) if other else None
        return recipe.trainer(folder, train, valid, start, args.device)

    run, ragged = args.runs / stage, isinstance(train, RaggedStore)
    if steps.endswith("s"):
        steps = planned(run, make, float(steps[:-1]), ragged)
    trainer = make(int(steps), run)
    trainer.run()
    print(stage, f"{trainer.step} steps", json.dumps(trainer.validation), flush=True)


if __name__ == "__main__":
    main()
