"""Substrings of k tokens, as numbers: what sequences have in common without aligning them.

The k-mer x_0 … x_(k-1) over V tokens has the code Σ_j x_j V^(k-1-j). A mutation destroys k of them,
so sequences of identity s share about s^k of theirs: at k = 6 and s = ½ still 1.6 %, while two
unrelated proteins of 350 residues rarely share a single one. A library for alignments would be
sharper, but each at hand is a compiled extension or slow; this is numpy, and takes seconds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Kmers", "Shared", "common", "kmers", "shared_kmers"]

Ints = npt.NDArray[np.int64]


class Kmers(NamedTuple):
    """The different k-mers of every sequence, by rising code."""

    codes: Ints
    """(m,) sorted; a code comes once for each sequence that has it."""
    owners: Ints
    """(m,) the sequence of each."""
    counts: Ints
    """(n,) different k-mers of each sequence."""


class Shared(NamedTuple):
    """Pairs a < b of sequences with a k-mer in common."""

    first: Ints
    second: Ints
    count: Ints
    """Different k-mers that both have."""


def kmers(sequences: Sequence[npt.ArrayLike], vocab_size: int, k: int = 6) -> Kmers:
    """The different k-mers of each sequence.

    Args:
        sequences: n arrays of tokens in 0..V-1; one shorter than k has none.
        vocab_size: V.
        k: tokens in a row, at least 1.

    Raises:
        ValueError: `k` is below 1, or V^k does not fit into 62 bits.
    """
    if k < 1 or vocab_size**k >= 1 << 62:
        raise ValueError(f"`k` must be at least 1 and V^k below 2^62, got k={k}, V={vocab_size}")
    each = [_codes(np.asarray(sequence), vocab_size, k) for sequence in sequences]
    counts = np.array([len(codes) for codes in each], np.int64)
    codes = np.concatenate([*each, np.empty(0, np.int64)])
    order = codes.argsort(kind="stable")
    return Kmers(codes[order], np.repeat(np.arange(len(each)), counts)[order], counts)


def shared_kmers(found: Kmers) -> Shared:
    """All pairs of sequences that share a k-mer, and how many: Σ over k-mers of its owners' pairs.

    >>> shared_kmers(kmers([[0, 1, 1], [1, 1, 0], [0, 0]], vocab_size=2, k=2))
    Shared(first=array([0]), second=array([1]), count=array([1]))
    """
    n, pairs = len(found.counts), [np.empty(0, np.int64)]
    at, distance = np.arange(len(found.codes)), 0
    while len(at):  # equal codes stand together: their owners at distance 1, 2, … are pairs
        distance += 1
        at = at[: np.searchsorted(at, len(found.codes) - distance)]
        at = at[found.codes[at] == found.codes[at + distance]]
        pairs.append(found.owners[at] * n + found.owners[at + distance])
    code, count = np.unique(np.concatenate(pairs), return_counts=True)
    return Shared(code // n, code % n, count)


def common(samples: Kmers, data: Kmers) -> Ints:
    """The most different k-mers that each sample has in common with one sequence of the data: (n,).

    Args:
        samples: n sequences.
        data: any number of sequences, of the same V and k.
    """
    rows, size = len(samples.counts), len(data.counts)
    first = np.searchsorted(data.codes, samples.codes, "left")
    hits = np.searchsorted(data.codes, samples.codes, "right") - first
    # Every hit of every k-mer: `first` of it, then how far behind.
    behind = np.arange(hits.sum()) - np.repeat(hits.cumsum() - hits, hits)
    owners = data.owners[np.repeat(first, hits) + behind]
    pair, count = np.unique(np.repeat(samples.owners, hits) * size + owners, return_counts=True)
    most = np.zeros(rows, np.int64)
    np.maximum.at(most, pair // max(size, 1), count)
    return most


def _codes(tokens: np.ndarray, vocab_size: int, k: int) -> Ints:
    """The different k-mers of one sequence."""
    places = max(0, len(tokens) - k + 1)
    code = np.zeros(places, np.int64)
    for j in range(k):
        code = code * vocab_size + tokens[j : j + places]
    return np.unique(code)
