"""Proteins: are they plausible, varied, and new?

    pLDDT           the folding model's own confidence, 0..100, mean over the atoms of a protein;
                    above 70 it is taken for a confident fold
    composition     Jensen-Shannon divergence of amino-acid frequencies, data and samples, in nats:
                    ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q)/2; from 0 to ln 2
    distinct k-mers different k-mers / k-mers over all samples; falls where samples repeat
    novelty         1 - the largest share of a sample's different k-mers that one training sequence
                    has too: 0 for a copy, 1 where nothing longer than chance is shared

Plausibility under an independent protein language model is `judge_nll` with that model as the
judge. A pLDDT is easily earned by repeats of a helix: quote composition and k-mers beside it, and
all of them for held-out proteins too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selfspec.kmers import Kmers, common, kmers
from selfspec.progress import tracked

__all__ = ["ESMFold", "Folded", "distinct_kmers", "jensen_shannon", "novelty"]

CONFIDENT = 70.0


def jensen_shannon(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Jensen-Shannon divergence of two histograms of the same kinds, in nats, 0..ln 2.

    Raises:
        ValueError: the shapes differ, or one side counts nothing.
    """
    p, q = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if p.shape != q.shape or p.ndim != 1:
        raise ValueError(f"`second` must have the shape of `first`, {p.shape}, got {q.shape}")
    if not p.sum() > 0 or not q.sum() > 0:
        raise ValueError("`first` and `second` must each count something, got nothing")
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    both = [x[x > 0] @ np.log(x[x > 0] / middle[x > 0]) for x in (p, q)]
    return max(0.0, float(sum(both) / 2))


def distinct_kmers(sequences: Sequence[npt.ArrayLike], vocab_size: int, k: int = 6) -> float:
    """Different k-mers as a share of all k-mers of all sequences; nan where none has k tokens.

    It depends on the number of sequences: compare equal numbers only.

    >>> distinct_kmers([[0, 1, 0], [0, 1, 0]], vocab_size=2, k=2)
    0.5
    """
    total = sum(max(0, np.size(sequence) - k + 1) for sequence in sequences)
    different = len(np.unique(kmers(sequences, vocab_size, k).codes))
    return different / total if total else float("nan")


def novelty(samples: Kmers, training: Kmers) -> npt.NDArray[np.float64]:
    """How far each sample is from its nearest training sequence, in k-mers: (n,) in 0..1.

    Args:
        samples: from `kmers.kmers`; one without k-mers is nan.
        training: with the same V and k.
    """
    shared, own = common(samples, training), samples.counts
    return np.where(own > 0, 1 - shared / np.maximum(own, 1), np.nan)


@dataclass(frozen=True)
class Folded:
    """What a folding model says of n sequences."""

    plddt: npt.NDArray[np.float64]
    """(n,) 0..100."""

    @property
    def confident(self) -> float:
        """Share of the sequences with a pLDDT above 70."""
        return float((self.plddt > CONFIDENT).mean())


class ESMFold:
    """The folding model of ESM-2 (Lin et al. 2023), by the `transformers` library.

    Its weights are on the Hub, 8 GB; memory grows with the square of the length.

    Args:
        model: the name of a model, a folder, or an `EsmForProteinFolding` itself.
        device: of the model.

    Raises:
        ImportError: `transformers` is not installed.
    """

    def __init__(self, model: Any = "facebook/esmfold_v1", device: Any = "cpu") -> None:
        if isinstance(model, str):
            from transformers import (  # pyright: ignore[reportMissingImports]
                EsmForProteinFolding,
            )

            model = EsmForProteinFolding.from_pretrained(model)
        self.model = model.to(device).eval()

    def __call__(
        self, sequences: Sequence[str], batch_size: int = 1, progress: bool = False
    ) -> Folded:
        """Folds sequences of residues in capital letters; unknown ones count as X.

        Raises:
            ValueError: there is no sequence, or an empty one.
        """
        if not sequences or not all(sequences):
            raise ValueError("`sequences` must not be empty, got none")
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        plddt = np.empty(len(sequences))
        for start in tracked(range(0, len(order), batch_size), desc="folding", progress=progress):
            rows = order[start : start + batch_size]
            out = self.model.infer([sequences[i] for i in rows])
            atoms = out.atom37_atom_exists
            mean = (out.plddt * atoms).sum((1, 2)) / atoms.sum((1, 2))
            plddt[rows] = 100 * mean.double().cpu().numpy()
        return Folded(plddt)
