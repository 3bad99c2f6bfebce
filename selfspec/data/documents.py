"""Documents to token stores, encoded by as many processes as asked for.

    documents of a split  →  ids of each  →  the part held out, if any  →  one store a split

With a BPE every document is followed by its end-of-text token. With the 27 symbols of text8
documents are normalised, empty ones dropped, and the others joined by one space. Processes take a
million characters at a time and their results come in order: a store does not depend on how many
there are.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import numpy as np

from selfspec.data.bpe import BPETokenizer
from selfspec.data.corpus import write_tokens
from selfspec.data.held_out import HoldOut
from selfspec.data.loader import TokenStore
from selfspec.data.tokenizers import CharTokenizer, normalise, tokenizer_from

TASK = 1 << 20
"""Characters that a process takes at a time."""

Ids = np.ndarray
_worker: BPETokenizer | CharTokenizer
"""Of this process, where it is one of several."""


def prepare(
    splits: Mapping[str, Iterable[str]],
    folder: str | os.PathLike[str],
    tokenizer: BPETokenizer | CharTokenizer,
    hold_out: HoldOut | None = None,
    workers: int = 1,
) -> dict[str, TokenStore]:
    """Writes one store `<split>.bin` a split, and `tokenizer.json`, into `folder`: all or nothing.

    Args:
        splits: the documents of each split; they are read once, one split after another.
        folder: made if it does not exist.
        tokenizer: a BPE, or the 27 symbols.
        hold_out: what of "train" becomes "valid", in a corpus without a split of that name.
        workers: processes. With more than one a script needs `if __name__ == "__main__":`, for they
            import it.

    Raises:
        ValueError: bad documents, nothing to write, or `workers` below 1.
        RuntimeError: a process was killed.
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}")
    if hold_out is not None and ("valid" in splits or "train" not in splits):
        raise ValueError(f"`hold_out` needs a split 'train' and no 'valid', got {sorted(splits)}")
    ids = {split: encode(documents, tokenizer, workers) for split, documents in splits.items()}
    if hold_out is not None:
        held: list[Ids] = []  # is filled while "train" is written, which comes before
        ids = {"train": hold_out.rest(ids.pop("train"), held), "valid": held, **ids}
    return write_tokens(folder, ids, tokenizer)


def encode(
    documents: Iterable[str], tokenizer: BPETokenizer | CharTokenizer, workers: int = 1
) -> Generator[Ids]:
    """The ids of each document, in order."""
    tasks = _tasks(documents)
    head = list(islice(tasks, 2))  # what is one task is not worth a process
    if workers == 1 or len(head) < 2:
        results = (_encode(tokenizer, texts) for texts in chain(head, tasks))
    else:
        results = _in_processes(chain(head, tasks), tokenizer, workers)
    ids = chain.from_iterable(results)
    if isinstance(tokenizer, CharTokenizer):
        yield from (first[1:] for first in islice(ids, 1))  # no space before the first document
    yield from ids


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(documents: Iterable[str]) -> Iterator[list[str]]:
    task, size = [], 0
    for document in documents:
        task.append(document)
        size += len(document)
        if size >= TASK:
            yield task
            task, size = [], 0
    if task:
        yield task


def _encode(tokenizer: BPETokenizer | CharTokenizer, texts: list[str]) -> list[Ids]:
    if isinstance(tokenizer, BPETokenizer):
        rows = tokenizer.encode_documents(texts)
    else:
        rows = [tokenizer.encode(" " + text) for text in map(normalise, texts) if text]
    small = np.min_scalar_type(tokenizer.vocab_size - 1)
    return [ids.astype(small) for ids in rows]


def _in_processes(
    tasks: Iterable[list[str]], tokenizer: BPETokenizer | CharTokenizer, workers: int
) -> Iterator[list[Ids]]:
    """In order; only so much is read ahead as keeps the processes busy."""
    # Not forked: a fork copies locks that threads of the parent hold, such as the library's.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (tokenizer.to_config(),))
    waiting: deque[Future[list[Ids]]] = deque()
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


def _work(texts: list[str]) -> list[Ids]:
    return _encode(_worker, texts)
