"""Hold-out by cluster: no test protein has a near relative among the training proteins.

Two sequences are linked if they share at least three different 6-mers (all, where one has fewer)
and 3 % of those of the one with fewer, which relatives of about 55 % identity do. Clusters are the
connected components of the links. They come in a random order that the seed fixes, and the first
ones fill the held-out splits; a cluster with more than a tenth of a split stays in training. So any
two sequences in different splits are certainly not linked.

What a model has learned of the families that it was trained on is another question, and `relatives`
answers it: sequences that are held out at random, each with relatives in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from selfspec.kmers import Kmers, kmers, shared_kmers

SHARE, LEAST, K = 0.03, 3, 6
HELD_OUT = {"valid": 0.05, "test": 0.05}
"""The share of the sequences in each held-out split."""


def cluster(sequences: Sequence[npt.ArrayLike], vocab_size: int) -> npt.NDArray[np.int64]:
    """The cluster of each sequence: (n,), named by its first sequence.

    Args:
        sequences: n arrays of tokens in 0..V-1.
        vocab_size: V.
    """
    return components(len(sequences), *links(kmers(sequences, vocab_size, K)))


def links(found: Kmers) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of sequences that share enough, as two arrays."""
    first, second, count = shared_kmers(found)
    fewest = np.minimum(found.counts[first], found.counts[second])
    keep = count >= np.maximum(np.minimum(LEAST, fewest), SHARE * fewest)
    return first[keep], second[keep]


def components(n: int, first: np.ndarray, second: np.ndarray) -> npt.NDArray[np.int64]:
    """The least number that each of 0..n-1 is connected with, by edges first[i] – second[i]: (n,).

    >>> components(5, np.array([1, 3]), np.array([3, 4])).tolist()
    [0, 1, 2, 1, 1]
    """
    label = np.arange(n)
    while True:
        least, old = np.minimum(label[first], label[second]), label.copy()
        np.minimum.at(label, first, least)
        np.minimum.at(label, second, least)
        label = label[label]
        if (label == old).all():
            return label


def split(
    label: npt.NDArray[np.int64],
    held_out: Mapping[str, float] = HELD_OUT,
    seed: int = 0,
    relatives: float = 0.0,
) -> dict[str, npt.NDArray[np.int64]]:
    """The sequences of each split, "train" first: whole clusters, in rising order.

    Args:
        label: (n,) the cluster of each sequence.
        held_out: splits and the share of the sequences that each is to have, as near as the
            clusters allow.
        seed: of the order of the clusters.
        relatives: share of the sequences in one more split, "relatives", drawn from those of
            training; one of each cluster stays there.

    Raises:
        ValueError: a split gets no sequence, or `relatives` is no share.
    """
    if not 0 <= relatives < 1:
        raise ValueError(f"`relatives` must be at least 0 and below 1, got {relatives}")
    names, sizes = np.unique(label, return_counts=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    rest = np.ones(len(names), bool)
    parts = {}
    for name, share in held_out.items():
        small = order[rest[order] & (sizes[order] <= max(1.0, 0.1 * share * len(label)))]
        chosen = small[sizes[small].cumsum() <= share * len(label)]
        rest[chosen] = False
        parts[name] = np.flatnonzero(np.isin(label, names[chosen]))
    parts = {"train": np.flatnonzero(np.isin(label, names[rest])), **parts}
    if relatives:
        shuffled = rng.permutation(parts["train"])
        one_of_each = np.unique(label[shuffled], return_index=True)[1]
        chosen = np.delete(shuffled, one_of_each)[: round(relatives * len(label))]
        parts["train"] = np.setdiff1d(parts["train"], chosen)
        parts["relatives"] = np.sort(chosen)
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"`label` must have enough clusters for a split {name!r}, "
                             f"got {len(names)} of {len(label)} sequences")  # fmt: skip
    return parts
