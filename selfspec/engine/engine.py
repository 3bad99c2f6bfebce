"""The engine's host side: requests in, finished rows out, no waiting in between.

    submit      rows are checked on the host, laid out on the device beside the passes, and queued
                (`intake.py`); slots take them as they fall free
    results     passes are launched ahead of the device; every few of them the flags of finished
                rows are copied back beside the work, and read when they have arrived (`flight.py`)

The host therefore learns late that a row is finished; the device has already given its slot away.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.engine.finished import Finished, as_samples
from selfspec.engine.flight import Flight
from selfspec.engine.graphs import Steps, copied
from selfspec.engine.intake import Intake
from selfspec.engine.state import Pool
from selfspec.engine.step import Variant
from selfspec.engine.transfer import on
from selfspec.inputs import check_model
from selfspec.interfaces import Samples
from selfspec.model import SSMD
from selfspec.progress import tracked
from selfspec.sampling import Sampler

__all__ = ["Engine"]

PORTION = 64
"""Rows that are laid out at once, or as many as there are slots."""
END = object()
"""Of what submits further rows."""


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
        graphs = cuda if graphs is None else graphs
        self.stream = torch.cuda.Stream(self.device) if cuda else None
        """Of the passes."""
        # Its memory goes to nobody before the last pass has run, and any caller may use it.
        with on(self.stream), torch.inference_mode(False):
            self.pool = Pool(slots + waiting, slots, length, self.device)
        # Graphs know weights by their place in memory, which the caller's may leave.
        used = copied(model, bfloat16) if cuda or bfloat16 or compile else model
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        self.steps = Steps(used, self.pool, compile, graphs and cuda, bfloat16)
        self._intake = Intake(model, length, variant, self.stream)
        self._more: Iterator[Any] | None = None
        """What submits further rows, if there are any."""
        with on(self.stream):
            self._flight = Flight(self.pool, self.steps, variant, self.stream)

    @property
    def slots(self) -> int:
        """S; half of what was asked for after the device had too little memory."""
        return self._flight.slots

    @property
    def waiting(self) -> int:
        """Requests that are not in the pool yet."""
        return len(self._intake)

    @property
    def idle(self) -> bool:
        """Whether no request is in hand."""
        return self._flight.idle and not (self._intake or self._more)

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
        near = self._intake.checked(sampler, tokens, seeds, pad)
        self._intake.follow_caller()
        return self._flight.spared(self._intake.add, sampler, *near)

    def cancel(self, number: int) -> None:
        """Give a request up, wherever it is; it has no result.

        Raises:
            ValueError: nothing of this `number` was submitted.
        """
        if whole("number", number, least=0) >= self._intake.numbered:
            raise ValueError(
                f"`number` must be one of {self._intake.numbered} requests, got {number}"
            )
        self._flight.cancel(number)

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
                launched = self._flight.launch(more=bool(self._intake or self._more))
            self._ask_for_more()  # on the stream of the caller, which `submit` follows
            with on(self.stream):
                self._flight.look(wait=not launched)
            yield from self._flight.arrived()

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
        intake, flight = self._intake, self._flight
        near = intake.checked(sampler, tokens, seeds, pad)
        at_once = max(PORTION, self.slots) if self.fixed is None else len(tokens)
        portions = zip(*(x.split(at_once) for x in near), strict=True)
        submitted = (flight.spared(intake.add, sampler, *rows) for rows in portions)
        intake.follow_caller()
        found = []
        try:
            next(submitted)
            more = submitted if len(tokens) > at_once else None
            with tracked(total=len(tokens), unit="row", progress=progress, leave=False) as bar:
                for rows in self.results(more):
                    found.append(rows)
                    bar.update(len(rows.index))
            return flight.spared(as_samples, self.model, found, tokens, pad)
        except BaseException:  # also Ctrl-C: nobody will fetch what is in hand
            self.reset()
            raise

    def reset(self) -> None:
        """Give up all requests, wherever they are; they have no results."""
        self._flight.reset()
        self._intake.queue.clear()
        self._more = None

    def _upload(self) -> None:
        """Put waiting rows where there is room."""
        intake, flight = self._intake, self._flight
        while intake and flight.room:
            if not flight.takes(intake.queue[0].variant):
                return  # a second rule for σ waits until the rows of the first are finished
            flight.put(intake.take(flight.room), last=not self._more)

    def _ask_for_more(self) -> None:
        if self._more is not None and self.waiting < self.slots and next(self._more, END) is END:
            self._more = None
