"""What samples are compared with, apart from the judge: text by its words, proteins by k-mers."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from selfspec.checkpoint import BUNDLED
from selfspec.data.corpus import Store
from selfspec.data.ragged import RaggedStore
from selfspec.data.tokenizers import Tokenizer
from selfspec.kmers import Kmers, kmers
from selfspec.metrics.entropy import distinct_n, ngram_counts, ngram_kl, word_entropy
from selfspec.metrics.proteins import distinct_kmers, jensen_shannon, novelty
from selfspec.metrics.spelling import load_vocabulary, spelling_counts

__all__ = ["Measures", "ProteinReference", "Reference", "ReferenceLike", "corpus_reference"]

TEXT = ("spelling", "word_entropy", "distinct_4", "kl_4gram")
"""The fields of a row that are of text."""

MOST_SYMBOLS = 40
"""Of whose 4-grams a table is made."""

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
        arrays: dict[str, np.ndarray] = {}
        out: dict[str, float | None] = dict.fromkeys(TEXT)
        if self.grams is not None:
            symbols = round(len(self.grams) ** 0.25)
            out["kl_4gram"] = ngram_kl(self.grams, ngram_counts(tokens, symbols))
        if self.decode is not None:
            texts = [self.decode(np.ma.compressed(row)) for row in tokens]
            out |= {"word_entropy": word_entropy(texts), "distinct_4": distinct_n(texts, 4)}
            if self.vocabulary is not None:
                known, total = spelling_counts(texts, self.vocabulary)
                arrays = {"known_words": known, "words": total}
                out["spelling"] = known.sum() / total.sum() if total.sum() else None
        return _known(out), arrays

    def digest(self) -> str:
        """A hash of vocabulary and counts."""
        digest = hashlib.sha256(" ".join(sorted(self.vocabulary or ())).encode())
        digest.update(b"" if self.grams is None else self.grams.tobytes())
        return f"{digest.hexdigest()[:16]} {self.decode is not None}"


@dataclass(frozen=True)
class ProteinReference:
    """What protein samples are compared with; measures that lack their part are None in the row.

    Attributes:
        training: the sequences that the model was trained on, for novelty.
        heldout: others, for the composition.
    """

    training: RaggedStore | None = None
    heldout: RaggedStore | None = None

    def measure(self, tokens: np.ndarray) -> Measures:
        """Distinct k-mers, and what the parts allow: composition, the novelty of every sample."""
        size = next((s.vocab_size for s in self._stores if s), int(tokens.max()) + 1)
        rows, arrays = [np.ma.compressed(row) for row in tokens], {}
        out: dict[str, float | None] = dict.fromkeys(TEXT)
        out["distinct_kmers"] = distinct_kmers(rows, size)
        if self.heldout is not None:
            parts = self.heldout.tokens, np.concatenate(rows)
            data, drawn = (np.bincount(part, minlength=size) for part in parts)
            out["composition"] = jensen_shannon(data, drawn)
        if self._training is not None:
            new = novelty(kmers(rows, size), self._training)
            arrays["novelty"] = new
            out["novelty"] = None if np.isnan(new).all() else float(np.nanmean(new))
        return _known(out), arrays

    def digest(self) -> str:
        """The hashes of both stores."""
        return " ".join(s.sha256[:16] if s else "none" for s in self._stores)

    @property
    def _stores(self) -> tuple[RaggedStore | None, RaggedStore | None]:
        return self.training, self.heldout

    @cached_property
    def _training(self) -> Kmers | None:
        if (store := self.training) is None:
            return None
        return kmers([store[i] for i in range(len(store))], store.vocab_size)


def corpus_reference(
    tokenizer: Tokenizer, stores: Mapping[str, Store], length: int
) -> Reference | ProteinReference:
    """That of a corpus: proteins are compared with its splits train and test, text with the latter.

    Args:
        tokenizer: of the corpus.
        stores: by split, as from `data.corpus.open_corpus`.
        length: of the blocks of text.
    """
    test, train = stores["test"], stores.get("train")
    if isinstance(test, RaggedStore):
        known = train if isinstance(train, RaggedStore) else None
        return ProteinReference(known, test)
    symbols = test.vocab_size <= MOST_SYMBOLS
    grams = ngram_counts(test.blocks(length), test.vocab_size) if symbols else None
    return Reference(tokenizer.decode, bundled_words(), grams)


def bundled_words() -> frozenset[str] | None:
    """The words of the bundled model's training text, where they are installed."""
    path = BUNDLED / "books27" / "vocabulary.txt.xz"
    return load_vocabulary(path) if path.exists() else None


def _known(measures: Mapping[str, float | None]) -> dict[str, float | None]:
    """What is no number is None."""
    return {k: None if v is None or math.isnan(v) else float(v) for k, v in measures.items()}
