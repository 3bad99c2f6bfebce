"""A rule of your own for the order in which positions are revealed.

python examples/own_order.py [CHECKPOINT]

A rule is a class with one method. It gives a key to every masked position; positions with smaller
keys are revealed earlier. It may use positions and random numbers, never tokens, and says whether
it is fixed in advance; if it is, exact likelihoods come with it.
"""

import sys
from typing import ClassVar

import torch
from torch import Tensor

import selfspec as ss


class EvenFirst:
    """Even positions in random order, then odd ones: no neighbours are drafted together."""

    fixed: ClassVar[bool] = True

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        """Keys in [0, 1): (B, L)."""
        odd = torch.arange(masked.shape[1], device=u.device) % 2
        return (odd + u) / 2


def main(checkpoint: str = "books27") -> None:
    model = ss.load(checkpoint)
    window = ss.CosineWindow(0.083)
    for rule in (ss.UniformOrder(), EvenFirst()):
        samples = ss.generate(model, 2, order=rule, window=window, rounds=4)
        logp = ss.log_likelihood(model, samples.tokens[:, :24], rule, window, rounds=4)
        print(f"{type(rule).__name__}: {samples.nfe.mean():.1f} evaluations, "
              f"log p of the first letters {logp.mean():.1f}")  # fmt: skip
        print(*(f"  {text}" for text in samples), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
