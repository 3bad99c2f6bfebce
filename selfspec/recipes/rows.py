"""Rows for a model on a trunk of the Hub.

A row is what the trunk reads: the tokens that stand around every sequence, and between them

    lines     one document, cut where the row is full; rows have lengths of their own
    packed    the documents one after another, cut into pieces of one length
    self      what the model itself draws, one token a pass: no corpus is needed (`drawn.py`)

Every 50th row, and at most 1,024 of them, are held out for validation.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from tqdm import tqdm

from selfspec.data.fasta import Cleaner, Policy, Unknown, is_fasta, read_fasta
from selfspec.data.jsonl import read_jsonl
from selfspec.data.packed import bytes_bar, read_lines, suffixes
from selfspec.data.pieces import Document, pieces
from selfspec.data.ragged import RaggedStore, write_sequences
from selfspec.files import locked, write_json
from selfspec.hub import HubTrunk
from selfspec.hub.tokenizer import HubTokenizer
from selfspec.lengths import Lengths
from selfspec.model import SSMD
from selfspec.recipes.drawn import check_facts, own_rows
from selfspec.train import TrainConfig
from selfspec.train.feed import Batches
from selfspec.train.parallel import group, rows_each, together

__all__ = ["Rows", "documents", "open_rows", "read_data", "text_rows"]

Rows = Literal["lines", "packed"]
DRAWN = "drawn"
"""Where rows are kept until all are drawn, in their folder."""
HELD_OUT, MOST_HELD_OUT = 50, 1024
log = logging.getLogger("selfspec")


class Data(NamedTuple):
    """What a trainer reads."""

    batches: Batches
    valid: np.ndarray
    observed: tuple[int, ...]
    """Tokens that occur and are never drafted."""


def read_data(
    model: SSMD,
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    config: TrainConfig,
    rows: Rows | None,
    length: int | None,
    num: int,
    field: str,
    unknown: str,
    device: torch.device | str | None,
    progress: bool,
) -> Data:
    """Rows of a file for a model on a trunk of the Hub; arguments and errors as in `attach`.

    The model is moved to the device, and knows how long its sequences are.
    """
    if rows is None:  # two proteins in one row are nothing that a model of proteins has seen
        rows = "lines" if is_fasta(data) else "packed"
    if rows not in get_args(Rows):
        raise ValueError(f"`rows` must be one of {get_args(Rows)}, got {rows!r}")
    if unknown not in (known := [policy.value for policy in Unknown]):
        raise ValueError(f"`unknown` must be one of {known}, got {unknown!r}")
    assert isinstance(model.trunk, HubTrunk)
    frame = sum(map(len, model.frame))
    length = min(model.length, 512) if length is None else length
    if not frame < length <= model.length:
        raise ValueError(f"`length` must be in {frame + 1}..{model.length}, got {length}")
    room = length - frame
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    facts: dict[str, Any] = {"length": length, "trunk": model.trunk.source.sha256}
    reading: AbstractContextManager[object] = nullcontext()
    if data == "self":
        facts |= {"data": "self", "num": num, "seed": config.seed}
        kept = Path(folder, "data", DRAWN)
        make = partial(own_rows, model, num, room, config.seed, progress=progress, folder=kept)
    else:
        tokenizer = _tokenizer(model)
        facts |= {"data": Path(data).name, "bytes": Path(data).stat().st_size, "rows": rows,
                  "field": field, "unknown": unknown, "tokens": tokenizer.sha256}  # fmt: skip
        texts = documents(data, rows, field, Unknown(unknown), tokenizer.residues, progress)
        make = partial(text_rows, model, texts, room, rows)
        reading = closing(texts)  # its bar must not outlive an error
    open_them = partial(open_rows, Path(folder, "data"), facts, model.vocab_size, make)
    with together(), reading:
        if group().rank == 0:
            with locked(Path(folder, "data")):
                open_them()  # and makes them, for all processes
    train, valid = open_them()
    share = rows_each(config.batch_size, config.accumulate)
    batches: Batches = train.loader(length, share, config.seed, *group())
    held_out = valid.excerpt(length, MOST_HELD_OUT)
    if data != "self" and rows == "lines":
        model.lengths = Lengths.of(train.lengths - frame, model.length - frame)
    else:
        batches, held_out = Full(batches), held_out.data
        if 1 < room < model.length - frame:
            model.lengths = Lengths((0, 1), room - 1, room)  # the only length that was trained on
    return Data(batches, held_out, _observed(model, train, valid))


@dataclass(frozen=True)
class Full:
    """Batches in which every row is full: without a mask attention is faster."""

    source: Batches

    def batch(self, step: int) -> np.ndarray:
        """Tokens (B, L) of a step."""
        return np.ma.getdata(self.source.batch(step))


def documents(
    data: str | os.PathLike[str],
    rows: Rows = "packed",
    field: str = "text",
    unknown: Unknown = Unknown.SKIP,
    residues: str = "",
    progress: bool = False,
) -> Generator[Document]:
    """The documents of a file, in order; arguments as in `attach`.

    A text file that is one document comes as its lines.

    Args:
        residues: the letters that sequences of FASTA may have; all capital letters by default.

    Raises:
        ValueError: the file is broken, has none, or is not UTF-8.
    """
    if ".jsonl" in suffixes(data):
        yield from read_jsonl(data, field, progress)
    elif is_fasta(data):
        cleaner = Cleaner(residues or ascii_uppercase, Policy(unknown=unknown))
        yield from cleaner(read_fasta(data, progress))
        if cleaner.skipped:
            log.warning("%s sequences with unknown residues were left out", cleaner.skipped)
    else:
        with bytes_bar([Path(data)], progress) as bar:
            lines = _lines(Path(data), bar)
            yield from filter(None, map(str.strip, lines)) if rows == "lines" else [lines]


def _lines(path: Path, bar: tqdm) -> Iterator[str]:
    for number, line in read_lines(path, bar):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error


def text_rows(
    model: SSMD, texts: Iterable[Document], room: int, rows: Rows = "packed"
) -> Iterator[np.ndarray]:
    """Documents as rows of at most `room` tokens within the frame.

    Raises:
        ValueError: the model has no tokenizer, or a text is not of its characters.
    """
    tokenizer = _tokenizer(model)
    if rows == "lines":
        encoded = (tokenizer.encode("".join(text)) for text in texts)
        found = (ids[:room] for ids in encoded if len(ids))
    else:
        found = _packed(_encoded(tokenizer, texts), tokenizer.separator, room)
    begin, end = model.frame
    for row in found:
        yield np.concatenate([begin, row, end]).astype(np.int64)


def _tokenizer(model: SSMD) -> HubTokenizer:
    if not isinstance(model.tokenizer, HubTokenizer):
        raise ValueError("`model` must have a tokenizer to read text, got none")
    return model.tokenizer


def open_rows(
    folder: Path,
    facts: dict[str, Any],
    vocab_size: int,
    make: Callable[[], Iterable[np.ndarray]],
) -> tuple[RaggedStore, RaggedStore]:
    """Rows for training and validation: those in the folder, or else made and written there.

    Args:
        folder: of the rows.
        facts: what they are made of; those in the folder must be of the same.
        vocab_size: V.
        make: the rows.

    Raises:
        ValueError: the folder holds rows of something else, or there are fewer than two.
    """
    about = folder / "rows.json"
    if check_facts(about, facts):
        return RaggedStore(folder / "train.bin"), RaggedStore(folder / "valid.bin")
    held_out: list[np.ndarray] = []

    def kept() -> Iterator[np.ndarray]:
        for index, row in enumerate(make()):
            if index % HELD_OUT == 0 and len(held_out) < MOST_HELD_OUT:
                held_out.append(row)
            else:
                yield row

    rows = kept()
    first = next(rows, None)
    if first is None:
        raise ValueError(f"`data` must give at least 2 rows, got {len(held_out)}")
    train = write_sequences(folder / "train.bin", chain([first], rows), vocab_size)
    valid = write_sequences(folder / "valid.bin", held_out, vocab_size)
    write_json(about, facts)
    shutil.rmtree(folder / DRAWN, ignore_errors=True)
    return train, valid


def _encoded(
    tokenizer: HubTokenizer, texts: Iterable[Document]
) -> Iterator[tuple[np.ndarray, bool]]:
    """Ids of documents, of long ones in pieces, and whether they begin one."""
    for text in texts:
        begins = True
        for piece, _ in pieces(text, tokenizer.encode):
            if len(ids := tokenizer.encode(piece)):
                yield ids, begins
                begins = False


def _packed(
    encoded: Iterable[tuple[np.ndarray, bool]], separator: Sequence[int], room: int
) -> Iterator[np.ndarray]:
    """All ids one after another in pieces of `room`; what is left at the end is left out."""
    left, between = np.empty(0, dtype=np.int64), np.array(separator, dtype=np.int64)
    for ids, begins in encoded:
        left = np.concatenate([left, between, ids] if begins and len(left) else [left, ids])
        whole = len(left) // room * room
        yield from left[:whole].reshape(-1, room)
        left = left[whole:]


def _observed(model: SSMD, *stores: RaggedStore) -> tuple[int, ...]:
    """The forbidden tokens that occur: no draft could be right there."""
    assert isinstance(model.trunk, HubTrunk)
    seen = np.zeros(model.vocab_size, dtype=bool)
    for tokens in (store.tokens for store in stores):
        for start in range(0, len(tokens), 1 << 24):
            seen[tokens[start : start + (1 << 24)]] = True
    return tuple(i for i in model.trunk.vocabulary.forbidden if seen[i])
