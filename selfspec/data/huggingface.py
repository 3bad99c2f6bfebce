"""Text datasets of the Hugging Face Hub, through the `datasets` library.

A name may carry a revision behind "@". A folder with files of text in it (JSON lines, Parquet,
plain text) is a dataset too, which needs no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfspec.progress import tracked

OPENWEBTEXT = "Skylion007/openwebtext"

_NAMES = {"validation": "valid", "dev": "valid"}
"""What others call our splits."""
_ROWS = 1000


def find_splits(name: str, subset: str | None = None) -> dict[str, str]:
    """The dataset's splits train, valid and test, under our names.

    Raises:
        ValueError: there is no such dataset, or no split "train".
        OSError: no network.
    """
    repository, revision = _parted(name)
    try:
        found = _library().get_dataset_split_names(repository, subset, revision=revision)
    except (FileNotFoundError, RuntimeError) as error:  # a missing one, one that is a script
        raise ValueError(f"`source` must be a dataset, got {name!r}: {error}") from error
    splits = {_NAMES.get(split, split): split for split in found}
    if "train" not in splits:
        raise ValueError(f"`source` must have a split 'train', got {sorted(found)} in {name}")
    return {split: splits[split] for split in ("train", "valid", "test") if split in splits}


def read_dataset(
    name: str,
    split: str,
    field: str = "text",
    subset: str | None = None,
    streaming: bool = False,
    progress: bool = False,
) -> Iterator[str]:
    """The texts of a split, in order.

    Args:
        name: "owner/name", "owner/name@revision", or a folder.
        split: the library's name of it.
        field: the column that holds the text.
        subset: the dataset's configuration, where it has several.
        streaming: read over the network what is needed instead of downloading all before.
        progress: show a bar over the documents.

    Raises:
        ValueError: there is no such dataset, split or column of text.
        OSError: no network.
    """
    repository, revision = _parted(name)
    try:
        dataset = _library().load_dataset(
            repository, subset, split=split, revision=revision, streaming=streaming
        )
    except (FileNotFoundError, RuntimeError) as error:
        raise ValueError(f"`source` must be a dataset, got {name!r}: {error}") from error
    total = None if streaming else len(dataset)
    with tracked(total=total, desc=split, unit="document", progress=progress) as bar:
        for text in _texts(dataset, field):
            bar.update()
            yield text


def _texts(dataset: Any, field: str) -> Iterator[str]:
    for rows in dataset.iter(batch_size=_ROWS):
        texts = rows.get(field, [None])
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`field` must be a column of text, got {field!r} of {sorted(rows)}")
        yield from texts


def _parted(name: str) -> tuple[str, str | None]:
    repository, _, revision = name.partition("@")
    return repository, revision or None


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("a dataset needs `pip install selfspec[text]`") from error
    return datasets
