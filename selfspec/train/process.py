"""Two protections of a run: against a second process in its folder, and against Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process however the process ends.

    Where the system has no `fcntl` (Windows) the folder is not locked.

    Raises:
        RuntimeError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ModuleNotFoundError:
            pass
        except BlockingIOError as error:
            raise RuntimeError(f"another run is training in {folder}") from error
        for part in list(folder.rglob("*.part")):  # of a run that was killed while it wrote
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
        yield


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Within the block the first SIGINT or SIGTERM is only noted in the list that it yields."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
