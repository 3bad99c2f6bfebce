"""Train the models of `books27` one after another.

    python benchmarks/books27.py --data DATA --runs RUNS trunk=6000 head=1500 joint=4000

Each `stage=steps` runs a recipe of `selfspec/recipes/books27.py` and keeps it in RUNS/stage;
a run that was stopped is resumed. `head` starts from `trunk`, `joint` from `head`.
"""

import argparse
import json
from pathlib import Path

from selfspec.data.loader import TokenStore
from selfspec.recipes import books27

START = {"head": "trunk", "joint": "head", "windows": "joint"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.bin, valid.bin")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--device", default=None)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, over the recipe's")
    parser.add_argument("stages", nargs="+", metavar="stage=steps")
    args = parser.parse_args()
    train, valid = (TokenStore(args.data / f"{split}.bin") for split in ("train", "valid"))
    for stage, steps in (item.split("=") for item in args.stages):
        recipe = getattr(books27, stage.replace("-", "_"))(steps=int(steps), **args.settings)
        start = args.runs / START[stage] / "model" if stage in START else None
        trainer = recipe.trainer(args.runs / stage, train, valid, start, args.device)
        trainer.run()
        print(stage, json.dumps(trainer.validation), flush=True)


if __name__ == "__main__":
    main()
