"""Corpora of one JSON object a line: `.jsonl`, `.jsonl.xz`, `.jsonl.gz`.

A split is the documents of its files in order, normalised to the 27 symbols of text8 and joined by
one space. Splits are files, so that no document is in two of them.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import IO

from tqdm import tqdm

from selfspec.data.loader import TokenStore, write_corpus
from selfspec.data.tokenizers import CharTokenizer, normalise

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def find_files(paths: Paths) -> list[Path]:
    """The files that a path, a glob pattern or a list of either names: in order, globs sorted.

    Raises:
        ValueError: a path or pattern names no file.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        name = os.fspath(path)  # a file called "a[1]" is that file, not a pattern
        found = [name] if os.path.isfile(name) else sorted(filter(os.path.isfile, glob(name)))
        if not found:
            raise ValueError(f"`paths` must name files, got {name!r}, which names none")
        files += map(Path, found)
    return files


def read_jsonl(paths: Paths, field: str = "text", progress: bool = False) -> Iterator[str]:
    """The texts of the documents of some files, one after another.

    Args:
        paths: a path, a glob pattern or a list of either; the suffix says how a file is packed.
        field: which field of a document holds its text. Blank lines are passed over.
        progress: show a bar over the files.

    Raises:
        ValueError: a line is no JSON object with a string in `field`, or the packing is broken
            (file and line are named); a path names no file; there is no document at all.
    """
    files, empty = find_files(paths), True
    for path in tqdm(files, desc="reading", unit="file", disable=not progress):
        for text in _read_file(path, field):
            empty = False
            yield text
    if empty:
        raise ValueError(f"`paths` must hold at least one document, got {list(map(str, files))}")


def prepare(
    splits: Mapping[str, Paths],
    folder: str | os.PathLike[str],
    field: str = "text",
    progress: bool = True,
) -> dict[str, TokenStore]:
    """Writes the stores `<split>.bin` of a JSON-lines corpus, and `tokenizer.json`.

    Args:
        splits: the files of each split, for example
            `{"train": "books/train-*.jsonl.xz", "valid": "books/valid.jsonl.xz"}`.
        folder: where to; made if it does not exist.
        field: which field of a document holds its text.
        progress: show a bar over the files of each split.

    Raises:
        ValueError: as `read_jsonl`; or one file is named in two splits.
    """
    files = {split: find_files(paths) for split, paths in splits.items()}
    _check_disjoint(files)
    texts = {split: _join(read_jsonl(f, field, progress)) for split, f in files.items()}
    return write_corpus(folder, texts, CharTokenizer())


def _join(documents: Iterable[str]) -> Iterator[str]:
    separator = ""
    for document in filter(None, map(normalise, documents)):
        yield separator + document
        separator = " "


def _check_disjoint(files: Mapping[str, list[Path]]) -> None:
    owner: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            other = owner.setdefault(path.resolve(), split)
            if other != split:
                raise ValueError(f"`splits` must not share files, got {path} in {other}, {split}")


def _read_file(path: Path, field: str) -> Iterator[str]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _text(line, field, f"{path}, line {number}")
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}, line {number + 1}: broken compression ({error})") from error


def _open(path: Path) -> IO[bytes]:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    return opener(path, "rb")


def _text(line: bytes, field: str, place: str) -> str:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get(field), str):
        raise ValueError(f"{place}: must be an object with a string in {field!r}")
    return document[field]
