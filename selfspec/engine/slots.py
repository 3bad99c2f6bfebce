"""The engine's host side: requests in, finished rows out, no waiting in between.

    submit      rows are checked on the host, laid out on the device beside the passes, and queued;
                slots take them as they fall free
    results     passes are launched ahead of the device; every few of them the flags of finished
                rows are copied back beside the work, and read when they have arrived

The host therefore learns late that a row is finished; the device has already given its slot away.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.engine.finished import Finished, as_samples, packed, unpacked
from selfspec.engine.graphs import Steps, copied
from selfspec.engine.state import Pool, Rows, prepare, rechosen_rule, unsupported
from selfspec.engine.step import Variant
from selfspec.engine.transfer import Sent, on, to_device, to_host
from selfspec.inputs import check_model, checked_rows
from selfspec.interfaces import Samples
from selfspec.model import SSMD
from selfspec.orders import same_rule
from selfspec.progress import tracked
from selfspec.sampling import Sampler

__all__ = ["Engine"]

T = TypeVar("T")
AHEAD = 4
"""Passes between two looks at what is finished, while there is more to do."""
PORTION = 64
"""Rows that are laid out at once, or as many as there are slots."""
WIDTHS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128)
END = object()
"""Of what submits further rows."""
log = logging.getLogger("selfspec.engine")


class Poll(NamedTuple):
    """Flags of the pool's finished rows."""

    turn: int
    done: Sent


@dataclass
class Waiting:
    """Rows that are not in the pool yet."""

    rows: Rows
    numbers: range
    """Of the requests."""
    variant: Variant

    def part(self, which: slice) -> "Waiting":
        """Some of them."""
        return Waiting(self.rows.rows(which), self.numbers[which], self.variant)  # type: ignore[arg-type]


class Engine:
    """Draws the same samples as the loop of `sampling/`, faster.

    Args:
        model: an `SSMD`; on CUDA it is copied, so later changes of its weights have no effect.
        slots: S, rows that a pass works on.
        length: L, the longest row; the model's by default. Shorter rows are padded.
        waiting: requests on the device beside those in slots; four a slot by default.
        bfloat16: matrix products in bfloat16, as in training; by default on CUDA only.
        compile: compile the passes, which takes a minute or two before the first.
        graphs: record passes as CUDA graphs; by default on CUDA.
        variant: run every pass as this one, instead of as what the rows in hand need. A row is
            then the same bit for bit whatever its neighbours are.

    Raises:
        ValueError: `slots`, `length` or `waiting` out of range.
    """

    def __init__(
        self,
        model: SSMD,
        slots: int = 64,
        length: int | None = None,
        waiting: int | None = None,
        bfloat16: bool | None = None,
        compile: bool = False,
        graphs: bool | None = None,
        variant: Variant | None = None,
    ):
        check_model(model)
        length = model.length if length is None else length
        waiting = 4 * slots if waiting is None else waiting
        for name, value in {"slots": slots, "waiting": waiting}.items():
            whole(name, value, least=1)
        if not 1 <= length <= model.length:
            raise ValueError(f"`length` must be in 1..{model.length}, the model's, got {length}")
        self.model, self.length, self.fixed = model, length, variant
        self.device = model.device
        cuda = self.device.type == "cuda"
        bfloat16 = cuda if bfloat16 is None else bfloat16
        self.size = slots + waiting
        self.stream = torch.cuda.Stream(self.device) if cuda else None
        """Of the passes."""
        self.aside = torch.cuda.Stream(self.device, priority=-1) if cuda else None
        """Where rows are laid out: what the host asks there does not wait for the passes."""
        # Its memory goes to nobody before the last pass has run, and any caller may use it.
        with on(self.stream), torch.inference_mode(False):
            self.pool = Pool(self.size, slots, length, self.device)
        # Graphs know weights by their place in memory, which the caller's may leave.
        used = copied(model, bfloat16) if cuda or bfloat16 or compile else model
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        graphs = cuda if graphs is None else graphs
        self.steps = Steps(used, self.pool, compile, graphs and cuda, bfloat16)
        self._waiting: deque[Waiting] = deque()
        self._cancelled: set[int] = set()
        self._polls: deque[Poll] = deque()
        self._parcels: deque[Sent] = deque()
        """Finished rows, packed."""
        self._rules: list[Any] = []
        self._more: Iterator[Any] | None = None
        """What submits further rows, if there are any."""
        self._next = 0
        with on(self.stream):
            self._clear()

    def _clear(self) -> None:
        """Nothing is on the device."""
        self._free = list(range(self.size))
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
    def waiting(self) -> int:
        """Requests that are not in the pool yet."""
        return sum(len(batch.numbers) for batch in self._waiting)

    @property
    def idle(self) -> bool:
        """Whether no request is in hand."""
        return not (self._waiting or self._held or self._parcels or self._more)

    def submit(
        self, sampler: Sampler, tokens: Tensor, seeds: Tensor | int = 0, pad: Tensor | None = None
    ) -> range:
        """Queue rows; arguments as in `Sampler.sample`.

        Returns:
            The numbers of the requests, one a row.

        Raises:
            ValueError: what `Sampler.sample` raises, a row longer than the engine's, a sampler of
                another model or one that the engine cannot run. What was queued before stays.
        """
        near = self._checked(sampler, tokens, seeds, pad)
        self._follow_caller()
        return self._queue(sampler, *near)

    def _checked(
        self, sampler: Sampler, tokens: Tensor, seeds: Tensor | int, pad: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, seeds and pads that the engine can run, on the host."""
        if sampler.model is not self.model:
            raise ValueError("`sampler` must have the engine's model, got another")
        if reason := unsupported(sampler):
            raise ValueError(f"`sampler` must be one that the engine runs, got another: {reason}")
        if tokens.dim() == 2 and tokens.shape[1] > self.length:
            raise ValueError(f"`tokens` may be at most {self.length} long, got {tokens.shape[1]}")
        return checked_rows(self.model, tokens.cpu(), seeds, pad)

    def _queue(self, sampler: Sampler, tokens: Tensor, seeds: Tensor, pad: Tensor) -> range:
        """Queue rows that were checked."""
        numbers = range(self._next, self._next + len(tokens))
        rows, variant = self._spared(self._laid_out, numbers, sampler, tokens, seeds, pad)
        if self.fixed is not None and variant.joined(self.fixed) != self.fixed:
            raise ValueError(f"`sampler` must need no more than {self.fixed}, got {variant}")
        if self.stream is not None:
            for f in fields(rows):  # their memory is not to be used again before it is read
                getattr(rows, f.name).record_stream(self.stream)
        self._next = numbers.stop
        self._waiting.append(Waiting(rows, numbers, variant))
        return numbers

    def _laid_out(
        self, numbers: range, sampler: Sampler, tokens: Tensor, seeds: Tensor, pad: Tensor
    ) -> tuple[Rows, Variant]:
        """Rows on the device, and what they need."""
        with on(self.aside):
            tokens, seeds, pad = (to_device(x, self.device) for x in (tokens, seeds, pad))
            rows = prepare(sampler, tokens, seeds, pad, self.length)
            rows.index = torch.arange(numbers.start, numbers.stop, device=self.device)
            return rows, Variant.of(rows, self._known(rechosen_rule(sampler)))  # waits for the rows

    def _follow_caller(self) -> None:
        """What a sampler holds may still be on its way, on the stream of the caller."""
        if self.aside is not None:
            self.aside.wait_stream(torch.cuda.current_stream(self.device))

    def cancel(self, number: int) -> None:
        """Give a request up, wherever it is; it has no result.

        Raises:
            ValueError: nothing of this `number` was submitted.
        """
        if whole("number", number, least=0) >= self._next:
            raise ValueError(f"`number` must be one of {self._next} requests, got {number}")
        self._cancelled.add(number)
        for row, (held, _) in self._held.items():
            if held == number:
                with on(self.stream):
                    self.pool.rows.end[row : row + 1] = self.pool.rows.revealed[row : row + 1]

    def results(self, more: Iterator[Any] | None = None) -> Iterator[Finished]:
        """Finished rows as they come.

        What is submitted meanwhile is run too. Ends when nothing is left.

        Args:
            more: submits further rows whenever it is asked for its next item; it is asked while
                the device has work, as soon as fewer rows wait than there are slots.
        """
        self._more = more
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        while not self.idle:
            with on(self.stream):
                self._upload()
                launched = self._advance()
            self._ask_for_more()  # on the stream of the caller, which `submit` follows
            with on(self.stream):
                self._look(wait=not launched)
            while self._parcels and self._parcels[0].has_come:
                rows = unpacked(self._parcels.popleft().tensor)
                kept = torch.tensor([i not in self._cancelled for i in rows.index.tolist()])
                self._cancelled.difference_update(rows.index.tolist())
                if bool(kept.any()):
                    yield rows.rows(kept)

    def sample(
        self,
        sampler: Sampler,
        tokens: Tensor,
        seeds: Tensor | int = 0,
        pad: Tensor | None = None,
        progress: bool = False,
    ) -> Samples:
        """Fill every masked position: arguments, result and errors of `Sampler.sample`.

        With the same seed a row is the one that `sampler` draws, up to rounding.

        Raises:
            ValueError: requests of somebody else are in hand.
        """
        if not self.idle:
            raise ValueError("`sample` must find the engine idle, got requests in hand")
        near = self._checked(sampler, tokens, seeds, pad)
        at_once = max(PORTION, self.slots) if self.fixed is None else len(tokens)
        portions = zip(*(x.split(at_once) for x in near), strict=True)
        submitted = (self._queue(sampler, *rows) for rows in portions)
        self._follow_caller()
        found = []
        try:
            next(submitted)
            more = submitted if len(tokens) > at_once else None
            with tracked(total=len(tokens), unit="row", progress=progress, leave=False) as bar:
                for rows in self.results(more):
                    found.append(rows)
                    bar.update(len(rows.index))
            return self._spared(as_samples, self.model, found, tokens, pad)
        except BaseException:  # also Ctrl-C: nobody will fetch what is in hand
            self.reset()
            raise

    def reset(self) -> None:
        """Give up all requests, wherever they are; they have no results."""
        if self.stream is not None:
            self.stream.synchronize()
        for held in (self._waiting, self._polls, self._parcels, self._cancelled):
            held.clear()
        self._more = None
        with on(self.stream):
            self._clear()

    def _ask_for_more(self) -> None:
        if self._more is not None and self.waiting < self.slots and next(self._more, END) is END:
            self._more = None

    def _upload(self) -> None:
        """Put waiting rows where there is room."""
        if not self._held and not self._polls:
            self._clear()
        while self._waiting and self._free:
            batch = self._waiting.popleft()
            if self._held and not self._variant.agrees(batch.variant):
                self._waiting.appendleft(batch)
                return  # a second rule for σ waits until the rows of the first are finished
            count = min(len(self._free), len(batch.numbers))
            if count < len(batch.numbers):
                self._waiting.appendleft(batch.part(slice(count, None)))
            self._variant = batch.variant.joined(self._variant) if self._held else batch.variant
            self._put(batch.part(slice(None, count)))

    def _put(self, batch: Waiting) -> None:
        count = len(batch.numbers)
        whole = not self._held and not self._more and count <= self.slots
        self._least, self._most = pass_bounds(batch.rows) if whole else (0, math.inf)
        at, self._free = self._free[:count], self._free[count:]
        for row, number in zip(at, batch.numbers, strict=True):
            self._held[row] = (number, self._turn)
        places = [(self._entered + k) % self.size for k in range(count)]
        self._entered += count
        index, places = (to_device(torch.tensor(x), self.device) for x in (at, places))
        self.pool.upload(index, batch.rows, places)
        for number in self._cancelled.intersection(batch.numbers):
            self.cancel(number)

    def _advance(self) -> bool:
        """Launch passes, as many as are surely needed, and ask which rows are finished then."""
        if not self._held or (self._most <= 0 and self._polls):
            return False
        behind = bool(self._waiting or self._more) or len(self._held) > self.slots
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

    def _present(self) -> Variant:
        """The variant of the coming pass: windows in a few sizes where it is kept."""
        if self.fixed is not None:
            return self.fixed
        if self.device.type == "cuda" or self.steps.compile:
            return replace(self._variant, width=_rounded_up(self._variant.width, self.length))
        return replace(self._variant, width=self.pool.shrink())

    def _look(self, wait: bool) -> None:
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
            self._parcels.append(self._spared(self._parcel, ready))
            for row in ready:
                del self._held[row]
            self._free += ready
        if not self._held:
            for parcel in self._parcels:
                parcel.wait()

    def _parcel(self, ready: list[int]) -> Sent:
        """Pool rows, sent for."""
        at = to_device(torch.tensor(ready), self.device)
        return to_host(packed(self.pool.rows, at))

    def _spared(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` gives, beside the passes; these leave it memory as long as it has too little.

        It must be such that it can be tried again.
        """
        while True:
            try:
                return work(*given)
            except torch.OutOfMemoryError as error:
                with on(self.stream):
                    self._halve(error)

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

    def _known(self, rule: Any) -> Any:
        """The first rule seen that equals this one, so that equal rules share a step."""
        for known in self._rules:
            if same_rule(known, rule):
                return known
        self._rules.append(rule)
        return rule


def pass_bounds(rows: Rows) -> tuple[int, float]:
    """The fewest and the most passes after which some, and all, of these rows are finished.

    If all drafts stand, a pass reveals its window; each one reveals a token at least.
    """
    names = ("revealed", "observed", "end", "windows", "rounds")
    revealed, observed, end, windows, rounds = (getattr(rows, name).cpu() for name in names)
    done, end = revealed - observed, end - observed
    passes = torch.zeros_like(end)
    while bool((open_ := done < end).any()):
        reach = done + windows.gather(1, done.unsqueeze(1)).squeeze(1)
        done, passes = torch.where(open_, reach, done), passes + open_.long()
    most = torch.where(rounds > 0, end, passes)
    return int(passes.min()), max(1, int(most.max()))


def _rounded_up(width: int, length: int) -> int:
    """The next of a few window sizes."""
    larger = next((w for w in WIDTHS if w >= width), -(-width // 8) * 8)
    return min(larger, length)
