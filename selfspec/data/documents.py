"""Documents to token stores, encoded by as many processes as asked for.

    documents of a split  →  ids of each  →  the part held out, if any  →  one store a split

Empty documents are dropped. With a BPE each other one is followed by its end-of-text token; with
the 27 symbols of text8 they are normalised and joined by one space. Processes take a million
characters at a time, of a long document a piece (`pieces.py`), and their results come in
order: a store does not depend on how many there are.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import numpy as np

from selfspec import checks
from selfspec.data.bpe import BPETokenizer
from selfspec.data.corpus import write_tokens
from selfspec.data.held_out import HoldOut
from selfspec.data.loader import TokenStore
from selfspec.data.pieces import Document, pieces
from selfspec.data.tokenizers import CharTokenizer, normalise, tokenizer_from

TASK = 1 << 20
"""Characters that a process takes at a time."""

Ids = np.ndarray
Piece = tuple[str, bool]
"""A text, and whether it is the last of its document."""
_worker: BPETokenizer | CharTokenizer
"""Of this process, where it is one of several."""


def prepare(
    splits: Mapping[str, Iterable[Document]],
    folder: str | os.PathLike[str],
    tokenizer: BPETokenizer | CharTokenizer,
    hold_out: HoldOut | None = None,
    workers: int = 1,
) -> dict[str, TokenStore]:
    """Writes one store `<split>.bin` a split, and `tokenizer.json`, into `folder`: all or nothing.

    Args:
        splits: the documents of each split, a long one perhaps as its parts; they are read once,
            one split after another.
        folder: made if it does not exist.
        tokenizer: a BPE, or the 27 symbols.
        hold_out: what of "train" becomes "valid", in a corpus without a split of that name.
        workers: processes. With more than one a script needs `if __name__ == "__main__":`, for they
            import it.

    Raises:
        ValueError: bad documents, nothing to write, or `workers` below 1.
        RuntimeError: a process was killed.
    """
    checks.whole("workers", workers, least=1)
    check_hold_out(splits, hold_out)
    whole = hold_out is not None and hold_out.whole
    ids = {split: encode(documents, tokenizer, workers, whole and split == "train")
           for split, documents in splits.items()}  # fmt: skip
    if hold_out is not None:
        held: list[Ids] = []  # is filled while "train" is written, which comes before
        ids = {"train": hold_out.rest(ids.pop("train"), held), "valid": held, **ids}
    return write_tokens(folder, ids, tokenizer)


def check_hold_out(splits: Collection[str], hold_out: HoldOut | None) -> None:
    """That there is something to hold out, and not held out already.

    Raises:
        ValueError: it is not so.
    """
    if hold_out is not None and ("valid" in splits or "train" not in splits):
        raise ValueError(f"`hold_out` needs a split 'train' and no 'valid', got {sorted(splits)}")


def encode(
    documents: Iterable[Document],
    tokenizer: BPETokenizer | CharTokenizer,
    workers: int = 1,
    whole: bool = False,
) -> Generator[Ids]:
    """The ids of the documents, in order: of long ones in pieces, unless they are to be whole."""
    tasks = _tasks(documents, tokenizer)
    head = list(islice(tasks, 2))  # what is one task is not worth a process
    if workers == 1 or len(head) < 2:
        results = (_encode(tokenizer, texts) for texts in chain(head, tasks))
    else:
        results = _in_processes(chain(head, tasks), tokenizer, workers)
    encoded = chain.from_iterable(results)
    ids = filter(len, _joined(encoded) if whole else (ids for ids, _ in encoded))
    if isinstance(tokenizer, CharTokenizer):
        yield from (first[1:] for first in islice(ids, 1))  # no space before the first document
    yield from ids


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(
    documents: Iterable[Document], tokenizer: BPETokenizer | CharTokenizer
) -> Iterator[list[Piece]]:
    rule = partial(_ids, tokenizer) if isinstance(tokenizer, BPETokenizer) else None
    task, size = [], 0
    for piece in chain.from_iterable(pieces(document, rule) for document in documents):
        if not piece[0]:
            continue  # an empty document
        task.append(piece)
        size += len(piece[0])
        if size >= TASK:
            yield task
            task, size = [], 0
    if task:
        yield task


def _ids(tokenizer: BPETokenizer, text: str) -> Ids:
    return tokenizer.encode_documents([text])[0][:-1]


def _encode(tokenizer: BPETokenizer | CharTokenizer, task: list[Piece]) -> list[tuple[Ids, bool]]:
    """The ids of each piece, and whether it is the last of its document."""
    texts, last = zip(*task, strict=True)
    if isinstance(tokenizer, BPETokenizer):
        rows = tokenizer.encode_documents(texts)
        rows = [ids if ends else ids[:-1] for ids, ends in zip(rows, last, strict=True)]
    else:
        rows = [tokenizer.encode(" " + text if text else "") for text in map(normalise, texts)]
    small = np.min_scalar_type(tokenizer.vocab_size - 1)
    return list(zip((ids.astype(small) for ids in rows), last, strict=True))


def _joined(encoded: Iterable[tuple[Ids, bool]]) -> Iterator[Ids]:
    """The ids of each document."""
    waiting: list[Ids] = []
    for ids, ends in encoded:
        waiting.append(ids)
        if ends:
            yield np.concatenate(waiting)
            waiting = []


def _in_processes(
    tasks: Iterable[list[Piece]], tokenizer: BPETokenizer | CharTokenizer, workers: int
) -> Iterator[list[tuple[Ids, bool]]]:
    """In order; only so much is read ahead as keeps the processes busy."""
    # Not forked: a fork copies locks that threads of the parent hold, such as the library's.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (tokenizer.to_config(),))
    waiting: deque[Future[list[tuple[Ids, bool]]]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_work, task))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(config: Mapping[str, Any]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process already
    Thread(target=_end_with_parent, daemon=True).start()
    _worker = tokenizer_from(config)


def _end_with_parent() -> None:
    """A killed parent can end nobody: who waits for its next task would wait forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(task: list[Piece]) -> list[tuple[Ids, bool]]:
    return _encode(_worker, task)
