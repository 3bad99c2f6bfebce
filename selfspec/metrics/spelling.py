"""Spelling accuracy of generated text.

    accuracy = words of the samples that are in the vocabulary / words of the samples

Words are what stands between spaces. The first and the last word of a sequence are dropped, since
the sequence may begin or end inside them. The vocabulary holds the words that occur at least twice
in the training text.
"""

import lzma
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from selfspec.checks import whole
from selfspec.files import write_bytes
from selfspec.progress import tracked

__all__ = [
    "count_words",
    "decoded",
    "inner_words",
    "load_vocabulary",
    "save_vocabulary",
    "spelling_accuracy",
    "spelling_counts",
    "vocabulary",
]


def inner_words(text: str) -> list[str]:
    """The words of a sequence without its first and its last.

    >>> inner_words("ing to the lighthouse in the rai")
    ['to', 'the', 'lighthouse', 'in', 'the']
    """
    return text.split()[1:-1]


def spelling_counts(
    texts: Sequence[str], vocabulary: Collection[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Words known and words in all, sample by sample; their sums give the accuracy.

    Args:
        texts: n sequences.
        vocabulary: the known words; a set, or the search is slow.

    Returns:
        (n,) int64 known words and (n,) int64 words, first and last word of a sequence dropped.
    """
    samples = [inner_words(text) for text in texts]
    known = [sum(word in vocabulary for word in words) for words in samples]
    return np.array(known, np.int64), np.array([len(words) for words in samples], np.int64)


def spelling_accuracy(texts: Sequence[str], vocabulary: Collection[str]) -> float:
    """Share of the words of all samples that are in the vocabulary; nan without any word.

    >>> spelling_accuracy(["a cat zat on the mat"], {"cat", "on", "the"})
    0.75
    """
    known, total = spelling_counts(texts, vocabulary)
    return float(known.sum() / total.sum()) if total.sum() else float("nan")


def count_words(pieces: Iterable[str]) -> Counter[str]:
    """How often each word occurs in a text that comes in pieces, cut anywhere, also inside words.

    >>> count_words(["the c", "at the", " mat"])["cat"]
    1
    """
    counts: Counter[str] = Counter()
    rest = ""
    for piece in pieces:
        head, space, tail = piece.rpartition(" ")
        if space:
            counts.update((rest + head).split())
            rest = tail
        else:
            rest += piece
    counts.update(rest.split())
    return counts


def vocabulary(counts: Counter[str], minimum: int = 2) -> frozenset[str]:
    """The words that occur at least `minimum` times.

    Raises:
        ValueError: `minimum` is below 1.
    """
    whole("minimum", minimum, least=1)
    return frozenset(word for word, count in counts.items() if count >= minimum)


def decoded(
    tokens: np.ndarray,
    decode: Callable[[np.ndarray], str],
    size: int = 1 << 22,
    progress: bool = False,
) -> Iterator[str]:
    """The text of a long token array, in pieces of `size` tokens.

    Args:
        tokens: (n,) ids; a memory map is read piece by piece.
        decode: ids to text, such as `CharTokenizer().decode`.
        size: tokens a piece.
        progress: show a bar.
    """
    starts = range(0, len(tokens), size)
    for start in tracked(starts, desc="words", unit="piece", progress=progress):
        yield decode(tokens[start : start + size])


def save_vocabulary(path: str | os.PathLike[str], words: Iterable[str]) -> None:
    """Writes one word a line in alphabetical order, compressed if `path` ends in `.xz`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{word}\n" for word in sorted(words)).encode()
    write_bytes(path, lzma.compress(data, preset=9) if path.suffix == ".xz" else data)


def load_vocabulary(path: str | os.PathLike[str]) -> frozenset[str]:
    """The words that `save_vocabulary` wrote."""
    data = Path(path).read_bytes()
    text = lzma.decompress(data) if Path(path).suffix == ".xz" else data
    return frozenset(text.decode().split())
