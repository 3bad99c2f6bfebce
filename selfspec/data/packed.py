"""Text files as lines or blocks, plain or packed: `.xz` and `.gz` by their suffix."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from glob import glob
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from selfspec.progress import tracked

_BLOCK = 1 << 20
_BROKEN = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)

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


def suffixes(path: str | os.PathLike[str]) -> set[str]:
    """All suffixes of a file's name, in small letters."""
    return {suffix.lower() for suffix in Path(path).suffixes}


def find_splits(splits: Mapping[str, Paths]) -> dict[str, list[Path]]:
    """The files of each split.

    Raises:
        ValueError: a path names no file, or one file is named in two splits.
    """
    files = {split: find_files(paths) for split, paths in splits.items()}
    owner: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            other = owner.setdefault(path.resolve(), split)
            if other != split:
                raise ValueError(f"`splits` must not share files, got {path} in {other}, {split}")
    return files


def bytes_bar(files: Iterable[Path], progress: bool) -> tqdm:
    """A bar over the bytes that files have on disk."""
    total = sum(path.stat().st_size for path in files)
    return tracked(total=total, desc="reading", unit="B", unit_scale=True, progress=progress)


def read_lines(path: Path, bar: tqdm | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1.

    Args:
        path: its suffix says how it is packed.
        bar: from `bytes_bar`, to move on.

    Raises:
        ValueError: the packing is broken (file and line are named).
    """
    number = 0
    try:
        for number, line in enumerate(_read(path, iter, bar), start=1):
            yield number, line
    except _BROKEN as error:
        raise ValueError(f"{path}, line {number + 1}: broken compression ({error})") from error


def read_blocks(path: Path, bar: tqdm | None = None) -> Iterator[bytes]:
    """A file as blocks of bytes that may end anywhere; arguments as in `read_lines`.

    Raises:
        ValueError: the packing is broken (the file is named).
    """
    try:
        yield from _read(path, lambda file: iter(partial(file.read, _BLOCK), b""), bar)
    except _BROKEN as error:
        raise ValueError(f"{path}: broken compression ({error})") from error


def packed(path: Path, blob: bytes) -> bytes:
    """A file of this name with these contents, as it is read; equal for equal contents."""
    if path.suffix == ".xz":
        return lzma.compress(blob)
    return gzip.compress(blob, mtime=0) if path.suffix == ".gz" else blob


def _read(
    path: Path, cut: Callable[[BinaryIO], Iterable[bytes]], bar: tqdm | None
) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as raw, _unpacked(raw, path) as file:
        for part in cut(file):
            if bar is not None:
                bar.update(raw.tell() - done)
                done = raw.tell()
            yield part


def _unpacked(raw: BinaryIO, path: Path) -> BinaryIO:
    if path.suffix == ".xz":
        return lzma.open(raw)  # type: ignore[return-value]
    return gzip.open(raw) if path.suffix == ".gz" else raw  # type: ignore[return-value]
