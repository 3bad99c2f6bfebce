import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from selfspec.files import locked, replacing, write_bytes, write_json, write_together


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_there_when_its_block_ends(tmp_path: Path):
    write_bytes(tmp_path / "a", b"old")
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert contents(tmp_path) == {"a": b"new"}


def test_an_error_leaves_what_was_there(tmp_path: Path):
    write_bytes(tmp_path / "a", b"old")
    for path in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(TypeError), replacing(path) as file:
            file.writelines([b"new", None])  # type: ignore[list-item]
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("room", [0, 1])
def test_a_full_disk_leaves_all_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
):
    old = {tmp_path / "a": b"old", tmp_path / "b": b"old"}
    write_together(old)
    written = []

    def fsync(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left") as caught:
        write_together(dict.fromkeys(old, b"new"))
    assert caught.value.filename == str(list(old)[room])
    assert contents(tmp_path) == {"a": b"old", "b": b"old"}


def test_files_are_renamed_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    renamed, replace = [], Path.replace

    def noted(part: Path, path: Path) -> Path:
        renamed.append(path.name)
        return replace(part, path)

    monkeypatch.setattr(Path, "replace", noted)
    write_together({tmp_path / name: b"" for name in "cab"})
    assert renamed == ["c", "a", "b"]


def test_a_rename_that_fails_stops_those_after_it(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        write_together({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_json_ends_with_a_line_break(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": [1]})
    assert contents(tmp_path) == {"a.json": b'{\n "x": [\n  1\n ]\n}\n'}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    other = pytest.raises(OSError, match="Input/output") if number == errno.EIO else nullcontext()
    with other, locked(tmp_path):
        pass
