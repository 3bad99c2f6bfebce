"""Characters to token ids and back; subwords are in `bpe.py`.

A tokenizer of V symbols is a bijection between the characters of an alphabet and 0..V-1, and
`mask_id` = V stands for a character still to be generated.

Proteins are written in one letter a residue; `ProteinTokenizer` knows two alphabets of them.

`normalise` maps any text onto the 27 symbols of text8, " abcdefghijklmnopqrstuvwxyz", by the rules
of text8 (Mahoney, http://mattmahoney.net/dc/textdata): accents are folded, letters lower-cased,
digits spelled out one by one, everything else is a space, and runs of spaces are one space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from selfspec.data.bpe import BPETokenizer

TEXT8_ALPHABET = " abcdefghijklmnopqrstuvwxyz"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty residues that the genetic code has in common."""
ESM_ALPHABET = "^~$?LAGVSERTIDPKQNFYMHWCXBUZO.-!"
"""The vocabulary of ESM-2 by id, its mask (32) left out. For what has no letter stand ^ <cls>,
~ <pad>, $ <eos>, ? <unk> and ! <null_1>."""

_DIGITS = b"zero one two three four five six seven eight nine".split()
# Latin letters that NFKD leaves whole, and the soft hyphen, which is no gap between words.
_WHOLE = {"æ": "ae", "œ": "oe", "ß": "ss", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l"}
_FOLD = str.maketrans({**_WHOLE, "\u00ad": ""})
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
# One byte to one byte: letters to lower case, digits kept for later, everything else to a space.
_TO_LOWER = bytes(b if chr(b).isalnum() else 32 for b in bytes(range(128)).lower()) + b" " * 128


class Tokenizer(Protocol):
    """Text to ids and back, as prompts, data and checkpoints need it."""

    vocab_size: int
    """V."""
    mask_id: int
    """Stands for what is still to be generated."""

    def encode(self, text: str, mask_char: str | None = None) -> npt.NDArray[np.int64]:
        """Ids of `text`; `mask_char` becomes `mask_id`."""
        ...

    def decode(self, ids: npt.ArrayLike, mask_char: str = "_") -> str:
        """The text of ids (L,); `mask_id` becomes `mask_char`."""
        ...

    def count_characters(self, ids: npt.NDArray[np.integer]) -> int | None:
        """How many characters of text the ids (L,) stand for; None where they do not say."""
        ...

    def to_config(self) -> Mapping[str, Any]:
        """A JSON-ready description."""
        ...


class CharTokenizer:
    """The bijection c ↔ index of c in `alphabet`; by default the 27 symbols of text8.

    Args:
        alphabet: distinct characters, in the order of their ids.

    Attributes:
        vocab_size: V, the number of characters, without the mask.
        mask_id: V, the id of a character still to be generated.

    Raises:
        ValueError: the alphabet is empty or repeats a character.
    """

    kind: ClassVar[str] = "char"
    """Its name in a checkpoint."""

    def __init__(self, alphabet: str = TEXT8_ALPHABET) -> None:
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise ValueError(f"`alphabet` must hold distinct characters, got {alphabet!r}")
        self.alphabet = alphabet
        self.vocab_size = self.mask_id = len(alphabet)
        self._points = np.array([ord(c) for c in alphabet], dtype="<u4")
        # From code point to id, -1 for none; the last entry stands for all points beyond.
        self._ids = np.full(self._points.max() + 2, -1, dtype=np.int64)
        self._ids[self._points] = np.arange(len(alphabet))

    def encode(self, text: str, mask_char: str | None = None) -> npt.NDArray[np.int64]:
        """Ids of the characters of `text`.

        Args:
            text: L characters of the alphabet.
            mask_char: a character outside the alphabet that stands for `mask_id`; None for none.

        Returns:
            (L,) ids in 0..V-1, and V where `text` has `mask_char`.

        Raises:
            ValueError: `text` has a character that is neither (the first one is named, with its
                index), or `mask_char` is not one character outside the alphabet.
        """
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        if mask_char is not None:
            ids[points == ord(self._outside(mask_char))] = self.mask_id
        if ids.size and ids.min() < 0:
            index = int(ids.argmin())
            rule = f"must consist of {self.alphabet + (mask_char or '')!r}"
            raise ValueError(f"`text` {rule}, got {text[index]!r} at index {index}")
        return ids

    def decode(self, ids: npt.ArrayLike, mask_char: str = "_") -> str:
        """The text of which `ids` are the ids; `mask_id` becomes `mask_char`.

        Args:
            ids: (L,) ids in 0..V.
            mask_char: one character outside the alphabet.

        Raises:
            ValueError: `ids` has not one axis or an id beyond 0..V, or `mask_char` is not one
                character outside the alphabet.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1:
            raise ValueError(f"`ids` must have one axis, got shape {ids.shape}")
        if ids.size and not (ids.min() >= 0 and ids.max() <= self.mask_id):
            raise ValueError(f"`ids` must lie in 0..{self.mask_id}, got {ids.min()}..{ids.max()}")
        points = np.append(self._points, np.uint32(ord(self._outside(mask_char))))
        return points[ids.astype(np.int64)].tobytes().decode("utf-32-le", "surrogatepass")

    def count_characters(self, ids: npt.NDArray[np.integer]) -> int:
        """How many characters of text the ids (L,) stand for: one each."""
        return len(ids)

    def to_config(self) -> dict[str, str]:
        """A JSON-ready description, from which `from_config` makes an equal tokenizer."""
        return {"kind": self.kind, "alphabet": self.alphabet}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CharTokenizer:
        """The tokenizer that `to_config` described.

        Raises:
            ValueError: `config` does not describe a character tokenizer.
        """
        kinds = {kind.kind: kind for kind in (CharTokenizer, ProteinTokenizer)}
        if config.get("kind") not in kinds or not isinstance(config.get("alphabet"), str):
            raise ValueError(f"`config` must describe a character tokenizer, got {dict(config)}")
        return kinds[config["kind"]](config["alphabet"])

    def _outside(self, mask_char: str) -> str:
        if not isinstance(mask_char, str) or len(mask_char) != 1 or mask_char in self.alphabet:
            raise ValueError(
                f"`mask_char` must be one character outside the alphabet, got {mask_char!r}"
            )
        return mask_char


class ProteinTokenizer(CharTokenizer):
    """Residues as capital letters: the twenty amino acids, or the vocabulary of ESM-2.

    Args:
        alphabet: `AMINO_ACIDS` or `ESM_ALPHABET`, whose ids (and mask) are those of ESM-2.

    Attributes:
        residues: the letters of the alphabet: what a sequence may hold.
    """

    kind: ClassVar[str] = "protein"

    def __init__(self, alphabet: str = AMINO_ACIDS) -> None:
        super().__init__(alphabet)
        self.residues = "".join(filter(str.isalpha, alphabet))


def tokenizer_from(config: Mapping[str, Any]) -> CharTokenizer | BPETokenizer:
    """The tokenizer whose `to_config` this is.

    Raises:
        ValueError: `config` describes none.
    """
    kind = BPETokenizer if config.get("kind") == BPETokenizer.kind else CharTokenizer
    return kind.from_config(config)


def of_another(one: Tokenizer | None, other: Tokenizer | None) -> bool:
    """Whether two tokenizers of one kind differ; none, and those of two kinds, do not compare."""
    if one is None or other is None or type(one) is not type(other):
        return False
    return one.to_config() != other.to_config()


def normalise(text: str) -> str:
    """`text` in the 27 symbols of text8, without a space at either end.

    >>> normalise("Café  №7, don't!")
    'cafe no seven don t'
    """
    # Only the few characters beyond ASCII take the slow road of Unicode; the rest are bytes.
    plain = _NON_ASCII.sub(lambda run: _fold(run[0]), text).encode("ascii").translate(_TO_LOWER)
    for digit, word in enumerate(_DIGITS):
        plain = plain.replace(b"%d" % digit, b" " + word + b" ")
    return b" ".join(plain.split()).decode("ascii")


@lru_cache(maxsize=4096)  # a text has few different accents, many times
def _fold(run: str) -> str:
    letters = unicodedata.normalize("NFKD", run).lower().translate(_FOLD)
    return "".join(
        c if c.isascii() else " " for c in letters if not unicodedata.category(c).startswith("M")
    )
