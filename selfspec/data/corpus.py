"""A corpus on disk: one store a split, and the tokenizer that made them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selfspec.data.loader import TokenStore, write_store
from selfspec.data.ragged import RaggedStore
from selfspec.data.tokenizers import CharTokenizer, Tokenizer, tokenizer_from
from selfspec.files import locked, write_json

Store = TokenStore | RaggedStore
Written = TypeVar("Written", TokenStore, RaggedStore)


def write_corpus(
    folder: str | os.PathLike[str],
    splits: Mapping[str, Iterable[str]],
    tokenizer: CharTokenizer,
    write: Callable[[Path, Iterable[Any], int], Written] = write_store,
) -> dict[str, Written]:
    """Writes one store `<split>.bin` a split, and `tokenizer.json`, into `folder`: all or nothing.

    Args:
        folder: made if it does not exist.
        splits: the pieces of text of each split.
        tokenizer: encodes the pieces.
        write: `write_store` concatenates the pieces, `write_sequences` keeps them apart.

    Raises:
        ValueError: a piece has a character outside the alphabet, a split has no text, or the folder
            holds a corpus with other splits, which would be taken for some of this one.
        RuntimeError: another process is writing there.
    """
    ids = {split: map(tokenizer.encode, pieces) for split, pieces in splits.items()}
    return write_tokens(folder, ids, tokenizer, write)


def write_tokens(
    folder: str | os.PathLike[str],
    splits: Mapping[str, Iterable[Any]],
    tokenizer: Tokenizer,
    write: Callable[[Path, Iterable[Any], int], Written] = write_store,
) -> dict[str, Written]:
    """The same of pieces that are token ids already."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`folder` must be one, got the file {folder}")
    if others := sorted({store.stem for store in folder.glob("*.bin")} - {*splits}):
        raise ValueError(f"`folder` must hold no other splits, got {others} in {folder}")
    with _beside(folder) as partial:
        for split, pieces in splits.items():
            write(partial / f"{split}.bin", pieces, tokenizer.vocab_size)
        write_json(partial / "tokenizer.json", tokenizer.to_config())
        folder.mkdir(exist_ok=True)
        for old in (path for split in splits for path in folder.glob(f"{split}.lengths*")):
            old.unlink()  # or a store of blocks would be taken for one of sequences
        for file in partial.iterdir():
            file.replace(folder / file.name)
    return {split: open_store(folder / f"{split}.bin") for split in splits}  # type: ignore[misc]


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """An empty folder within `<folder>.part`, which a killed process may have left behind."""
    held = folder.parent / f"{folder.name}.part"
    with locked(held):
        try:
            (held / "new.part").mkdir()
            yield held / "new.part"
        finally:
            shutil.rmtree(held, ignore_errors=True)


def open_corpus(
    data: str | os.PathLike[str], verify: bool = False
) -> tuple[Tokenizer, dict[str, Store]]:
    """What `write_corpus` wrote: the tokenizer, and the store of each split.

    Args:
        data: the folder of the corpus.
        verify: compare all checksums, which reads every file once.

    Raises:
        ValueError: `data` holds no such corpus, a store is broken or of another tokenizer.
    """
    path = Path(data, "tokenizer.json")
    try:
        tokenizer = tokenizer_from(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ValueError(f"`data` must hold a corpus, got {data}: {error}") from error
    files = sorted(path.parent.glob("*.bin"))
    stores = {file.stem: open_store(file, verify) for file in files}
    for store in stores.values():
        if store.vocab_size != tokenizer.vocab_size:
            raise ValueError(f"`data` must hold stores of its tokenizer's {tokenizer.vocab_size} "
                             f"tokens, got {store.path} of {store.vocab_size}")  # fmt: skip
    return tokenizer, stores


def open_store(path: str | os.PathLike[str], verify: bool = False) -> Store:
    """A store of sequences where their lengths lie beside it, else one of blocks."""
    ragged = Path(path).with_suffix(".lengths").exists()
    return RaggedStore(path, verify) if ragged else TokenStore(path, verify)
