"""Requests on their way in: checked on the host, laid out on the device, and queued there.

Rows are laid out beside the passes, on a stream of their own: what a call needs is asked of the
device, and the answer is not to wait for the passes.
"""

from collections import deque
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from selfspec.engine.state import Rows, prepare, rechosen_rule, unsupported
from selfspec.engine.step import Variant
from selfspec.engine.transfer import on, to_device
from selfspec.inputs import checked_rows
from selfspec.model import SSMD
from selfspec.orders import same_rule
from selfspec.sampling import Sampler

__all__ = ["Intake", "Waiting"]


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


class Intake:
    """The queue of what was submitted and is not in the pool yet; its length is that in requests.

    Args:
        model: of every sampler.
        length: L, to which rows are padded.
        fixed: the variant of every pass; None where a pass is what its rows need.
        stream: of the passes, which read the rows.
    """

    def __init__(
        self,
        model: SSMD,
        length: int,
        fixed: Variant | None,
        stream: torch.cuda.Stream | None,
    ):
        self.model, self.length, self.fixed, self.stream = model, length, fixed, stream
        self.device = model.device
        self.aside = None if stream is None else torch.cuda.Stream(self.device, priority=-1)
        """Where rows are laid out: what the host asks there does not wait for the passes."""
        self.queue: deque[Waiting] = deque()
        self.numbered = 0
        """Requests so far, also those that have left."""
        self._rules: list[Any] = []

    def __len__(self) -> int:
        return sum(len(batch.numbers) for batch in self.queue)

    def checked(
        self, sampler: Sampler, tokens: Tensor, seeds: Tensor | int, pad: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, seeds and pads that the engine can run, on the host.

        Raises:
            ValueError: as `Engine.submit`.
        """
        if sampler.model is not self.model:
            raise ValueError("`sampler` must have the engine's model, got another")
        if reason := unsupported(sampler):
            raise ValueError(f"`sampler` must be one that the engine runs, got another: {reason}")
        if tokens.dim() == 2 and tokens.shape[1] > self.length:
            raise ValueError(f"`tokens` may be at most {self.length} long, got {tokens.shape[1]}")
        return checked_rows(self.model, tokens.cpu(), seeds, pad)

    def follow_caller(self) -> None:
        """What a sampler holds may still be on its way, on the stream of the caller."""
        if self.aside is not None:
            self.aside.wait_stream(torch.cuda.current_stream(self.device))

    def add(self, sampler: Sampler, tokens: Tensor, seeds: Tensor, pad: Tensor) -> range:
        """Queue rows that were checked; if it fails, nothing is queued.

        Returns:
            The numbers of the requests.
        """
        numbers = range(self.numbered, self.numbered + len(tokens))
        rows, variant = self._laid_out(numbers, sampler, tokens, seeds, pad)
        if self.fixed is not None and variant.joined(self.fixed) != self.fixed:
            raise ValueError(f"`sampler` must need no more than {self.fixed}, got {variant}")
        if self.stream is not None:
            for f in fields(rows):  # their memory is not to be used again before it is read
                getattr(rows, f.name).record_stream(self.stream)
        self.numbered = numbers.stop
        self.queue.append(Waiting(rows, numbers, variant))
        return numbers

    def take(self, most: int) -> Waiting:
        """The first rows of the queue, of one call and at most so many; they leave it."""
        batch = self.queue.popleft()
        if most < len(batch.numbers):
            self.queue.appendleft(batch.part(slice(most, None)))
        return batch.part(slice(None, most))

    def _laid_out(
        self, numbers: range, sampler: Sampler, tokens: Tensor, seeds: Tensor, pad: Tensor
    ) -> tuple[Rows, Variant]:
        """Rows on the device, and what they need."""
        with on(self.aside):
            tokens, seeds, pad = (to_device(x, self.device) for x in (tokens, seeds, pad))
            rows = prepare(sampler, tokens, seeds, pad, self.length)
            rows.index = torch.arange(numbers.start, numbers.stop, device=self.device)
            return rows, Variant.of(rows, self._known(rechosen_rule(sampler)))  # waits for the rows

    def _known(self, rule: Any) -> Any:
        """The first rule seen that equals this one, so that equal rules share a step."""
        for known in self._rules:
            if same_rule(known, rule):
                return known
        self._rules.append(rule)
        return rule
