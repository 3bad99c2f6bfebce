"""A Hugging Face tokenizer as prompts and data need it: text without special tokens.

What stands around a sequence is the trunk's matter (`Vocabulary`). Where every token is one
character, as in proteins, text is read and written character by character, without the spaces that
some of these tokenizers want.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from selfspec.data.tokenizers import AMINO_ACIDS

__all__ = ["HubTokenizer", "characters", "check_ids", "letters"]


class HubTokenizer:
    """Text to ids and back.

    Args:
        tokenizer: of the `transformers` library.
        vocab_size: V of the model, which may be more than the tokenizer's.
        mask_id: the model's mask token, which the tokenizer need not have.

    Attributes:
        residues: the letters of a tokenizer of proteins; empty for others.

    Raises:
        ValueError: as `check_ids`.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, mask_id: int):
        check_ids(tokenizer, vocab_size)
        self.inner, self.vocab_size, self.mask_id = tokenizer, vocab_size, mask_id
        self.residues = letters(tokenizer)
        table = tokenizer.get_vocab()
        self._ids = table if characters(tokenizer) else None
        self._tokens = {i: token for token, i in table.items()}

    def encode(self, text: str, mask_char: str | None = None) -> npt.NDArray[np.int64]:
        """Ids of `text`; `mask_char` becomes the mask token.

        Raises:
            ValueError: a character that a tokenizer of characters does not know, an empty
                `mask_char`, or a prompt (with a `mask_char`) of which a part is unknown to any
                other tokenizer: it would not stay as it is.
        """
        if mask_char == "":
            raise ValueError("`mask_char` must be at least one character, got none")
        pieces = [text] if mask_char is None else text.split(mask_char)
        if self._ids is not None:
            rows = [self._characters(piece) for piece in pieces]
        elif len(pieces) > 1 and self.inner.mask_token_id == self.mask_id:
            # In one go: what a tokenizer makes of a word depends on what stands beside it.
            return self._known(self._encode(self.inner.mask_token.join(pieces)))
        else:
            rows = [self._encode(piece) for piece in pieces]
            rows = rows if mask_char is None else [self._known(row) for row in rows]
        mask = np.array([self.mask_id], dtype=np.int64)
        return np.concatenate([x for row in rows for x in (row, mask)][:-1])

    def decode(self, ids: npt.ArrayLike, mask_char: str = "_") -> str:
        """The text of ids (L,); the mask token becomes `mask_char`."""
        tokens = np.asarray(ids).tolist()
        if self._ids is not None:
            return "".join(mask_char if i == self.mask_id else self._tokens[i] for i in tokens)
        pieces: list[list[int]] = [[]]
        for i in tokens:
            pieces.append([]) if i == self.mask_id else pieces[-1].append(i)
        return mask_char.join(self.inner.decode(piece) for piece in pieces)

    def count_characters(self, ids: npt.NDArray[np.integer]) -> int | None:
        """How many characters of text the ids (L,) stand for; None where tokens are subwords.

        Such tokenizers leave spaces out and fold letters: only the text itself can say it.
        """
        return None if self._ids is None else len(ids)

    @property
    def separator(self) -> tuple[int, ...]:
        """What stands between two documents: the token that ends one, where there is any."""
        ends = (self.inner.sep_token_id, self.inner.eos_token_id)
        return tuple(i for i in ends if i is not None)[:1]

    def to_config(self) -> dict[str, str]:
        """For a checkpoint, which holds the tokenizer's `files` too."""
        return {"kind": "hub"}

    @property
    def sha256(self) -> str:
        """Of the table from tokens to ids; hexadecimal."""
        table = sorted(self.inner.get_vocab().items())
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()

    def files(self) -> dict[str, bytes]:
        """The tokenizer's own files, by name."""
        with TemporaryDirectory() as folder:
            self.inner.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def _encode(self, text: str) -> npt.NDArray[np.int64]:
        ids = self.inner(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array(ids, dtype=np.int64)

    def _known(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The ids, none of which stands for what is unknown."""
        if self.inner.unk_token_id in ids.tolist():
            tokens = " ".join(self.inner.convert_ids_to_tokens(ids.tolist()))
            raise ValueError(f"`text` must be known to the model's tokenizer, got {tokens}")
        return ids

    def _characters(self, text: str) -> npt.NDArray[np.int64]:
        assert self._ids is not None
        ids = []
        for index, character in enumerate(text):
            if character in self._ids:
                ids.append(self._ids[character])
            elif not character.isspace():  # "A C D" is how some of them want it written
                raise ValueError(f"`text` must consist of the model's characters, "
                                 f"got {character!r} at index {index}")  # fmt: skip
        return np.array(ids, dtype=np.int64)


def check_ids(tokenizer: Any, vocab_size: int) -> None:
    """A tokenizer whose text the model can read.

    Special tokens may have ids beyond, such as a mask or a pad that was added: text has none.

    Raises:
        ValueError: a token of text has an id that is none of the model's V.
    """
    table, free = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    beyond = [(i, token) for token, i in table.items() if i >= vocab_size and i not in free]
    if beyond:
        i, token = max(beyond)
        raise ValueError(f"`tokenizer` must have ids in 0..{vocab_size - 1}, those of the model, "
                         f"got {i} for {token!r}: it is another model's")  # fmt: skip


def characters(tokenizer: Any) -> str:
    """The characters of a tokenizer whose every token is one, <null_1> and its like apart.

    Empty for all other tokenizers.
    """
    special = set(tokenizer.all_special_tokens)
    text = [token for token in tokenizer.get_vocab() if token not in special]
    text = [token for token in text if not (token[:1] == "<" and token[-1:] == ">")]
    return "".join(text) if all(len(token) == 1 for token in text) else ""


def letters(tokenizer: Any) -> str:
    """The residues of a tokenizer of proteins, in capital letters; empty for all others."""
    known = set(characters(tokenizer))
    residues = {c for c in known if c.isalpha()}
    capitals = all(c.isupper() for c in residues)
    return "".join(sorted(residues)) if capitals and residues >= {*AMINO_ACIDS} else ""
