"""What samples are compared with, apart from the judge: text by its words, proteins by k-mers."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from selfspec.data.ragged import RaggedStore
from selfspec.kmers import Kmers, kmers
from selfspec.metrics.entropy import distinct_n, ngram_counts, ngram_kl, word_entropy
from selfspec.metrics.proteins import distinct_kmers, jensen_shannon, novelty
from selfspec.metrics.spelling import spelling_counts

__all__ = ["Measures", "ProteinReference", "Reference", "ReferenceLike"]

TEXT = ("spelling", "word_entropy", "distinct_4", "kl_4gram")
"""The fields of a row that are of text."""

Measures = tuple[dict[str, float | None], dict[str, np.ndarray]]
"""Fields of a `Row` by name, and the arrays behind them."""


class ReferenceLike(Protocol):
    """A reference, as the sweep needs it."""

    def measure(self, tokens: np.ndarray) -> Measures:
        """Measures of samples (n, L), masked at pads."""
        ...

    def digest(self) -> str:
        """A hash of all that the measures depend on."""
        ...


@dataclass(frozen=True)
class Reference:
    """What text samples are compared with; measures that lack their part are None in the row.

    Attributes:
        decode: (L,) token ids to text.
        vocabulary: words that count as spelled right.
        grams: counts of character 4-grams in real text, from `metrics.ngram_counts`.
    """

    decode: Callable[[np.ndarray], str] | None = None
    vocabulary: frozenset[str] | None = None
    grams: np.ndarray | None = None

    def measure(self, tokens: np.ndarray) -> Measures:
        """What the parts allow; the arrays are the counts of words."""
        arrays = {}
        out = dict.fromkeys(TEXT, math.nan)
        if self.grams is not None:
            symbols = round(len(self.grams) ** 0.25)
            out["kl_4gram"] = ngram_kl(self.grams, ngram_counts(tokens, symbols))
        if self.decode is not None:
            texts = [self.decode(np.ma.compressed(row)) for row in tokens]
            out |= {"word_entropy": word_entropy(texts), "distinct_4": distinct_n(texts, 4)}
            if self.vocabulary is not None:
                known, total = spelling_counts(texts, self.vocabulary)
                arrays = {"known_words": known, "words": total}
                out["spelling"] = known.sum() / total.sum() if total.sum() else math.nan
        return {name: None if math.isnan(v) else float(v) for name, v in out.items()}, arrays

    def digest(self) -> str:
        """A hash of vocabulary and counts."""
        digest = hashlib.sha256(" ".join(sorted(self.vocabulary or ())).encode())
        digest.update(b"" if self.grams is None else self.grams.tobytes())
        return f"{digest.hexdigest()[:16]} {self.decode is not None}"


@dataclass(frozen=True)
class ProteinReference:
    """What protein samples are compared with.

    Attributes:
        training: the sequences that the model was trained on, for novelty.
        heldout: others, for the composition.
    """

    training: RaggedStore
    heldout: RaggedStore

    def measure(self, tokens: np.ndarray) -> Measures:
        """Composition, distinct k-mers, and the novelty of every sample."""
        size = self.training.vocab_size
        rows = [np.ma.compressed(row) for row in tokens]
        data, drawn = (
            np.bincount(part, minlength=size)
            for part in (self.heldout.tokens, np.concatenate(rows))
        )
        new = novelty(kmers(rows, size), self._training)
        out: dict[str, float | None] = dict.fromkeys(TEXT)
        out["composition"] = jensen_shannon(data, drawn)
        out["distinct_kmers"] = distinct_kmers(rows, size)
        out["novelty"] = None if np.isnan(new).all() else float(np.nanmean(new))
        return out, {"novelty": new}

    def digest(self) -> str:
        """The hashes of both stores."""
        return f"{self.training.sha256[:16]} {self.heldout.sha256[:16]}"

    @cached_property
    def _training(self) -> Kmers:
        store = self.training
        return kmers([store[i] for i in range(len(store))], store.vocab_size)
