"""A Hugging Face tokenizer as prompts and data need it: text without special tokens.

What stands around a sequence is the trunk's matter (`Vocabulary`). Where every token is one
character, as in proteins, text is read and written character by character, without the spaces that
some of these tokenizers want.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HubTokenizer"]


class HubTokenizer:
    """Text to ids and back.

    Args:
        tokenizer: of the `transformers` library.
        vocab_size: V of the model, which may be more than the tokenizer's.
        mask_id: the model's mask token, which the tokenizer need not have.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, mask_id: int):
        self.inner, self.vocab_size, self.mask_id = tokenizer, vocab_size, mask_id
        table = tokenizer.get_vocab()
        special = set(tokenizer.all_special_tokens)
        text = [token for token in table if token not in special and token[0] + token[-1] != "<>"]
        self._ids = table if all(len(token) == 1 for token in text) else None
        self._tokens = {i: token for token, i in table.items()}

    def encode(self, text: str, mask_char: str | None = None) -> npt.NDArray[np.int64]:
        """Ids of `text`; `mask_char` becomes the mask token.

        Raises:
            ValueError: a character that a tokenizer of characters does not know.
        """
        pieces = [text] if mask_char is None else text.split(mask_char)
        if self._ids is not None:
            rows = [self._characters(piece) for piece in pieces]
        elif mask_char is not None and self.inner.mask_token is not None:
            # In one go: what a tokenizer makes of a word depends on what stands beside it.
            return self._encode(self.inner.mask_token.join(pieces))
        else:
            rows = [self._encode(piece) for piece in pieces]
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

    @property
    def separator(self) -> tuple[int, ...]:
        """What stands between two documents: the token that ends one, where there is any."""
        ends = (self.inner.sep_token_id, self.inner.eos_token_id)
        return tuple(i for i in ends if i is not None)[:1]

    def to_config(self) -> dict[str, str]:
        """For a checkpoint: it is loaded with the trunk."""
        return {"kind": "hub"}

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's own files."""
        self.inner.save_pretrained(str(folder))

    def _encode(self, text: str) -> npt.NDArray[np.int64]:
        ids = self.inner(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array(ids, dtype=np.int64)

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
