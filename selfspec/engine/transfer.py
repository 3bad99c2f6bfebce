"""Tensors between host and device without waiting for either, and the streams that this is on.

On devices other than CUDA everything has come at once, and there are no streams.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Sent", "on", "to_device", "to_host"]


class Sent(NamedTuple):
    """A tensor on its way to the host."""

    tensor: Tensor
    """Where it will be."""
    arrived: torch.cuda.Event | None
    """After which it is there; None where it is already."""

    @property
    def has_come(self) -> bool:
        """Whether it can be read."""
        return self.arrived is None or self.arrived.query()

    def wait(self) -> Tensor:
        """The tensor, once it is there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Without waiting for it."""
    if device.type != "cuda":
        return x.to(device)
    # Rows that share their memory, such as expanded ones, cannot be pinned.
    return x.contiguous().pin_memory().to(device, non_blocking=True)


def to_host(x: Tensor) -> Sent:
    """Without waiting for it."""
    if x.device.type != "cuda":
        return Sent(x.cpu(), None)
    near = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    near.copy_(x, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Sent(near, arrived)


def on(stream: torch.cuda.Stream | None) -> AbstractContextManager[None]:
    """What is asked of the device within goes to this stream; None for the present one."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)  # type: ignore[return-value]
