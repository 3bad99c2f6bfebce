"""Two-sample tests: the compiled engine against `sampling/`, on a real checkpoint and device.

    python benchmarks/same_law.py --num 4096 --out benchmarks/results/same-law-h200.json

Both draw with seeds of their own; a row gives one number for each measure below, and the two sets
of numbers are compared by Kolmogorov and Smirnov's test. `same_rows` is the share of rows that are
equal when the seeds are: below 1 only because bfloat16 rounds otherwise in other shapes.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from selfspec import checkpoint
from selfspec.arena.report import commit, machine, running
from selfspec.engine import Engine
from selfspec.files import write_json
from selfspec.interfaces import Samples
from selfspec.metrics import judge_nll
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.noise import row_seeds
from selfspec.sampling import FixedCountSampler, Sampler, SpeculativeSampler
from selfspec.schedules import CosineWindow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/same-law.json"))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, judge = checkpoint.load("books27", device), checkpoint.load("books27-judge", device)
    assert isinstance(model, SSMD)
    assert isinstance(judge, AutoregressiveModel)
    report = {
        "machine": machine(),
        "command": running(),
        "commit": commit(),
        "seeds": [0, 1],
        "num": args.num,
        "rows": [],
    }  # fmt: skip
    for name, sampler in samplers(model).items():
        engine = Engine(model, args.batch, compile=device == "cuda")
        tokens = torch.full((args.num, model.length), model.mask_id, device=device)
        ours = engine.sample(sampler, tokens, 0)
        theirs = reference(sampler, tokens, row_seeds(1, args.num, device), args.batch)
        again = reference(sampler, tokens, row_seeds(0, args.num, device)[: args.batch], args.batch)
        same = (again.tokens == ours.tokens[: len(again)]).all(1).double().mean()
        pairs = zip(measures(ours, judge).items(), measures(theirs, judge).values(), strict=True)
        row = {
            "sampler": name,
            "same_rows": float(same),
            "p_values": {what: two_sample(a, b) for (what, a), b in pairs},
        }
        print(row, flush=True)
        report["rows"].append(row)
        write_json(args.out, report)


def samplers(model: SSMD) -> dict[str, Sampler]:
    return {
        "self-speculative 4, 0.083": SpeculativeSampler(model, None, CosineWindow(0.083), 4),
        "self-speculative 4, 0.02": SpeculativeSampler(model, None, CosineWindow(0.02), 4),
        "plain 16": FixedCountSampler(model, steps=16),
    }


def reference(sampler: Sampler, tokens: torch.Tensor, seeds: torch.Tensor, batch: int) -> Samples:
    """In bfloat16 on CUDA, as the engine is there."""
    cuda = tokens.device.type == "cuda"
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=cuda):
        return Samples.concatenate(
            [sampler.sample(tokens[: len(part)], part) for part in seeds.split(batch)]
        )


def two_sample(ours: list[float], theirs: list[float]) -> float:
    """The p-value."""
    result: Any = stats.ks_2samp(ours, theirs)
    return float(result.pvalue)


def measures(samples: Samples, judge: AutoregressiveModel) -> dict[str, list[float]]:
    """One number a row each."""
    drawn = samples.tokens
    changes = (drawn[:, 1:] == drawn[:, :-1]).sum(1)
    return {
        "judge": judge_nll(drawn, judge.log_probs, device=drawn.device).bits.tolist(),
        "spaces": (drawn == 0).sum(1).tolist(),
        "vowels": torch.isin(drawn, torch.tensor([1, 5, 9, 15, 21]).to(drawn)).sum(1).tolist(),
        "doubles": changes.tolist(),
        "trunk_passes": samples.trunk_passes.tolist(),
        "head_passes": samples.head_passes.tolist(),
        "accepted": samples.accepted.tolist(),
    }


if __name__ == "__main__":
    main()
