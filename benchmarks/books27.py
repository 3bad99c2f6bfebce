"""Train the models of `books27` one after another.

    python benchmarks/books27.py --data DATA --runs RUNS trunk=6000 head=1500 joint=4000

Each `stage=steps` runs a recipe of `selfspec/recipes/books27.py` and keeps it in RUNS/stage; a run
that was stopped is resumed. `head` starts from `trunk`, `joint` from `head`, `windows` from
`joint`; `stage=steps@other` starts from RUNS/other instead, also where a stage would start afresh.
A trunk with fewer blocks than the recipe's is deepened by blocks that add nothing at first, one
with more is cut at its end: 10+2 blocks, say, against 11+1 at equal training, are

    python benchmarks/books27.py … --blocks 10 --head '{"heads": 8, "blocks": 2}' joint=3000@trunk
    python benchmarks/books27.py … joint=3000@trunk
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from selfspec import checkpoint
from selfspec.data.corpus import open_store
from selfspec.model import SSMD
from selfspec.nn.head import HeadConfig
from selfspec.nn.transformer import Trunk, is_output
from selfspec.recipes import Recipe, books27

START = {"head": "trunk", "joint": "head", "windows": "joint"}


def with_blocks(trunk: Trunk, blocks: int) -> Trunk:
    """The trunk cut after some blocks, or with more that write nothing yet: then its law stays."""
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


def main(recipes: ModuleType = books27, about: str | None = __doc__) -> None:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.bin, valid.bin")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--device", default=None)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, over the recipe's")
    parser.add_argument("--blocks", type=int, help="of the trunk, other than the recipe's")
    parser.add_argument("--head", type=json.loads, help="JSON of another HeadConfig")
    parser.add_argument("stages", nargs="+", metavar="stage=steps[@start]")
    args = parser.parse_args()
    train, valid = (open_store(args.data / f"{split}.bin") for split in ("train", "valid"))
    for item in args.stages:
        stage, _, rest = item.partition("=")
        steps, _, other = rest.partition("@")
        recipe = getattr(recipes, stage.replace("-", "_"))(steps=int(steps), **args.settings)
        if args.blocks:
            recipe = replace(recipe, trunk=replace(recipe.trunk, blocks=args.blocks))
        if args.head and recipe.head:
            recipe = replace(recipe, head=HeadConfig(**args.head))
        other = other or START.get(stage)
        start = source(args.runs / other / "model", recipe) if other else None
        trainer = recipe.trainer(args.runs / stage, train, valid, start, args.device)
        trainer.run()
        print(stage, json.dumps(trainer.validation), flush=True)


if __name__ == "__main__":
    main()
