"""Byte-level BPE: text to subwords and back, through the `tokenizers` library.

Every one of the 256 bytes is a token, and merges make longer ones of pairs, within words only (a
word takes the space before it along). So any text has ids, and with bytes(t) those of a token

    text = UTF-8 decoding of  bytes(t_1) bytes(t_2) … bytes(t_n),

where drawn tokens need not end on a whole character: what is no UTF-8 is shown as U+FFFD.
`mask_id` = V stands for a token still to be generated. In a prompt each `mask_char` is *one* masked
token, whatever text comes to stand there; what stands between masks is split into tokens piece by
piece. As a word begins with its space, a gap follows its neighbour directly: "the__ sat", where
"the __ sat" would leave a lone space before the gap, which hardly occurs in training.

Documents are packed one after another, each followed by the end-of-text token; their lines end in
a line feed. The name of that token within a document is text like any other; within a prompt it is
the token.

Source: Sennrich et al. 2016 (arXiv 1508.07909); on bytes: GPT-2, Radford et al. 2019.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from selfspec.checks import whole
from selfspec.progress import watched

END = "<|endoftext|>"
"""GPT-2's token between documents."""

# What GPT-2 and those after it call the two files of a tokenizer: vocabulary and merges.
_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


class BPETokenizer:
    """A byte-level BPE of the `tokenizers` library.

    Args:
        tokenizer: its JSON, as in `tokenizer.json`.
        end: the token that ends a document.

    Attributes:
        vocab_size: V, special tokens among them, the mask not.
        mask_id: V.
        end: id of the token that ends a document.

    Raises:
        ValueError: it is no byte-level BPE, it has no token `end`, or the library is missing.
    """

    kind: ClassVar[str] = "bpe"
    """Its name in a checkpoint."""

    def __init__(self, tokenizer: str, end: str = END) -> None:
        self._inner = _parsed(tokenizer)
        table = self._inner.get_vocab(with_added_tokens=True)
        if end not in table:
            raise ValueError(f"`end` must be a token of the tokenizer, got {end!r}")
        self.end: int = table[end]
        self.vocab_size = self.mask_id = max(table.values()) + 1
        added = self._inner.get_added_tokens_decoder()
        self._bytes, self._characters = [b""] * self.vocab_size, np.zeros(self.vocab_size, int)
        for token, i in table.items():
            self._bytes[i] = token.encode() if i in added else _to_bytes(token)
            if i not in added or not added[i].special:  # bytes but UTF-8's continuations start one
                self._characters[i] = sum(byte & 0xC0 != 0x80 for byte in self._bytes[i])

    def encode(self, text: str, mask_char: str | None = None) -> npt.NDArray[np.int64]:
        """Ids of `text`.

        Args:
            text: any text.
            mask_char: a character that stands for one masked token each; None for none.

        Returns:
            (L,) ids in 0..V-1, and V for every `mask_char`.

        Raises:
            ValueError: `mask_char` is not one character.
        """
        pieces = [text] if mask_char is None else text.split(_one(mask_char))
        rows = [self._inner.encode(_valid(p), add_special_tokens=False).ids for p in pieces]
        return np.array([i for row in rows for i in (*row, self.mask_id)][:-1], dtype=np.int64)

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
        """The ids of each document, with line feeds at the ends of lines and `end` behind it."""
        plain = self._plain
        found = plain.encode_batch_fast([*map(_document, texts)], add_special_tokens=False)
        return [np.array([*document.ids, self.end], dtype=np.int64) for document in found]

    def decode(self, ids: npt.ArrayLike, mask_char: str = "_") -> str:
        """The text of ids (L,) in 0..V; `mask_id` becomes `mask_char`, broken UTF-8 U+FFFD.

        Raises:
            ValueError: `ids` has not one axis or an id beyond 0..V, or `mask_char` is not one
                character.
        """
        ids, mask = np.asarray(ids), _one(mask_char).encode()
        if ids.ndim != 1:
            raise ValueError(f"`ids` must have one axis, got shape {ids.shape}")
        if ids.size and not (ids.min() >= 0 and ids.max() <= self.mask_id):
            raise ValueError(f"`ids` must lie in 0..{self.mask_id}, got {ids.min()}..{ids.max()}")
        pieces = (mask if i == self.mask_id else self._bytes[i] for i in ids.tolist())
        return b"".join(pieces).decode("utf-8", "replace")

    def count_characters(self, ids: npt.NDArray[np.integer]) -> int:
        """How many characters of text the ids stand for; special tokens have none.

        Bits per character are `nats per token · tokens / characters / ln 2`.
        """
        counts = np.zeros(self.vocab_size, np.int64)
        for start in range(0, len(ids), 1 << 24):  # a whole store need not fit into memory
            counts += np.bincount(ids[start : start + (1 << 24)], minlength=self.vocab_size)
        return int(counts @ self._characters)

    def to_config(self) -> dict[str, str]:
        """A JSON-ready description, from which `from_config` makes an equal tokenizer."""
        end = self._inner.id_to_token(self.end)
        return {"kind": self.kind, "end": end, "tokenizer": self._inner.to_str()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BPETokenizer:
        """The tokenizer that `to_config` described.

        Raises:
            ValueError: `config` does not describe a BPE.
        """
        names = ("tokenizer", "end")
        if config.get("kind") != cls.kind or not all(isinstance(config.get(n), str) for n in names):
            raise ValueError(f"`config` must describe a BPE tokenizer, got {list(config)}")
        return cls(config["tokenizer"], config["end"])

    @cached_property
    def _plain(self) -> Any:
        """The same, to which special tokens are text."""
        plain = _parsed(self._inner.to_str())
        plain.encode_special_tokens = True
        return plain


def load_bpe(source: str | os.PathLike[str], end: str = END) -> BPETokenizer:
    """A tokenizer from files, or from the Hub.

    Args:
        source: a `tokenizer.json`; a folder with one, such as a prepared corpus, or with GPT-2's
            `encoder.json` and `vocab.bpe` (`vocab.json` and `merges.txt` to others); or else a name
            on the Hugging Face Hub, such as "gpt2".
        end: the token that ends a document.

    Raises:
        ValueError: there is no such tokenizer, or it is no byte-level BPE.
    """
    path = Path(source)
    path = path / "tokenizer.json" if (path / "tokenizer.json").is_file() else path
    try:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            config = json.loads(text)
            return BPETokenizer.from_config(config) if "kind" in config else BPETokenizer(text, end)
        for vocabulary, merges in _PAIRS:
            if (path / vocabulary).is_file() and (path / merges).is_file():
                return BPETokenizer(_from_pair(path / vocabulary, path / merges, end), end)
        if path.exists():
            raise ValueError("it holds no tokenizer.json, and no encoder.json and vocab.bpe")
        return BPETokenizer(_library().Tokenizer.from_pretrained(os.fspath(source)).to_str(), end)
    except Exception as error:  # the library raises no other kind
        raise ValueError(f"`bpe` must be a byte-level BPE, got {source}: {error}") from error


def train_bpe(
    texts: Iterable[str], vocab_size: int, end: str = END, progress: bool = True
) -> BPETokenizer:
    """A tokenizer for these texts: GPT-2's rules with merges of their own.

    Args:
        texts: documents.
        vocab_size: V, the 256 bytes and `end` among them.
        end: the token that ends a document.
        progress: show bars.

    Raises:
        ValueError: `vocab_size` is below 257, or more than the texts have merges for (of pairs that
            occur at least twice).
    """
    whole("vocab_size", vocab_size, least=257)
    library = _library()
    inner = _byte_level(library.models.BPE(), end)
    inner.train_from_iterator(
        map(_document, texts),
        library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[end],
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=progress and watched(),
        ),
    )
    if (most := inner.get_vocab_size()) < vocab_size:
        raise ValueError(f"`vocab_size` must be at most {most} for these texts, got {vocab_size}")
    return BPETokenizer(inner.to_str(), end)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("a BPE tokenizer needs `pip install selfspec[text]`") from error
    return tokenizers


def _parsed(text: str) -> Any:
    """The library's tokenizer, without what would change the number of tokens."""
    library = _library()
    try:
        inner = library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no other kind
        raise ValueError(f"`tokenizer` must be JSON of the tokenizers library: {error}") from error
    parts = json.loads(text)
    kinds = [(parts.get(name) or {}).get("type") for name in ("model", "decoder")]
    if kinds != ["BPE", "ByteLevel"]:
        raise ValueError("`tokenizer` must be a byte-level BPE, got another kind")
    inner.no_padding()
    inner.no_truncation()
    return inner


def _from_pair(vocabulary: Path, merges: Path, end: str) -> str:
    library = _library()
    return _byte_level(library.models.BPE.from_file(str(vocabulary), str(merges)), end).to_str()


def _byte_level(model: Any, end: str) -> Any:
    """GPT-2's tokenizer around a model."""
    library = _library()
    inner = library.Tokenizer(model)
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    inner.add_special_tokens([end])
    return inner


def _byte_of() -> dict[str, int]:
    """GPT-2's letters for bytes: those that print for themselves, the others from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in prints]
    letters = {chr(byte): byte for byte in prints}
    return letters | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _to_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[letter] for letter in token)
    except KeyError as error:
        raise ValueError(f"`tokenizer` must be a byte-level BPE, got token {token!r}") from error


def _document(text: str) -> str:
    """A document as it is read: whatever ends its lines is a line feed."""
    return _valid(text).replace("\r\n", "\n")


def _valid(text: str) -> str:
    """Without lone surrogates, which no UTF-8 has: JSON may hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _one(mask_char: str) -> str:
    if not isinstance(mask_char, str) or len(mask_char) != 1:
        raise ValueError(f"`mask_char` must be one character, got {mask_char!r}")
    return mask_char
