"""Folders of plain text, one document a file: `.txt`, which may end in .xz or .gz."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from selfspec.checks import existing_folder
from selfspec.data.packed import bytes_bar, read_blocks


def find_texts(source: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each split, sorted by path: those in its subfolder, at any depth.

    Where no split has a subfolder all files are of the first one.

    Raises:
        ValueError: `source` is no folder, or holds no text of the first split.
    """
    roots = {split: existing_folder("source", source) / split for split in splits}
    if not any(root.is_dir() for root in roots.values()):
        roots = {splits[0]: source}
    files = {
        split: sorted(path for path in root.rglob("*.txt*")
                      if path.name.endswith((".txt", ".txt.xz", ".txt.gz")) and path.is_file())
        for split, root in roots.items()
    }  # fmt: skip
    if not files[splits[0]]:
        raise ValueError(f"`source` must hold .txt files, got none in {roots[splits[0]]}")
    return {split: found for split, found in files.items() if found}


def read_texts(files: Sequence[Path], progress: bool = False) -> Iterator[Iterator[str]]:
    """The text of each file, as the parts in which it is read.

    Args:
        files: from `find_texts`.
        progress: show a bar over the bytes on disk.

    Raises:
        ValueError: a file is not UTF-8, or its packing is broken (it is named).
    """
    with bytes_bar(files, progress) as bar:
        for path in files:
            yield _parts(path, bar)


def _parts(path: Path, bar: tqdm) -> Iterator[str]:
    decoder = getincrementaldecoder("utf-8-sig")()  # Windows puts a mark first
    try:
        for block in read_blocks(path, bar):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 ({error})") from error
