"""Long documents in pieces, so that neither text nor tokens of a whole one are in memory.

A document is cut before a blank that follows something else, where with the `NEAR` characters
before it and as many after it

    ids(before + after) = ids(before), ids(after).

So the ids of the pieces, one after another, are those of the document. They could differ only by a
tokenizer whose division of a text depends on what stands further away than that, as no division
into words does. A document that has no such place stays whole, and in memory: one without blanks,
or of a tokenizer that puts a mark of its own before whatever it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

PIECE = 1 << 20
"""Characters from which on a document is cut."""
NEAR = 1 << 12
BLANKS = " \t\n\r\f\v"
"""To every tokenizer; of others opinions differ."""
TRIES = 16
"""Blanks of a piece that are tried."""

Document = str | Iterable[str]
"""A text, or its parts as they are read."""
Encode = Callable[[str], np.ndarray]


def pieces(document: Document, encode: Encode | None = None) -> Iterator[tuple[str, bool]]:
    """A document in pieces of about `PIECE` characters; a short one is one piece.

    Args:
        document: the text; its parts may end anywhere.
        encode: ids of a text; None where every blank divides it, as it does for GPT-2's rules and
            for the 27 symbols.

    Returns:
        Pieces, and whether each is the last; of an empty document one, which is empty.
    """
    text, enough = "", PIECE
    for part in _parts(document):
        text += part
        if len(text) >= enough:
            if at := _place(text, encode):
                yield text[:at], False
                text = text[at:]
            enough = len(text) + PIECE
    yield text, True


def _parts(document: Document) -> Iterable[str]:
    if not isinstance(document, str):
        return document
    return (document[at : at + PIECE] for at in range(0, len(document), PIECE))


def _place(text: str, encode: Encode | None) -> int:
    """The last place at which the text may be cut; 0 for none."""
    tries = TRIES
    for at in range(len(text) - NEAR, max(0, len(text) - PIECE), -1):
        if text[at] in BLANKS and not text[at - 1].isspace():
            before, after = text[max(0, at - NEAR) : at], text[at : at + NEAR]
            if encode is None or _apart(before, after, encode):
                return at
            if not (tries := tries - 1):
                break
    return 0


def _apart(before: str, after: str, encode: Encode) -> bool:
    apart = np.concatenate([encode(before), encode(after)])
    return np.array_equal(encode(before + after), apart)
