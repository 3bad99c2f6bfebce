"""Files that are replaced as a whole: written beside, then renamed.

A reader finds the old content or the new, never a part of either, whatever ends the writing: an
error, a full disk, a killed process. What a killed process leaves beside ends in `.part`.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["locked", "named", "replacing", "write_bytes", "write_json", "write_together"]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file, open for writing, that takes the place of `path` if its block ends without an error.

    Raises:
        OSError: it cannot be written; `path` holds what it held.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with named(path), part.open("wb") as file:
            yield file
            _to_disk(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Writes all beside, then renames all, in their order: a full disk leaves what was there."""
    with ExitStack() as renames:  # which happen last in, first out
        parts = {path: renames.enter_context(replacing(path)) for path in reversed(list(files))}
        for path, blob in files.items():
            with named(path):
                parts[path].write(blob)
                _to_disk(parts[path])


def write_bytes(path: Path, blob: bytes) -> None:
    """Replaces one file."""
    write_together({path: blob})


def write_json(path: Path, value: object) -> None:
    """Replaces one file by `value` as JSON."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process however the process ends.

    Where the system (Windows) or the file system (some of clusters) has no locks, it is not locked.

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
            raise RuntimeError(f"another run is at work in {folder}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
        for part in list(folder.rglob("*.part")):  # of a run that was killed
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
        yield


@contextmanager
def named(path: Path) -> Iterator[None]:
    """A full disk within the block names `path`: the system does not say for which file it is."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            error.filename = os.fspath(path)
        raise


def _to_disk(file: BinaryIO) -> None:
    """What is still in buffers too, so that nothing can fail after a rename."""
    file.flush()
    os.fsync(file.fileno())
