"""The trained guides of the arena: an error predictor and an unmasking policy for one checkpoint.

    python benchmarks/guides.py --data DATA --runs RUNS errors policy
    python benchmarks/arena.py --against guided policy --predictor RUNS/errors/model \
        --policy RUNS/policy/model ...

The policy is paid by a judge that is not the arena's. Its price of a step, --alpha, decides how
many it takes; the arena's temperatures spread them. A stage stops after --seconds, and the same
command continues it.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from selfspec import checkpoint
from selfspec.data.corpus import open_corpus
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.recipes import guides
from selfspec.train import Likelihood, Trainer

TINY: dict[str, Any] = {"steps": 2, "batch_size": 2}


def main() -> None:
    args = parse()
    for stage in args.stages:
        trainer = {"errors": errors, "policy": policy}[stage](args)
        trainer.run(None if math.isinf(args.seconds) else args.seconds)
        print(f"{stage}: step {trainer.step} of {trainer.config.steps}, {trainer.elapsed:.0f} s, "
              f"{trainer.validation}", flush=True)  # fmt: skip


def errors(args: argparse.Namespace) -> Trainer:
    """The predictor of guided star-shaped sampling."""
    _, stores = open_corpus(args.data)
    few = TINY if args.tiny else {"steps": args.errors}
    return guides.errors(
        loaded(args), args.runs / "errors", stores["train"], stores["valid"], **few
    )


def policy(args: argparse.Namespace) -> Trainer:
    """The policy, paid by what --judge thinks of its texts."""
    judge = checkpoint.load(args.judge, guides.default_device())
    assert isinstance(judge, AutoregressiveModel)
    _, stores = open_corpus(args.data)
    few = TINY if args.tiny else {"steps": args.policy}
    return guides.policy(
        loaded(args), Likelihood(judge), args.runs / "policy", stores["train"], alpha=args.alpha,
        **few, log_every=10,
    )  # fmt: skip


def loaded(args: argparse.Namespace) -> SSMD:
    model = checkpoint.load(args.model, guides.default_device())
    assert isinstance(model, SSMD)
    return model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=["errors", "policy"])
    parser.add_argument("--model", default="books27", help="a folder, or a bundled name")
    parser.add_argument("--judge", default="books27-judge", help="what pays the policy")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--errors", type=int, default=3000, help="steps of the predictor")
    parser.add_argument("--policy", type=int, default=300, help="steps of the policy")
    parser.add_argument("--alpha", type=float, default=4.0, help="price of a step")
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--tiny", action="store_true", help="two steps, to try it")
    return parser.parse_args()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
