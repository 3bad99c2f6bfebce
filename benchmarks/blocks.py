"""How many of twelve blocks should be causal: 11+1 against 10+2, at equal training.

    python benchmarks/blocks.py --data DATA --runs RUNS --steps 1500

Both are trained from scratch, trunk and head together, by the recipe `joint` of `books27`: the same
batches, orders and numbers of known tokens. Reported of each are its validations, and what
`windows.py` reads off held-out text: how much of the gap the head closes, and the exact bits per
character under every window with the evaluations that they cost, where a round of two head blocks
costs twice that of one. A run that was stopped is resumed.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from runs import validations
from windows import GAPS, exact_table, gap, rows

from selfspec import checkpoint
from selfspec.arena.report import commit, machine, running
from selfspec.data.corpus import open_corpus
from selfspec.files import write_json
from selfspec.likelihood import Scores
from selfspec.model import SSMD
from selfspec.recipes import Recipe, books27

VARIANTS = {"11+1": (11, 1), "10+2": (10, 2)}


def main() -> None:
    args = parse()
    stores = open_corpus(args.data)[1]
    report: dict[str, Any] = {
        "machine": machine(),
        "commit": commit(),
        "command": running(),
        "seed": args.seed,
        "steps": args.steps,
        "rows_a_step": args.rows,
        "n": args.n,
    }
    for name in args.names:
        folder = args.runs / name
        recipe(name, args).trainer(folder, stores["train"], stores["valid"]).run()
        model = checkpoint.load(folder / "model", "cuda" if torch.cuda.is_available() else "cpu")
        assert isinstance(model, SSMD)
        table = table_of(model, stores["test"].excerpt(model.length, args.n), args.seed)
        report[name] = {
            "validations": validations(folder / "log.jsonl"),
            "gap": [gap(table, dtau, args.seed) for dtau in GAPS],
            "rows": rows(model, table, args.seed),
        }
        write_json(args.out, report)


def recipe(name: str, args: argparse.Namespace) -> Recipe:
    trunk, head = VARIANTS[name]
    made = books27.joint(args.steps, batch_size=args.rows, seed=args.seed, valid_every=500)
    return replace(
        made,
        name=f"books27-{name}",
        trunk=replace(books27.TRUNK, blocks=trunk),
        head=replace(books27.HEAD, blocks=head),
    )


def table_of(model: SSMD, texts: Any, seed: int) -> Scores:
    """The exact scores under the uniform order, on the CPU."""
    device = model.device.type
    tokens = torch.from_numpy(texts.astype("int64")).to(device)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return exact_table(model, tokens, "uniform", seed, 1024 if device == "cuda" else 64)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="of `selfspec prepare`")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--names", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rows", type=int, default=1024, help="a step")
    parser.add_argument("--n", type=int, default=256, help="held-out texts, a pass a character")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/books27-blocks.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
