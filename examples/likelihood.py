"""The law of the samples depends on the settings; this computes it exactly.

python examples/likelihood.py [CHECKPOINT]

Bits per character of one sentence under plain and self-speculative sampling, and under the target
of a single pass. Lower is better.
"""

import math
import sys

import torch

import selfspec as ss

TEXT = "it was a bright cold day in april"


def main(checkpoint: str = "books27") -> None:
    model = ss.load(checkpoint)
    assert model.tokenizer is not None
    tokens = torch.from_numpy(model.tokenizer.encode(TEXT)).unsqueeze(0)
    bits = -1 / (math.log(2) * len(TEXT))
    window = ss.ScheduleWindow(ss.CosineSchedule(), 8)
    for name, settings in {
        "plain, 8 passes": {"window": window, "rounds": 0},
        "verified, 1 round": {"window": window, "rounds": 1},
        "verified, 4 rounds": {"window": window, "rounds": 4},
        "one token a pass": {"window": ss.ConstantWindow(1), "rounds": 1},
    }.items():
        bound = ss.elbo(model, tokens, orders=4, **settings)
        error = bound.standard_error.item() * -bits
        print(f"{name:20} {bound.mean.item() * bits:.3f} ± {error:.3f}")
    print(f"{'one pass':20} {ss.one_pass_score(model, tokens).item() * bits:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
