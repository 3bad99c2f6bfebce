"""text8: the first 10^8 characters of a cleaned English Wikipedia, in 27 symbols.

The corpus is Matt Mahoney's (http://mattmahoney.net/dc/textdata). Its usual split is by position:

    train = x[0 : 90M],   valid = x[90M : 95M],   test = x[95M : 100M],   M = 10^6 characters.
"""

from __future__ import annotations

import os
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from selfspec.data.corpus import write_corpus
from selfspec.data.loader import TokenStore
from selfspec.data.tokenizers import TEXT8_ALPHABET, CharTokenizer
from selfspec.files import replacing
from selfspec.progress import tracked

URL = "http://mattmahoney.net/dc/text8.zip"
SIZES = {"train": 90_000_000, "valid": 5_000_000, "test": 5_000_000}

_PIECE = 1_000_000


def prepare(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], progress: bool = True
) -> dict[str, TokenStore]:
    """Writes `train.bin`, `valid.bin`, `test.bin` and `tokenizer.json` of text8.

    Args:
        source: `text8.zip`, the plain file `text8`, or a URL of either, such as `URL`; what is
            downloaded is kept in `folder` and not fetched again, unless it is something else.
        folder: where to; made if it does not exist.
        progress: show bars.

    Raises:
        ValueError: `source` cannot be read or is not the whole text8.
    """
    text = (
        fetch(os.fspath(source), Path(folder), progress) if "://" in str(source) else read(source)
    )
    splits = split(text)
    pieces = {name: _pieces(text, name, progress) for name, text in splits.items()}
    return write_corpus(folder, pieces, CharTokenizer())


def read(source: str | os.PathLike[str]) -> bytes:
    """The 10^8 characters in `text8.zip` or in the plain file `text8`.

    Raises:
        ValueError: `source` cannot be read, its zip is broken or has no member `text8`, or the
            text has another length or a character outside the 27 symbols.
    """
    path, total = Path(source), sum(SIZES.values())
    try:
        text = _unpack(path)
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"`source` must be text8 or text8.zip, got {path}: {error}") from error
    if len(text) != total:
        raise ValueError(f"`source` must hold {total:,} characters, got {len(text):,} in {path}")
    foreign = text.translate(None, delete=TEXT8_ALPHABET.encode())
    if foreign:
        raise ValueError(f"`source` must hold a-z and spaces, got {foreign[:1]!r} in {path}")
    return text


def split(text: bytes) -> dict[str, bytes]:
    """The usual parts of text8 by position: 90, 5 and 5 million characters."""
    parts, start = {}, 0
    for name, size in SIZES.items():
        parts[name] = text[start : start + size]
        start += size
    return parts


def fetch(url: str, folder: Path, progress: bool = True) -> bytes:
    """The 10^8 characters at `url`, whose file is kept in `folder`, or in the file that is there.

    Raises:
        ValueError: as `download` and `read`; what was fetched and is something else is removed.
    """
    path = folder / url.rsplit("/", 1)[-1]
    if path.exists():
        return read(path)
    download(url, path, progress)
    try:
        return read(path)
    except ValueError:
        path.unlink()
        raise


def download(url: str, path: Path, progress: bool = True) -> None:
    """Fetches `url` into a file, whole or not at all.

    Raises:
        ValueError: the URL cannot be read, or fewer bytes came than announced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, replacing(path) as file:
            total = int(answer.headers.get("Content-Length") or 0)
            with tracked(total=total, unit="B", unit_scale=True, progress=progress) as bar:
                while data := answer.read(_PIECE):
                    bar.update(file.write(data))
            if file.tell() < total:
                raise ValueError(f"only {file.tell():,} of {total:,} bytes came")
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(f"`source` must be readable, got {url}: {error}") from error


def _unpack(path: Path) -> bytes:
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # as every zip file starts, and no text of small letters
            return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read("text8")


def _pieces(text: bytes, name: str, progress: bool) -> Iterator[str]:
    for start in tracked(range(0, len(text), _PIECE), desc=name, unit="MB", progress=progress):
        yield text[start : start + _PIECE].decode("ascii")
