"""Sequences of their own lengths, and batches of them.

A ragged store is two token files (`loader.py`): `<name>.bin`, the tokens of all sequences one after
another, and `<name>.lengths`, how many each has.

Epochs are permutations of the n sequences, one after another in one endless list of slots. The
slots are cut into pools of P global batches of G = world · batch_size rows; a pool is sorted by
length, cut into its batches, and these come in random order. So the rows of a batch have similar
lengths, and a batch is padded to the least of a few widths that holds its longest row. A sequence
longer than L is cropped to L tokens at a random place.

As in `loader.py` a batch is a pure function of (seed, step, rank, world), every sequence comes
exactly once an epoch, and w ranks of batch B/w see together what one rank of batch B sees.

Rows with pads are a `numpy` masked array (B, L): masked where there is no token.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from selfspec.checks import whole
from selfspec.data.loader import TokenStore, check_shares, even, write_store


class RaggedStore:
    """A store of sequences, as `write_sequences` leaves it.

    Args:
        path: the token file.
        verify: read both files once and compare their SHA-256 with the headers'.

    Attributes:
        tokens: all tokens, read-only.
        lengths: (n,) of the sequences.
        offsets: (n,) int64 where they start; in memory, 8 bytes a sequence.
        vocab_size: V.
        sha256: of the token file.

    Raises:
        ValueError: a file is missing, foreign, truncated or altered, or the two do not fit.
    """

    def __init__(self, path: str | os.PathLike[str], verify: bool = False) -> None:
        self.path = Path(path)
        store = TokenStore(path, verify)
        self.tokens, self.vocab_size, self.sha256 = store.tokens, store.vocab_size, store.sha256
        self.lengths = TokenStore(self.path.with_suffix(".lengths"), verify).tokens
        ends = self.lengths.cumsum(dtype=np.int64)
        if ends[-1] != len(store):
            raise ValueError(f"`path` must be a ragged store, got {path}: its sequences have "
                             f"{ends[-1]} tokens, the file {len(store)}")  # fmt: skip
        self.offsets = ends - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> npt.NDArray[np.unsignedinteger]:
        """The tokens of a sequence, a view."""
        start = self.offsets[index]
        return self.tokens[start : start + int(self.lengths[index])]

    def rows(
        self, index: npt.ArrayLike, width: int, starts: npt.ArrayLike = 0
    ) -> np.ma.MaskedArray:
        """At most `width` tokens of some sequences, from `starts` on: (B, width) int64, padded."""
        index, starts = np.asarray(index), np.asarray(starts)
        places = np.arange(width)
        left = (self.lengths[index] - starts).astype(np.int64)
        pad = places >= left[:, None]
        at = (self.offsets[index] + starts)[:, None] + places
        tokens = self.tokens[np.where(pad, 0, at)].astype(np.int64)
        return np.ma.masked_array(tokens, mask=pad)

    def loader(
        self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> BucketLoader:
        """Training batches."""
        return BucketLoader(self, length, batch_size, seed, rank, world)

    def excerpt(self, length: int, rows: int) -> np.ma.MaskedArray:
        """At most `rows` sequences, evenly spaced, the first `length` tokens of each."""
        index = even(len(self), rows)
        return self.rows(index, min(length, int(self.lengths[index].max())))


def write_sequences(
    path: str | os.PathLike[str], sequences: Iterable[npt.ArrayLike], vocab_size: int
) -> RaggedStore:
    """Writes sequences as a ragged store.

    Args:
        path: the token file; the lengths go beside it.
        sequences: (l,) integer arrays of at least one token in 0..V-1.
        vocab_size: V.

    Raises:
        ValueError: a token is not in 0..V-1, a sequence is empty, or there is none.
    """
    lengths: list[int] = []

    def noted() -> Iterator[npt.ArrayLike]:
        for sequence in sequences:
            lengths.append(np.size(sequence))
            if not lengths[-1]:
                raise ValueError(f"`sequences` must not be empty, got none in {len(lengths) - 1}")
            yield sequence

    write_store(path, noted(), vocab_size)
    write_store(Path(path).with_suffix(".lengths"), [np.array(lengths)], 2**32)
    return RaggedStore(path)


class Pool(NamedTuple):
    """The global batches of a pool: (P, G) each."""

    index: np.ndarray
    starts: np.ndarray


class BucketLoader:
    """Batches of sequences of similar lengths; see the formula of this module.

    Args:
        store: the corpus.
        length: L, the longest row.
        batch_size: B, rows a batch on this rank.
        seed: of permutations and crops; at least 0 and the same on every rank.
        rank: r, this process.
        world: the number of processes.
        buckets: how many widths a batch may have, the multiples of L / `buckets` (rounded up to
            whole eights): few, because a compiled network is compiled for each.
        pool: P; the larger, the fewer pads.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        store: RaggedStore,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        buckets: int = 4,
        pool: int = 32,
    ) -> None:
        check_shares(batch_size, seed, rank, world)
        for name, value in {"length": length, "buckets": buckets, "pool": pool}.items():
            whole(name, value, least=1)
        self.store, self.length, self.batch_size = store, length, batch_size
        self.seed, self.rank, self.world, self.pool = seed, rank, world, pool
        steps = np.arange(1, buckets + 1) * length / buckets
        self.widths = np.unique(np.minimum(length, 8 * np.ceil(steps / 8).astype(np.int64)))
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)
        self._pool = lru_cache(maxsize=2)(self._draw_pool)

    def batch(self, step: int) -> np.ma.MaskedArray:
        """The batch of this rank at `step`: (B, width) tokens, masked at pads.

        Args:
            step: t, at least 0; the only state there is.

        Raises:
            ValueError: `step` is negative.
        """
        whole("step", step, least=0)
        number, slot = divmod(step, self.pool)
        index, starts = (part[slot] for part in self._pool(number))
        longest = min(self.length, int(self.store.lengths[index].max()))
        width = int(self.widths[np.searchsorted(self.widths, longest)])
        own = slice(self.rank, None, self.world)  # all ranks get lengths alike
        return self.store.rows(index[own], width, starts[own])

    def _draw_permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        """The order in which the sequences of an epoch come: (n,)."""
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.store))

    def _draw_pool(self, number: int) -> Pool:
        size = self.pool * self.batch_size * self.world
        epochs, places = np.divmod(np.arange(number * size, (number + 1) * size), len(self.store))
        index = np.empty(size, np.int64)
        for epoch in np.unique(epochs).tolist():
            index[epochs == epoch] = self._permutation(epoch)[places[epochs == epoch]]
        lengths = self.store.lengths[index].astype(np.int64)
        index = index[np.minimum(lengths, self.length).argsort(kind="stable")]
        rng = np.random.default_rng([self.seed, 1, number])
        index = rng.permutation(index.reshape(self.pool, -1))
        slack = np.maximum(self.store.lengths[index].astype(np.int64) - self.length, 0)
        return Pool(index, rng.integers(slack + 1))
