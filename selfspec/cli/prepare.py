"""`selfspec prepare`: a corpus to token files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selfspec.cli.common import Run, to_json

SPLITS = ("train", "valid", "test")


def prepare(
    corpus: Literal["books27", "text8", "jsonl"],
    /,
    run: Run,
    source: str,
    out: Path,
    field: str = "text",
) -> None:
    """Turn a corpus into token files for training: train.bin, valid.bin, test.bin.

    Args:
        corpus: books27 and jsonl read a folder with train*.jsonl, valid*.jsonl and test*.jsonl,
            which may end in .xz or .gz; books27 needs all three. text8 reads text8.zip.
        run: seed and device play no part here.
        source: the folder; for text8 the zip file, the plain file, or a URL of either.
        out: the folder to write.
        field: which field of a JSON document holds its text.
    """
    from selfspec.data import jsonl, text8

    if corpus == "text8":
        stores = text8.prepare(source, out, progress=True)
    else:
        splits = find_splits(Path(source))
        needed = SPLITS if corpus == "books27" else SPLITS[:1]
        for split in needed:
            if split not in splits:
                raise ValueError(f"`source` must hold files {split}*.jsonl, got none in {source}")
        stores = jsonl.prepare(splits, out, field)
    sizes = {split: len(store) for split, store in stores.items()}
    if run.json:
        return print(to_json({"out": str(out), "characters": sizes}))
    for split, size in sizes.items():
        print(f"{split:6}{size:14,} characters")


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """The JSON-lines files of each split in a folder."""
    if not folder.is_dir():
        raise ValueError(f"`source` must be a folder, got {str(folder)!r}")
    files = {split: sorted(folder.glob(f"{split}*.jsonl*")) for split in SPLITS}
    return {split: found for split, found in files.items() if found}
