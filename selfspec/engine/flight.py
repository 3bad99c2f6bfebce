"""Rows in flight: in the pool, under the passes, and on their way back to the host.

Passes are launched ahead of the device. Behind every few of them the flags of finished rows are
copied beside the work (a poll) and read when they have arrived; the rows that they report are sent
for (a parcel).

Where the device has too little memory, half of the slots are given up, and work is tried again.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch

from selfspec.engine.finished import Finished, packed, unpacked
from selfspec.engine.graphs import Steps
from selfspec.engine.intake import Waiting
from selfspec.engine.state import Pool, Rows
from selfspec.engine.step import Variant
from selfspec.engine.transfer import Sent, on, to_device, to_host

__all__ = ["Flight", "pass_bounds"]

T = TypeVar("T")
AHEAD = 4
"""Passes between two looks at what is finished, while there is more to do."""
WIDTHS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128)
log = logging.getLogger("selfspec.engine")


class Poll(NamedTuple):
    """Flags of the pool's finished rows."""

    turn: int
    done: Sent


class Flight:
    """What the host knows of the rows in the pool.

    But for `spared`, `cancel` and `reset`, it is to be called on the stream of the passes.

    Args:
        pool: where the rows are.
        steps: the passes.
        fixed: the variant of every pass; None where a pass is what its rows need.
        stream: of the passes.
    """

    def __init__(
        self, pool: Pool, steps: Steps, fixed: Variant | None, stream: torch.cuda.Stream | None
    ):
        self.pool, self.steps, self.fixed, self.stream = pool, steps, fixed, stream
        self.device = pool.slots.device
        self._cancelled: set[int] = set()
        self._polls: deque[Poll] = deque()
        self._parcels: deque[Sent] = deque()
        """Finished rows, packed."""
        self._clear()

    def _clear(self) -> None:
        """Nothing is in the pool."""
        self._free = list(range(len(self.pool.queue)))
        self._held: dict[int, tuple[int, int]] = {}
        """Pool row → (request number, turn at which it was uploaded)."""
        self._turn = self._entered = self._least = 0
        self._most = math.inf
        self._variant = Variant()
        self.pool.clear()

    @property
    def slots(self) -> int:
        """S; half of what was asked for after the device had too little memory."""
        return len(self.pool.every_slot)

    @property
    def room(self) -> int:
        """Rows that can be put into the pool."""
        return len(self._free)

    @property
    def idle(self) -> bool:
        """Whether no row is in the pool or on its way back."""
        return not (self._held or self._parcels)

    def takes(self, variant: Variant) -> bool:
        """Whether one step can serve such rows and those in the pool."""
        return not self._held or self._variant.agrees(variant)

    def put(self, batch: Waiting, last: bool) -> None:
        """Put rows into the pool, for which there is room.

        Args:
            batch: the rows.
            last: whether no further ones are to be submitted.
        """
        if not self._held and not self._polls:
            self._clear()
        count = len(batch.numbers)
        alone = not self._held and last and count <= self.slots
        self._least, self._most = pass_bounds(batch.rows) if alone else (0, math.inf)
        self._variant = batch.variant.joined(self._variant) if self._held else batch.variant
        at, self._free = self._free[:count], self._free[count:]
        for row, number in zip(at, batch.numbers, strict=True):
            self._held[row] = (number, self._turn)
        places = [(self._entered + k) % len(self.pool.queue) for k in range(count)]
        self._entered += count
        index, places = (to_device(torch.tensor(x), self.device) for x in (at, places))
        self.pool.upload(index, batch.rows, places)
        for number in self._cancelled.intersection(batch.numbers):
            self.cancel(number)

    def cancel(self, number: int) -> None:
        """Give a request up, which may be in the pool or come to it; it has no result."""
        self._cancelled.add(number)
        for row, (held, _) in self._held.items():
            if held == number:
                with on(self.stream):
                    self.pool.rows.end[row : row + 1] = self.pool.rows.revealed[row : row + 1]

    def launch(self, more: bool) -> bool:
        """Launch passes, as many as are surely needed, and ask which rows are finished then.

        Args:
            more: whether further rows wait or may come.

        Returns:
            Whether there was need of any.
        """
        if not self._held or (self._most <= 0 and self._polls):
            return False
        behind = more or len(self._held) > self.slots
        ahead = AHEAD if behind and self.device.type == "cuda" else 1
        for _ in range(self._least or ahead):
            self._most -= 1
            try:
                self.steps(self._present())
            except torch.OutOfMemoryError as error:
                self._halve(error)
                break
        self._least = 0
        self._turn += 1
        self._polls.append(Poll(self._turn, to_host(self.pool.rows.done)))
        return True

    def look(self, wait: bool) -> None:
        """Send for the rows that a poll, which has arrived, reports as finished.

        While passes are launched, the last poll but one is waited for: the device has work behind.
        """
        while self._polls:
            ahead = len(self._polls) < 2 and not wait and bool(self._held)
            if ahead and not self._polls[0].done.has_come:
                return
            turn, done = self._polls.popleft()
            flags = done.wait().tolist()
            ready = [row for row, (_, since) in self._held.items() if flags[row] and since < turn]
            if not ready:
                continue
            self._parcels.append(self.spared(self._parcel, ready))
            for row in ready:
                del self._held[row]
            self._free += ready
        if not self._held:
            for parcel in self._parcels:
                parcel.wait()

    def arrived(self) -> Iterator[Finished]:
        """The finished rows that have come back, without those that were given up."""
        while self._parcels and self._parcels[0].has_come:
            rows = unpacked(self._parcels.popleft().tensor)
            numbers = rows.index.tolist()
            kept = torch.tensor([number not in self._cancelled for number in numbers])
            self._cancelled.difference_update(numbers)
            if bool(kept.any()):
                yield rows.rows(kept)

    def reset(self) -> None:
        """Give up all rows; they have no results."""
        if self.stream is not None:
            self.stream.synchronize()
        for given_up in (self._polls, self._parcels, self._cancelled):
            given_up.clear()
        with on(self.stream):
            self._clear()

    def spared(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` gives, beside the passes; these leave it memory as long as it has too little.

        It must be such that it can be tried again.
        """
        while True:
            try:
                return work(*given)
            except torch.OutOfMemoryError as error:
                with on(self.stream):
                    self._halve(error)

    def _present(self) -> Variant:
        """The variant of the coming pass: windows in a few sizes where it is kept."""
        if self.fixed is not None:
            return self.fixed
        if self.device.type == "cuda" or self.steps.compile:
            width = _rounded_up(self._variant.width, self.pool.rows.order.shape[1])
            return replace(self._variant, width=width)
        return replace(self._variant, width=self.pool.shrink())

    def _parcel(self, ready: list[int]) -> Sent:
        """Pool rows, sent for."""
        at = to_device(torch.tensor(ready), self.device)
        return to_host(packed(self.pool.rows, at))

    def _halve(self, error: Exception) -> None:
        """Go on with half of the slots; rows that lose theirs are queued again, in front."""
        slots = self.slots
        if slots == 1:
            raise error
        log.warning("out of memory with %d slots: going on with %d", slots, slots // 2)
        if self.stream is not None:
            self.stream.synchronize()  # a graph that still runs is not to be dropped
        self.steps.forget()
        self._entered = self.pool.halve()
        self._most = math.inf
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def pass_bounds(rows: Rows) -> tuple[int, float]:
    """The fewest and the most passes after which some, and all, of these rows are finished.

    If all drafts stand, a pass reveals its window; each one reveals a token at least, and what is
    taken back is made up for by then.
    """
    names = ("revealed", "observed", "end", "windows", "rounds", "remasks")
    revealed, observed, end, windows, rounds, remasks = (getattr(rows, n).cpu() for n in names)
    done, end = revealed - observed, end - observed
    passes = torch.zeros_like(end)
    while bool((open_ := done < end).any()):
        reach = done + windows.gather(1, done.unsqueeze(1)).squeeze(1)
        done, passes = torch.where(open_, reach, done), passes + open_.long()
    most = torch.where(rounds > 0, end + remasks, passes)
    return int(passes.min()), max(1, int(most.max()))


def _rounded_up(width: int, length: int) -> int:
    """The next of a few window sizes."""
    larger = next((w for w in WIDTHS if w >= width), -(-width // 8) * 8)
    return min(larger, length)
