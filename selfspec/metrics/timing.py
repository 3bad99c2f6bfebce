"""Wall-clock time of a call: the median of at least five, after warm-up, device synchronised."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from selfspec.checks import whole

__all__ = ["Timing", "median_seconds", "synchronize"]


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed call, in the order in which they ran; warm-up calls are left out."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self.seconds)


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done what was asked of it; nothing to wait for on the CPU."""
    if (device := torch.device(device)).type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def median_seconds(
    call: Callable[[], object],
    device: torch.device | str = "cpu",
    repeats: int = 5,
    warmup: int = 2,
) -> Timing:
    """Times a call.

    Args:
        call: what to time; its result is dropped.
        device: where it works; synchronised before and after every call.
        repeats: timed calls, at least 5.
        warmup: calls before them that do not count, at least 1.

    Raises:
        ValueError: `repeats` is below 5 or `warmup` below 1.
    """
    whole("repeats", repeats, least=5)
    whole("warmup", warmup, least=1)
    seconds = []
    for _ in range(warmup + repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds[warmup:]))
