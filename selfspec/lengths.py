"""How long sequences are: the histogram that a model of many lengths carries.

P(N = n) = counts[(n-1) div w] / (Σ counts · lengths in that bin),     n = 1..longest
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfspec.noise import Purpose, uniform

__all__ = ["Lengths"]

BINS = 64


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths.

    Attributes:
        counts: sequences in each bin, of which the first holds the lengths 1..width.
        width: w, lengths a bin; the last bin may have fewer.
        longest: the last length there is.
    """

    counts: tuple[int, ...]
    width: int
    longest: int

    def __post_init__(self):
        if self.width < 1 or not 0 <= self.width * len(self.counts) - self.longest < self.width:
            raise ValueError(f"`counts` must be bins of `width` up to `longest`, got "
                             f"{len(self.counts)} of {self.width} to {self.longest}")  # fmt: skip
        if min(self.counts) < 0 or not sum(self.counts):
            raise ValueError(f"`counts` must be at least 0 and not all 0, got {self.counts}")

    @classmethod
    def of(cls, lengths: npt.ArrayLike, longest: int) -> "Lengths":
        """The histogram of some lengths, longer ones counted as `longest`, in at most 64 bins."""
        width = -(-longest // BINS)
        bins = (np.minimum(lengths, longest).astype(np.int64) - 1) // width
        counts = np.bincount(bins, minlength=-(-longest // width))
        return cls(tuple(counts.tolist()), width, longest)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Lengths":
        """What `to_config` described.

        Raises:
            ValueError: `config` is no description of lengths.
        """
        try:
            counts = tuple(map(int, config["counts"]))
            return cls(counts, int(config["width"]), int(config["longest"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`lengths` must be a histogram, got {config!r} ({error!r})"
            ) from error

    def to_config(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return asdict(self) | {"counts": list(self.counts)}

    def draw(self, seeds: Tensor) -> Tensor:
        """A length for each row seed: (B,) int64, a function of the seed alone."""
        u = uniform(seeds, Purpose.LENGTH, 0, 0, torch.zeros_like(seeds).unsqueeze(1)).squeeze(1)
        share = torch.tensor(self.counts, device=u.device, dtype=torch.float64)
        edges = (share.cumsum(0) / share.sum()).contiguous()
        index = torch.searchsorted(edges, u, right=True).clamp(max=len(self.counts) - 1)
        # What is left of u within its bin is uniform again.
        within = (u - (edges - share / share.sum())[index]) * share.sum() / share[index]
        first = index * self.width
        size = (self.longest - first).clamp(max=self.width)
        return 1 + first + (within.clamp(0, 1 - 2**-52) * size).long()
