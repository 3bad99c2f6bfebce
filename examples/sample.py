"""Sample texts on a budget, and see what they cost.

python examples/sample.py [CHECKPOINT]
"""

import sys

import selfspec as ss


def main(checkpoint: str = "books27") -> None:
    model = ss.load(checkpoint)
    plain = ss.FixedCountSampler(model, steps=12)
    verified = ss.SpeculativeSampler(model, window=ss.CosineWindow(0.083), rounds=4)
    for name, sampler in {"plain": plain, "self-speculative": verified}.items():
        samples = ss.generate(model, 2, sampler=sampler, seed=1)
        print(f"{name}: {samples.nfe.mean():.1f} evaluations, "
              f"{samples.trunk_passes.double().mean():.1f} trunk passes, "
              f"{samples.head_passes.double().mean():.1f} head passes, "
              f"{samples.acceptance:.0%} of the drafts stand")  # fmt: skip
        print(*(f"  {text}" for text in samples), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
