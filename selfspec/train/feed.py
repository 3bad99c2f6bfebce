"""From token arrays to batches on the device.

The next batch is read in a thread while the device works on this one, and copied from page-locked
memory, so that the copy does not wait for the host either.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Batches(Protocol):
    """Any source whose batch is a function of the step, such as `BlockLoader`."""

    def batch(self, step: int) -> np.ndarray:
        """Tokens (B, L) of a step; a masked array is masked at pads.

        On rank r of w they are the rows r, r + w, … of a global batch that does not depend on w.
        """
        ...


class Batch(NamedTuple):
    """Rows of tokens."""

    tokens: Tensor
    """(B, L) int64."""
    pad: Tensor | None
    """(B, L) bool; None where every row is full."""
    count: int
    """Tokens that are no pads."""

    def to(self, device: torch.device) -> Batch:
        """The same on the device, without waiting for it."""
        tokens, pad, count = self
        there = None if pad is None else pad.to(device, non_blocking=True)
        return Batch(tokens.to(device, non_blocking=True), there, count)


class Feed:
    """Batches on the device; the next one is read and sent off in a thread meanwhile."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        self._pool = self._pool or ThreadPoolExecutor(1)
        waiting = self._next[1] if self._next and self._next[0] == step else None
        batch = (waiting or self._pool.submit(self._load, step)).result()
        self._next = (step + 1, self._pool.submit(self._load, step + 1))
        return batch.to(self._device)

    def to_device(self, tokens: np.ndarray) -> Batch:
        """An array of tokens on the device."""
        return self._pinned(tokens).to(self._device)

    def close(self) -> None:
        """Ends the thread."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._next = None

    def _load(self, step: int) -> Batch:
        return self._pinned(self._batches.batch(step))

    def _pinned(self, tokens: np.ndarray) -> Batch:
        padded = isinstance(tokens, np.ma.MaskedArray)
        whole = torch.from_numpy(np.ascontiguousarray(np.ma.getdata(tokens), np.int64))
        pad = torch.from_numpy(np.ma.getmaskarray(tokens)) if padded else None
        if self._device.type == "cuda":
            whole, pad = whole.pin_memory(), None if pad is None else pad.pin_memory()
        return Batch(whole, pad, tokens.count() if padded else tokens.size)
