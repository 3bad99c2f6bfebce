"""A run as a process: alone in its folder, and ended well by Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from selfspec.files import locked
from selfspec.train import parallel


@contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Holds the folder of a run, which all processes must see; rank 0 has the lock."""
    rank = parallel.group().rank
    with ExitStack() as stack:
        with parallel.together():
            if folder and rank == 0:
                stack.enter_context(locked(folder))
        with parallel.together():
            if folder and not (folder / "lock").exists():
                raise ValueError(f"`folder` must be one that all processes see: {folder} is not")
        yield


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Within the block the first SIGINT or SIGTERM is only noted in the list that it yields."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
