"""From token arrays to batches on the device.

The next batch is read in a thread while the device works on this one, and copied from page-locked
memory, so that the copy does not wait for the host either.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Batches(Protocol):
    """Any source whose batch is a function of the step, such as `BlockLoader`."""

    def batch(self, step: int) -> np.ndarray:
        """Tokens (B, L) of a step, B the share of this rank."""
        ...


class Feed:
    """Batches on the device; the next one is read and sent off in a thread meanwhile."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[Tensor]] | None = None

    def __call__(self, step: int) -> Tensor:
        """Tokens (B, L) int64 of a step."""
        self._pool = self._pool or ThreadPoolExecutor(1)
        waiting = self._next[1] if self._next and self._next[0] == step else None
        tokens = (waiting or self._pool.submit(self._load, step)).result()
        self._next = (step + 1, self._pool.submit(self._load, step + 1))
        return tokens.to(self._device, non_blocking=True)

    def to_device(self, tokens: np.ndarray) -> Tensor:
        """An array of tokens as int64 on the device."""
        return self._pinned(tokens).to(self._device, non_blocking=True)

    def close(self) -> None:
        """Ends the thread."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._next = None

    def _load(self, step: int) -> Tensor:
        return self._pinned(self._batches.batch(step))

    def _pinned(self, tokens: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(tokens, np.int64))
        return tensor.pin_memory() if self._device.type == "cuda" else tensor
