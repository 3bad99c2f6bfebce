"""Dilated: positions far apart in the same pass, from a schedule of positions alone.

The places to generate, numbered 0, 1, … from left to right, are cut into blocks of size b, decoded
one after another. Within a block the stride s starts at ⌊b/a⌋ and is divided by a until it is 1
(rounded down, at least 1); each stride is one pass,

    U = {r : r mod s = 0, r still masked},     x_U ~ p_U,

r the number within the block. Source: DUS 2506.19037, a = 2, blocks of 8 to 64; its code merges a
last small pass into the one before, which is not done here.

σ and counts are fixed in advance, so `likelihood.log_likelihood` applies with `DilatedOrder`,
`DilatedWindow` and `rounds=0`, and both serve self-speculative sampling too.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.model import SSMD
from selfspec.sampling.plain import PlainSampler
from selfspec.schedules import up_to_next

__all__ = ["DilatedOrder", "DilatedSampler", "DilatedWindow"]


@lru_cache(maxsize=256)
def dilated_passes(n: int, block: int, base: int) -> np.ndarray:
    """The pass in which each of n places is revealed: (n,) int64.

    >>> dilated_passes(10, 8, 2)
    array([0, 2, 1, 2, 0, 2, 1, 2, 3, 3])
    """
    passes, first = np.full(n, -1), 0
    for begin in range(0, n, block):
        inside = passes[begin : begin + block]
        stride = len(inside)
        while (inside < 0).any():
            stride = max(1, stride // base)
            inside[(np.arange(len(inside)) % stride == 0) & (inside < 0)] = first
            first += 1
    return passes


@dataclass(frozen=True)
class _Dilated:
    """Block size b and base a.

    Raises:
        ValueError: `block` below 1 or `base` below 2.
    """

    block: int = 64
    base: int = 2

    def __post_init__(self):
        whole("block", self.block, least=1)
        whole("base", self.base, least=2)

    def passes(self, n: int) -> np.ndarray:
        """The pass of each of n places."""
        return dilated_passes(n, self.block, self.base).copy()


@dataclass(frozen=True)
class DilatedOrder(_Dilated):
    """The σ of the module: block by block, stride by stride; within a pass in random order."""

    fixed: ClassVar[bool] = True

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        """(pass + u) / (n + 1)."""
        keys = torch.zeros_like(u)
        for row, count in enumerate(masked.sum(1).tolist()):
            if count:
                passes = torch.from_numpy(self.passes(count)).to(u.device)
                keys[row, masked[row]] = (passes + u[row, masked[row]]) / (count + 1)
        return keys


@dataclass(frozen=True)
class DilatedWindow(_Dilated):
    """The counts of the module's passes."""

    def table(self, n: int) -> np.ndarray:
        """From i to the end of the pass that i falls into."""
        return up_to_next(np.cumsum(np.bincount(self.passes(n))))


class DilatedSampler(PlainSampler):
    """Positions far apart, from positions alone.

    Args:
        model: an `SSMD`.
        block: b ≥ 1.
        base: a ≥ 2.
        temperature, top_p: as in `Sampler`.
    """

    def __init__(
        self,
        model: SSMD,
        block: int = 64,
        base: int = 2,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        order, window = DilatedOrder(block, base), DilatedWindow(block, base)
        super().__init__(model, order, window, temperature, top_p)
