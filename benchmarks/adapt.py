"""What it takes to make a causal model masked: the bound before and after, with and without shift.

    python benchmarks/adapt.py HuggingFaceTB/SmolLM2-135M --data books.jsonl --out adapt.json

Two runs of `recipes.adapt_ar` from the same weights on the same rows. In one the states stay where
they predict the next token, as `CausalTrunk` has them; in the other each must learn to predict the
token at its own place. The bound is of the same held-out rows and masks.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from selfspec.arena.report import commit, machine, running
from selfspec.files import write_json
from selfspec.hub import adapt_causal
from selfspec.hub.causal import CausalTrunk
from selfspec.recipes import adapt_ar


class Unshifted(CausalTrunk):
    """The state of a token predicts that token."""

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        return self._run(self.model.base_model, tokens, real)[0][:, 1:]

    def own_logits(self, tokens: Tensor) -> Tensor:
        return self._run(self.model, tokens).logits[:, 1:]


def measure(args: argparse.Namespace, kind: type[CausalTrunk]) -> dict[str, Any]:
    """Nats a token before and after, and seconds."""
    model = adapt_causal(args.model)
    model.trunk.__class__ = kind  # type: ignore[assignment]
    with TemporaryDirectory() as folder:
        trainer = adapt_ar(
            model, args.data, folder, length=args.length, steps=args.steps, seed=args.seed,
            batch_size=args.batch_size, ema_decay=0.0, valid_every=args.steps, progress=False,
        )  # fmt: skip
        assert trainer.valid is not None
        trainer.folder, trainer.valid = None, trainer.valid[: args.valid]
        before = trainer.validate()["draft"]
        start = time.perf_counter()
        trainer.run(progress=sys.stderr.isatty())
        seconds = time.perf_counter() - start
    return {"shift": kind is CausalTrunk, "before": before, "after": trainer.validation["draft"],
            "uniform": math.log(model.vocab_size), "valid_rows": len(trainer.valid),
            "seconds": seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a causal model: a name on the Hub, a folder, a .gguf file")
    parser.add_argument("--data", required=True, help="a text or .jsonl file")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--valid", type=int, default=64, help="held-out rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/adapt.json"))
    args = parser.parse_args()
    rows = [measure(args, kind) for kind in (CausalTrunk, Unshifted)]
    settings = {name: getattr(args, name) for name in ("steps", "length", "batch_size", "seed")}
    report = {
        "model": Path(args.model).name,
        "data": Path(args.data).name,
        **settings,
        "rows": rows,
        "machine": machine(),
        "command": running(),
        "commit": commit(),
    }
    write_json(args.out, report)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
