"""One pass over all slots: the same draws as `sampling/`, on fixed shapes.

    take the slots' rows; one trunk pass; draft the window                 (S, W) places
    for round = 1..R: the head's verdict on the window, one redraw a row
    put the rows back; a finished row's slot takes the next one

Nothing here waits for the device, indexes by data or makes a shape from data. What is not to be
done for a row is masked out: a row's numbers depend on its own seed and request only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfspec.engine.head import Tracks, corrected, open_tracks, replace_token
from selfspec.engine.law import Law, draw_of, law_of
from selfspec.engine.state import Pool, Rows
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead
from selfspec.noise import Purpose, uniform
from selfspec.orders import Order, rearranged
from selfspec.verification import first_rejection, residual

__all__ = ["Step", "Variant"]


MOVES = ("tokens", "order", "revealed", "passes", "trunk_passes", "head_passes", "drafted",
         "accepted", "done")  # fmt: skip
"""The fields of a row that a pass may change."""


@dataclass(frozen=True)
class Variant:
    """What a step is made for; it serves every row that needs no more."""

    width: int = 1
    """W, at least the window of every row."""
    rounds: int = 0
    """R, at least the rounds of every row."""
    padded: bool = False
    """Whether a row has pads."""
    nucleus: bool = False
    """Whether a row has `top_p` below 1."""
    rule: Order | None = None
    """The order that is drawn anew before every pass, for the rows that ask for it."""

    @classmethod
    def of(cls, rows: Rows, rule: Order | None) -> "Variant":
        """What these rows need, whose order is re-chosen by `rule` or by none."""
        return cls(
            width=int(rows.windows.max()),
            rounds=int(rows.rounds.max()),
            padded=bool(rows.pad.any()),
            nucleus=bool((rows.top_p < 1).any()),
            rule=rule,
        )

    def agrees(self, other: "Variant") -> bool:
        """Whether one step can serve both."""
        return self.rule is other.rule or self.rule is None or other.rule is None

    def joined(self, other: "Variant") -> "Variant":
        """What serves both."""
        return Variant(
            max(self.width, other.width),
            max(self.rounds, other.rounds),
            self.padded or other.padded,
            self.nucleus or other.nucleus,
            other.rule if self.rule is None else self.rule,
        )

    @property
    def verifies(self) -> bool:
        """A window of one is decided by the tie, without a head pass."""
        return self.width > 1 and self.rounds > 0


class Drafts(NamedTuple):
    """What the trunk drafted, and the random numbers to judge it by."""

    places: Tensor
    """(S, W) of σ."""
    positions: Tensor
    """(S, W)."""
    inside: Tensor
    """(S, W) bool: the place is in the row's window."""
    law: Law
    tokens: Tensor
    """(S, W)."""
    top_p: Tensor
    """(S,)."""
    u_accept: Tensor
    """(R, S, W - 1)."""
    u_residual: Tensor
    """(R, S)."""


class Tally(NamedTuple):
    """What the rounds have decided."""

    tokens: Tensor
    """(S, W) drafted or redrawn."""
    decided: Tensor
    """(S,) first place that is not decided."""
    heads: Tensor
    """(S,) head passes."""
    rejections: Tensor
    """(S,)."""
    broken: Tensor
    """(S,) bool: something that was read is NaN."""


class Step:
    """A pass of one variant.

    Args:
        model: an `SSMD`.
        variant: what the rows need.
        early: stop when no row is open; asks the device, which on a CPU costs nothing.
        wrap: applied to each of the four functions that a pass consists of beside the trunk; the
            compiler, or nothing.
    """

    def __init__(
        self,
        model: SSMD,
        variant: Variant,
        early: bool = False,
        wrap: Callable[[Callable], Any] = lambda function: function,
    ):
        self.model, self.variant, self.early = model, variant, early
        self.take, self.draft = wrap(self._take), wrap(self._draft)
        self.judge, self.finish = wrap(self._judge), wrap(self._finish)

    @torch.no_grad()
    def __call__(self, pool: Pool) -> None:
        """One pass; updates the pool in place."""
        rows = self.take(pool)
        stop = rows.revealed + torch.where(rows.revealed < rows.end, rows.window, 0)
        hidden = self.model.encode(rows.tokens, rows.pad if self.variant.padded else None)
        drafts, tracks, tally = self.draft(rows, stop, hidden)
        for index in range(self.variant.rounds if tracks is not None else 0):
            may = (tally.decided < stop) & (rows.rounds > index)
            if self.early and not bool(may.any()):
                break
            given = (drafts.u_accept[index], drafts.u_residual[index], may)
            last = index + 1 == self.variant.rounds
            tracks, tally = self.judge(drafts, tracks, tally, stop, *given, last)
        self.finish(pool, rows, drafts, stop, tally)

    def _take(self, pool: Pool) -> Rows:
        rows, rule = pool.rows.rows(pool.slots), self.variant.rule
        if rule is not None:
            order = rearranged(
                rule, rows.order, rows.revealed, rows.end, rows.window, rows.seeds, rows.passes
            )
            rows.order = torch.where(rows.rechosen.unsqueeze(1), order, rows.order)
        return rows

    def _draft(
        self, rows: Rows, stop: Tensor, hidden: Tensor
    ) -> tuple[Drafts, Tracks | None, Tally]:
        """Laws and draws at the window's places, and what the head needs for its rounds."""
        width, length = self.variant.width, rows.order.shape[1]
        first = rows.revealed
        places = first.unsqueeze(1) + torch.arange(width, device=first.device)
        inside = places < stop.unsqueeze(1)
        positions = rows.order.gather(1, places.clamp(max=length - 1))
        law = self._law(self.model.draft(hidden, positions), rows.temperature, rows.top_p)
        tokens = law.draw(uniform(rows.seeds, Purpose.DRAFT, rows.passes, 0, places))
        numbers = self._numbers(rows, places)
        drafts = Drafts(places, positions, inside, law, tokens, rows.top_p, *numbers)
        verified = (rows.rounds > 0) & (first < stop)
        decided = torch.where(verified, first + 1, stop)  # the tie accepts the first place
        broken = (law.log_z.isnan() & inside).any(1)
        tally = Tally(tokens, decided, torch.zeros_like(first), torch.zeros_like(first), broken)
        if not self.variant.verifies:
            return drafts, None, tally
        embedded = self.model.trunk.embed(_written(rows.tokens, positions, tokens, inside))  # type: ignore[operator]
        tracks = open_tracks(self._head, hidden, embedded, rows.order, first, width)
        return drafts, tracks, tally

    def _judge(
        self,
        drafts: Drafts,
        tracks: Tracks,
        tally: Tally,
        stop: Tensor,
        u_accept: Tensor,
        u_residual: Tensor,
        may: Tensor,
        last: bool,
    ) -> tuple[Tracks, Tally]:
        """One round: verdict on the open places, one redraw a row.

        Nobody reads the tracks after the `last` one.
        """
        logits = self.model.trunk.unembed(corrected(self._head, tracks))  # type: ignore[operator]
        target = self._law(logits, drafts.law.temperature, drafts.top_p)
        judged, places = tally.tokens[:, 1:], drafts.places[:, 1:]
        open_ = drafts.inside[:, 1:] & (places >= tally.decided.unsqueeze(1)) & may.unsqueeze(1)
        logp = drafts.law.of(tally.tokens)[:, 1:]
        rejected, column = first_rejection(logp, target.of(judged), open_, u_accept)
        redrawn = draw_of(residual(drafts.law.at(column + 1), target.at(column)), u_residual)
        hit = rejected.unsqueeze(1) & (drafts.places == (drafts.places[:, :1] + 1
                                                         + column.unsqueeze(1)))  # fmt: skip
        behind = torch.where(rejected, drafts.places[:, 0] + column + 2, stop)
        tally = Tally(
            tokens=torch.where(hit, redrawn.unsqueeze(1), tally.tokens),
            decided=torch.where(may, behind, tally.decided),
            heads=tally.heads + may.long(),
            rejections=tally.rejections + rejected.long(),
            broken=tally.broken | (target.log_z.isnan() & open_).any(1),
        )
        if last:
            return tracks, tally
        embedded = self.model.trunk.embed(redrawn)  # type: ignore[operator]
        return replace_token(self._head, tracks, column + 1, embedded), tally

    def _finish(self, pool: Pool, rows: Rows, drafts: Drafts, stop: Tensor, tally: Tally) -> None:
        """Reveal what is decided, keep the account, hand finished rows' slots on."""
        began, revealed = drafts.places[:, 0], tally.decided
        kept = drafts.inside & (drafts.places < revealed.unsqueeze(1))
        active = (began < stop).long()
        # The mask stays where there were no numbers, for the host to notice.
        drawn = torch.where(tally.broken.unsqueeze(1), self.model.mask_id, tally.tokens)
        rows.tokens = _written(rows.tokens, drafts.positions, drawn, kept)
        rows.revealed = revealed
        rows.passes = rows.passes + active
        rows.trunk_passes = rows.passes
        rows.head_passes = rows.head_passes + tally.heads
        rows.drafted = rows.drafted + revealed - began
        rows.accepted = rows.accepted + revealed - began - tally.rejections
        finished = revealed >= rows.end
        rows.done = finished
        for name in MOVES:
            getattr(pool.rows, name)[pool.slots] = getattr(rows, name)
        pool.admit(finished)

    def _law(self, logits: Tensor, temperature: Tensor, top_p: Tensor) -> Law:
        return law_of(logits, temperature, top_p if self.variant.nucleus else None)

    def _numbers(self, rows: Rows, places: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform numbers for the verdicts, (R, S, W - 1), and for the redraws, (R, S)."""
        rounds, once = range(self.variant.rounds), torch.zeros_like(places[:, :1])
        if not self.variant.verifies:
            return once, once
        accept = [
            uniform(rows.seeds, Purpose.ACCEPT, rows.passes, r, places[:, 1:]) for r in rounds
        ]
        redraw = [uniform(rows.seeds, Purpose.RESIDUAL, rows.passes, r, once) for r in rounds]
        return torch.stack(accept), torch.stack(redraw).squeeze(2)

    @property
    def _head(self) -> CausalHead:
        assert self.model.head is not None
        return self.model.head


def _written(tokens: Tensor, positions: Tensor, drafted: Tensor, keep: Tensor) -> Tensor:
    """(S, L) `tokens` with those of `drafted` (S, W) that are kept at their positions."""
    length = tokens.shape[1]
    # What is not kept goes to a column of its own: it may repeat a position.
    wide = torch.nn.functional.pad(tokens, (0, 1))
    return wide.scatter(1, torch.where(keep, positions, length), drafted)[:, :length]
