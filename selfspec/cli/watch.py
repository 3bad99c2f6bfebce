"""Replays in the terminal how a text came about: drafted, verified, redrawn, revealed.

One frame for the drafts of a trunk pass, one for the verdict of each head pass, one for the token
that is redrawn after a rejection, and one for what is masked again after the pass. In a terminal a
frame takes the place of the one before; elsewhere frames follow one another, without colour.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from selfspec.interfaces import Pass, Samples
    from selfspec.model import SSMD


class State(Enum):
    """Of a position, with its colour as an ANSI code."""

    MASKED = "2"
    REVEALED = "0"
    DRAFTED = "33"
    ACCEPTED = "32"
    REJECTED = "31"
    REDRAWN = "36"
    REMASKED = "35"


@dataclass(frozen=True)
class Frame:
    """One picture: token and state of every position, and the counters."""

    cells: list[tuple[int, State]]
    trunk_passes: int
    head_passes: int
    round: int
    """Of the current pass; 0 before its first."""
    nfe: float


class Replay:
    """The frames of one row.

    Args:
        tokens: the finished row.
        passes: the row's trace.
        trunk_blocks, head_blocks: for the NFE counter.

    Attributes:
        states: what the legend explains: those that occur beside masked and revealed.
    """

    def __init__(self, tokens: list[int], passes: list[Pass], trunk_blocks: int, head_blocks: int):
        self.cells = [(token, State.REVEALED) for token in tokens]
        self.passes = passes
        self.blocks = trunk_blocks, head_blocks
        self.states = [State.DRAFTED]
        if any(done.rounds for done in passes):
            self.states += [State.ACCEPTED, State.REJECTED, State.REDRAWN]
        if any(done.remasked for done in passes):
            self.states.append(State.REMASKED)
        self.trunk_passes = self.head_passes = self.round = 0
        for done in passes:
            self._set(State.MASKED, *(position for position, _ in done.revealed))

    def frames(self) -> Iterator[Frame]:
        """All frames, the last with everything revealed."""
        for current in self.passes:
            self.trunk_passes, self.round = self.trunk_passes + 1, 0
            for position, token in zip(current.positions, current.drafted, strict=True):
                self.cells[position] = token, State.DRAFTED
            yield self._frame()
            yield from self._verify(current)
            self._set(State.MASKED, *current.positions)
            for position, token in current.revealed:
                self.cells[position] = token, State.REVEALED
            if current.remasked:
                self._set(State.REMASKED, *current.remasked)
                yield self._frame()
                self._set(State.MASKED, *current.remasked)
        yield self._frame()

    def _verify(self, current: Pass) -> Iterator[Frame]:
        for verdict in current.rounds:
            self.head_passes, self.round = self.head_passes + 1, self.round + 1
            self._set(State.ACCEPTED, *verdict.accepted)
            if verdict.rejected is None or verdict.redrawn is None:
                yield self._frame()
                continue
            self._set(State.REJECTED, verdict.rejected)
            yield self._frame()
            self.cells[verdict.rejected] = verdict.redrawn, State.REDRAWN
            yield self._frame()

    def _set(self, state: State, *positions: int) -> None:
        for position in positions:
            self.cells[position] = self.cells[position][0], state

    def _frame(self) -> Frame:
        trunk, head = self.blocks
        nfe = (self.trunk_passes * trunk + self.head_passes * head) / (trunk + head)
        return Frame(list(self.cells), self.trunk_passes, self.head_passes, self.round, nfe)


def render(
    frame: Frame,
    symbol: Callable[[int], str],
    width: int,
    colour: bool,
    states: Sequence[State],
) -> str:
    """A frame as text: lines of `width` columns, then the counters and a legend."""
    lines, room = [""], width
    for token, state in frame.cells:
        text = _ink(symbol(token), state)
        if len(text) > room < width:
            lines.append("")
            room = width
        lines[-1] += _paint(text, state, colour)
        room -= len(text)
    legend = " ".join(_paint(s.name.lower(), s, colour) for s in states)
    counters = (
        f"trunk passes {frame.trunk_passes:3}  round {frame.round:2}  "
        f"head passes {frame.head_passes:3}  NFE {frame.nfe:5.1f}"
    )
    return "\n".join([*lines, f"{counters}   {legend}"])


def play(model: SSMD, samples: Samples, stream: TextIO | None = None, delay: float = 0.12) -> None:
    """Show how the first sample came about, at `delay` seconds a frame in a terminal."""
    if samples.trace is None:
        raise ValueError("`samples` must have a trace to replay, got none")
    out: TextIO = sys.stdout if stream is None else stream
    live = out.isatty()
    replay = Replay(
        samples.tokens[0].tolist(), samples.trace[0], samples.trunk_blocks, samples.head_blocks
    )
    tokenizer = model.tokenizer
    symbol = (lambda token: tokenizer.decode([token])) if tokenizer else (lambda token: f"{token} ")
    width = min(shutil.get_terminal_size().columns, 96)
    height = 0  # of the frame before: subwords differ in width
    for frame in replay.frames():
        colour = live and "NO_COLOR" not in os.environ
        text = render(frame, symbol, width, colour, replay.states)
        if live:
            back = f"\033[{height}F\033[J" if height else ""
            height = text.count("\n") + 1
            out.write(back + text.replace("\n", "\033[K\n") + "\033[K\n")
            out.flush()
            time.sleep(delay)
        else:
            out.write(text + "\n\n")
    out.write("\n" if live else "")


def _ink(symbol: str, state: State) -> str:
    """What stands for a token in a line: a character, or a subword."""
    if state is State.MASKED:
        return "·"
    symbol = "".join(c if c.isprintable() else "⏎" if c == "\n" else "\ufffd" for c in symbol)
    if symbol.isspace() and state is not State.REVEALED:
        return "␣" * len(symbol)  # a space without ink would hide its state
    return symbol


def _paint(text: str, state: State, colour: bool) -> str:
    return f"\033[{state.value}m{text}\033[0m" if colour and state is not State.REVEALED else text
