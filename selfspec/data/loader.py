"""Token files, and batches of blocks from them.

A store is the concatenation x_0 .. x_{n-1} of a corpus in the smallest unsigned integer that holds
V-1, memory-mapped, with a JSON header beside it.

Epoch e cuts the store at a random phase φ_e into M blocks of L tokens and draws a permutation π_e:
its m-th block starts at φ_e + L·π_e(m). Epochs follow one another in one endless list of slots;
row b of rank r at step t is row g = b·world + r of the global batch and takes slot

    s = t·world·batch_size + g              =  block  s mod M  of epoch  s div M.

A batch is thus a pure function of (seed, step, rank, world): to resume, ask for the next step.
Every block comes exactly once per epoch, ranks never share a slot, and w ranks of batch B/w see
together what one rank of batch B sees, row g of it in the same place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selfspec.checks import whole
from selfspec.files import replacing, write_json

_FORMAT = "selfspec tokens 1"


class TokenStore:
    """A memory-mapped token file with its header `<path>.json`, as `write_store` leaves them.

    Args:
        path: the token file.
        verify: read the whole file once and compare its SHA-256 with the header's.

    Attributes:
        tokens: (n,) uint8, uint16 or uint32, read-only.
        vocab_size: V; all tokens are below it.
        sha256: of the token file, in hexadecimal.

    Raises:
        ValueError: the header or the file is missing, foreign, truncated or (`verify`) altered.
    """

    def __init__(self, path: str | os.PathLike[str], verify: bool = False) -> None:
        self.path = Path(path)
        try:
            header = json.loads(_header_path(self.path).read_bytes())
            if header["format"] != _FORMAT:
                raise ValueError(f"its header says {header['format']!r}, not {_FORMAT!r}")
            self.vocab_size, self.sha256 = int(header["vocab_size"]), str(header["sha256"])
            count, dtype = int(header["tokens"]), np.dtype(header["dtype"])
            size = self.path.stat().st_size
            if size != count * dtype.itemsize:
                raise ValueError(f"it has {size} bytes, not {count} tokens of {dtype}")
            if verify and _sha256(self.path) != self.sha256:
                raise ValueError("its SHA-256 is not the header's")
            self.tokens: npt.NDArray[np.unsignedinteger] = np.memmap(self.path, dtype, mode="r")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"`path` must be a token store, got {self.path}: {error}") from error

    def __len__(self) -> int:
        return len(self.tokens)

    def loader(
        self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> BlockLoader:
        """Training batches."""
        return BlockLoader(self, length, batch_size, seed, rank, world)

    def excerpt(self, length: int, rows: int) -> npt.NDArray[np.unsignedinteger]:
        """At most `rows` of its blocks, evenly spaced."""
        return spread(self.blocks(length), rows)

    def blocks(self, length: int) -> npt.NDArray[np.unsignedinteger]:
        """The store cut from its start into blocks, the remainder left off: (n div L, L), a view.

        Raises:
            ValueError: the store is shorter than one block.
        """
        _check_length(self, length)
        count = len(self) // length
        return self.tokens[: count * length].reshape(count, length)


def write_store(
    path: str | os.PathLike[str], chunks: Iterable[npt.ArrayLike], vocab_size: int
) -> TokenStore:
    """Writes the concatenation of `chunks` as a store. The old store, if any, stays until the end.

    Args:
        path: the token file to write; the header goes to `<path>.json`.
        chunks: (n_k,) integer arrays, tokens in 0..V-1.
        vocab_size: V, at least 1, at most 2^32.

    Raises:
        ValueError: a token is not in 0..V-1, or there is no token at all.
    """
    if not 1 <= vocab_size <= 2**32:
        raise ValueError(f"`vocab_size` must be in 1..2^32, got {vocab_size}")
    path, dtype = Path(path), np.min_scalar_type(vocab_size - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, count = hashlib.sha256(), 0
    with replacing(path) as file:
        for chunk in chunks:
            data = _as_tokens(chunk, vocab_size).astype(dtype).tobytes()
            digest.update(data)
            count += file.write(data) // dtype.itemsize
        if not count:
            raise ValueError(f"`chunks` must hold at least one token for {path.name}, got none")
        _header_path(path).unlink(missing_ok=True)  # never an old header beside a new file
    header = {"format": _FORMAT, "vocab_size": vocab_size, "tokens": count, "dtype": dtype.str}
    write_json(_header_path(path), header | {"sha256": digest.hexdigest()})
    return TokenStore(path)


class BlockLoader:
    """Batches of random blocks of a store; see the formula of this module.

    Args:
        store: the corpus.
        length: L, tokens a block.
        batch_size: B, blocks a batch on this rank.
        seed: of the phases and permutations; at least 0 and the same on every rank.
        rank: r, this process.
        world: the number of processes.

    Attributes:
        blocks_per_epoch: M = max(1, (n - L + 1) div L), so that every phase below L leaves M
            whole blocks (a store shorter than 2L - 1 has fewer phases instead).

    Raises:
        ValueError: an argument is out of its range, or the store is shorter than one block.
    """

    def __init__(
        self,
        store: TokenStore,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _check_length(store, length)
        check_shares(batch_size, seed, rank, world)
        self.store, self.length, self.batch_size = store, length, batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.blocks_per_epoch = max(1, (len(store) - length + 1) // length)
        # A batch may straddle two epochs, so the last two permutations are kept.
        self._starts = lru_cache(maxsize=2)(self._draw_starts)

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The batch of this rank at `step`: (B, L) tokens.

        Args:
            step: t, at least 0; the only state there is.

        Raises:
            ValueError: `step` is negative.
        """
        whole("step", step, least=0)
        size = self.batch_size * self.world
        own = range(step * size + self.rank, (step + 1) * size, self.world)
        slots = (divmod(s, self.blocks_per_epoch) for s in own)
        starts = np.array([self._starts(epoch)[m] for epoch, m in slots])
        return self.store.tokens[starts[:, None] + np.arange(self.length)].astype(np.int64)

    def _draw_starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """Where the blocks of an epoch start, in the order in which they come: (M,)."""
        rng = np.random.default_rng([self.seed, epoch])
        slack = len(self.store) - self.blocks_per_epoch * self.length
        phase = rng.integers(min(self.length, slack + 1))
        return phase + self.length * rng.permutation(self.blocks_per_epoch)


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows (n, ...), evenly spaced."""
    return rows[even(len(rows), count)]


def even(n: int, count: int) -> npt.NDArray[np.int64]:
    """At most `count` of the numbers 0..n-1, evenly spaced."""
    return np.linspace(0, n - 1, min(count, n)).round().astype(np.int64)


def check_shares(batch_size: int, seed: int, rank: int, world: int) -> None:
    """Raises a `ValueError` unless the settings that all loaders share are in their ranges."""
    whole("batch_size", batch_size, least=1)
    whole("seed", seed, least=0)
    if not 0 <= rank < world:
        raise ValueError(f"`rank` must be in 0..world-1 with `world` {world}, got {rank}")


def _check_length(store: TokenStore, length: int) -> None:
    if not 1 <= length <= len(store):
        raise ValueError(
            f"`length` must be in 1..{len(store)}, the tokens of {store.path}, got {length}"
        )


def _as_tokens(chunk: npt.ArrayLike, vocab_size: int) -> npt.NDArray[np.integer]:
    tokens = np.asarray(chunk)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"`chunks` must be integer arrays of one axis, got {tokens.dtype} {tokens.shape}"
        )
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        raise ValueError(
            f"`chunks` must hold tokens in 0..{vocab_size - 1}, got {tokens.min()}..{tokens.max()}"
        )
    return tokens


def _header_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
