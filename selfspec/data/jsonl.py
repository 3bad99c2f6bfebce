"""Corpora of one JSON object a line: `.jsonl`, `.jsonl.xz`, `.jsonl.gz`.

A split is the documents of its files in order. Splits are files, so that no document is in two of
them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from selfspec.data import documents
from selfspec.data.bpe import BPETokenizer
from selfspec.data.loader import TokenStore
from selfspec.data.packed import Paths, bytes_bar, find_files, find_splits, read_lines
from selfspec.data.tokenizers import CharTokenizer


def read_jsonl(paths: Paths, field: str = "text", progress: bool = False) -> Iterator[str]:
    """The texts of the documents of some files, one after another.

    Args:
        paths: a path, a glob pattern or a list of either; the suffix says how a file is packed.
        field: which field of a document holds its text. Blank lines are passed over.
        progress: show a bar over the bytes on disk.

    Raises:
        ValueError: a line is no JSON object with a string in `field`, or the packing is broken
            (file and line are named); a path names no file; there is no document at all.
    """
    files, empty = find_files(paths), True
    with bytes_bar(files, progress) as bar:
        for path in files:
            for text in _read_file(path, field, bar):
                empty = False
                yield text
    if empty:
        raise ValueError(f"`paths` must hold at least one document, got {list(map(str, files))}")


def prepare(
    splits: Mapping[str, Paths],
    folder: str | os.PathLike[str],
    field: str = "text",
    progress: bool = True,
    tokenizer: BPETokenizer | CharTokenizer | None = None,
    workers: int = 1,
) -> dict[str, TokenStore]:
    """Writes the stores `<split>.bin` of a JSON-lines corpus, and `tokenizer.json`.

    Args:
        splits: the files of each split, for example
            `{"train": "books/train-*.jsonl.xz", "valid": "books/valid.jsonl.xz"}`.
        folder: where to; made if it does not exist.
        field: which field of a document holds its text.
        progress: show a bar over the bytes of each split.
        tokenizer: the 27 symbols by default.
        workers: processes, see `documents.prepare`.

    Raises:
        ValueError: as `read_jsonl`; or one file is named in two splits.
    """
    files = find_splits(splits)
    texts = {split: read_jsonl(paths, field, progress) for split, paths in files.items()}
    return documents.prepare(texts, folder, tokenizer or CharTokenizer(), workers=workers)


def _read_file(path: Path, field: str, bar: tqdm) -> Iterator[str]:
    for number, line in read_lines(path, bar):
        if line.strip():
            yield _text(line, field, f"{path}, line {number}")


def _text(line: bytes, field: str, place: str) -> str:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get(field), str):
        raise ValueError(f"{place}: must be an object with a string in {field!r}")
    return document[field]
