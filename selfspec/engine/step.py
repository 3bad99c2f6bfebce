"""One pass over all slots: the same draws as `sampling/`, on fixed shapes.

    take the slots' rows; one trunk pass; σ anew where its rule asks for it
    draft the window                                                          (S, W) places
    M times: the head's verdict on the next block of it, at most a redraw a row   (S, K) places
    put the rows back, less what they take back; a finished row's slot takes the next one

A round ends at its first rejection, mostly long before the window does, and what was computed
behind is lost. Where unembedding is dear the window is therefore judged by blocks of K places: a
row without a rejection in its block goes on to the next one in the same round. Rounds of s_r places
need Σ ⌈s_r / K⌉ blocks, and as Σ s_r ≤ T = W - 1, no row needs more than

    M = ⌊(T + R (K - 1)) / K⌋,

which is R for K = T. All blocks together have about T + R K places instead of R T.

Nothing here waits for the device, indexes by data or makes a shape from data. What is not to be
done for a row is masked out: a row's numbers depend on its own seed and request only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfspec.engine.head import Tracks, corrected, every_rotation, open_tracks
from selfspec.engine.law import Law, law_of, log_probs_of, residual_draw
from selfspec.engine.state import Pool, Rows
from selfspec.model import SSMD
from selfspec.noise import Purpose, numbers, streams, uniform
from selfspec.orders import Order, rearranged
from selfspec.sampling.remasked import take_back
from selfspec.selection import DraftOrder
from selfspec.verification import first_rejection

__all__ = ["Step", "Variant"]


MOVES = ("revealed", "stop", "passes", "trunk_passes", "head_passes", "drafted", "accepted", "done")
"""The numbers of a row that a pass changes."""
OVERHEAD = {"cpu": 1 << 20, "cuda": 1 << 25}
"""What a block costs beside its logits, in logits; by estimates from timings of whole passes."""


@dataclass(frozen=True, eq=False)
class Variant:
    """What a step is made for; it serves every row that needs no more.

    Two with the same rule, the very same, and equal numbers are equal.
    """

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
    remasks: bool = False
    """Whether a row takes tokens back."""

    @property
    def _key(self) -> tuple[Any, ...]:
        """Rules need not be hashable, nor comparable."""
        return self.width, self.rounds, self.padded, self.nucleus, id(self.rule), self.remasks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Variant) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @classmethod
    def of(cls, rows: Rows, rule: Order | None) -> "Variant":
        """What these rows need, whose order is re-chosen by `rule` or by none."""
        return cls(
            width=int(rows.most.max()),
            rounds=int(rows.rounds.max()),
            padded=bool(rows.pad.any()),
            nucleus=bool((rows.top_p < 1).any()),
            rule=rule,
            remasks=bool((rows.eta > 0).any()),
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
            self.remasks or other.remasks,
        )

    @property
    def verifies(self) -> bool:
        """A window of one is decided by the tie, without a head pass."""
        return self.width > 1 and self.rounds > 0


class Drafts(NamedTuple):
    """What the trunk drafted."""

    places: Tensor
    """(S, W) of σ."""
    positions: Tensor
    """(S, W)."""
    inside: Tensor
    """(S, W) bool: the place is in the row's window."""
    stop: Tensor
    """(S,) first place behind the window."""
    law: Law
    logp: Tensor
    """(S, W) nats of what was drawn."""
    accept: Tensor
    """(S, R) streams of the numbers that accept it."""
    redraw: Tensor
    """(S, R) numbers that draw one of it anew."""


class Tally(NamedTuple):
    """What the rounds have decided."""

    tokens: Tensor
    """(S, W) drafted or redrawn."""
    decided: Tensor
    """(S,) first place that is not decided."""
    heads: Tensor
    """(S,) head passes: the rounds begun."""
    rejections: Tensor
    """(S,) the rounds ended by one."""
    broken: Tensor
    """(S,) bool: a target that was read is NaN."""


class Step:
    """A pass of one variant.

    Args:
        model: an `SSMD`.
        variant: what the rows need.
        early: stop when no row is open; asks the device, which on a CPU costs nothing.
        wrap: applied to each of the functions that a pass consists of beside the trunk; the
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
        self.take, self.arrange = wrap(self._take), wrap(self._arrange)
        self.draft = wrap(self._draft)
        self.judge, self.finish = wrap(self._judge), wrap(self._finish)
        self.turns = every_rotation(model) if variant.verifies else None

    @torch.no_grad()
    def __call__(self, pool: Pool) -> None:
        """One pass; updates the pool in place."""
        rows = self.take(pool)
        hidden = self.model.encode(rows.tokens, rows.pad if self.variant.padded else None)
        if self.variant.rule is not None:
            rows = self.arrange(rows, hidden)
        drafts, tracks, tally = self.draft(rows, hidden)
        block, blocks = self._blocks(pool)
        for index in range(blocks):
            if self.early and not bool(_open(rows, drafts, tally).any()):
                break
            tally = self.judge(rows, drafts, tracks, tally, block, index > 0)
        self.finish(pool, rows, drafts, tally)

    def _blocks(self, pool: Pool) -> tuple[int, int]:
        """K and M."""
        if not self.variant.verifies:
            return 0, 0
        logits = len(pool.slots) * self.model.vocab_size
        overhead = OVERHEAD.get(pool.slots.device.type, OVERHEAD["cuda"])
        return cheapest_blocks(self.variant.width - 1, self.variant.rounds, logits, overhead)

    def _take(self, pool: Pool) -> Rows:
        return pool.rows.rows(pool.slots)

    def _arrange(self, rows: Rows, hidden: Tensor) -> Rows:
        """The rows that ask for it with their masked places in a new order."""
        rule = self.variant.rule
        assert rule is not None
        if isinstance(rule, DraftOrder):
            nucleus = rows.top_p if self.variant.nucleus else None
            rule = rule.reading(log_probs_of(self.model.draft(hidden), rows.temperature, nucleus))
        order = rearranged(
            rule, rows.order, rows.revealed, rows.end, rows.window, rows.seeds, rows.passes
        )
        return replace(rows, order=torch.where(rows.rechosen.unsqueeze(1), order, rows.order))

    def _draft(self, rows: Rows, hidden: Tensor) -> tuple[Drafts, Tracks | None, Tally]:
        """Laws and draws at the window's places, and what the head needs for its rounds."""
        width, length = self.variant.width, rows.order.shape[1]
        first = rows.revealed
        stop = torch.where(first < rows.end, rows.stop, first)
        places = first.unsqueeze(1) + torch.arange(width, device=first.device)
        inside = places < stop.unsqueeze(1)
        positions = rows.order.gather(1, places.clamp(max=length - 1))
        law = self._law(self.model.draft(hidden, positions), rows.temperature, rows.top_p)
        tokens = law.draw(uniform(rows.seeds, Purpose.DRAFT, rows.passes, 0, places))
        accept, redraw = (
            streams(rows.seeds, purpose, rows.passes, self.variant.rounds)
            for purpose in (Purpose.ACCEPT, Purpose.RESIDUAL)
        )
        redraw = numbers(redraw, 0)
        drafts = Drafts(places, positions, inside, stop, law, law.of(tokens), accept, redraw)
        verified = (rows.rounds > 0) & (first < stop)
        decided = torch.where(verified, first + 1, stop)  # the tie accepts the first place
        never = decided < 0  # constants would be kernels of their own
        tally = Tally(tokens, decided, never.long(), never.long(), never)
        if self.turns is None:
            return drafts, None, tally
        column = torch.arange(length, device=first.device) - first.unsqueeze(1)
        drafted = (column >= 0) & (column < width)
        known = torch.where(drafted, tokens.gather(1, column.clamp(0, width - 1)),
                            rows.tokens.gather(1, rows.order))  # fmt: skip
        tracks = open_tracks(self.model, hidden, known, rows.order, self.turns)
        return drafts, tracks, tally

    def _judge(
        self, rows: Rows, drafts: Drafts, tracks: Tracks, tally: Tally, block: int, later: bool
    ) -> Tally:
        """Verdict on the next `block` of places of the open rows, one redraw a row."""
        open_row, round_ = _open(rows, drafts, tally), tally.rejections
        places = tally.decided.unsqueeze(1) + torch.arange(block, device=round_.device)
        open_ = open_row.unsqueeze(1) & (places < drafts.stop.unsqueeze(1))
        column, last = places - drafts.places[:, :1], self.variant.width - 1
        held = tally.tokens.gather(1, (column - 1).clamp(0, last))
        states = corrected(self.model, tracks, held, places, renew=later)
        logits = self.model.trunk.unembed(states)  # type: ignore[operator]
        target = self._law(logits, rows.temperature, rows.top_p)
        column = column.clamp(max=last)
        judged, logp = tally.tokens.gather(1, column), drafts.logp.gather(1, column)
        this = round_.clamp(max=self.variant.rounds - 1).unsqueeze(1)
        u_accept = numbers(drafts.accept.gather(1, this), places)
        rejected, k = first_rejection(logp, target.of(judged), open_, u_accept)
        place = tally.decided + k
        at = (place - drafts.places[:, 0]).clamp(max=last)
        u_redraw = drafts.redraw.gather(1, this)
        redrawn = residual_draw(drafts.law.at(at), target.at(k), u_redraw)
        hit = rejected.unsqueeze(1) & (drafts.places == place.unsqueeze(1))
        behind = torch.where(rejected, place + 1, (tally.decided + block).minimum(drafts.stop))
        return Tally(
            tokens=torch.where(hit, redrawn, tally.tokens),
            decided=torch.where(open_row, behind, tally.decided),
            heads=torch.where(open_row, round_ + 1, tally.heads),
            rejections=round_ + rejected.long(),
            broken=tally.broken | (target.log_z.isnan() & open_).any(1),
        )

    def _finish(self, pool: Pool, rows: Rows, drafts: Drafts, tally: Tally) -> None:
        """Reveal what is decided, keep the account, hand finished rows' slots on."""
        began, revealed = drafts.places[:, 0], tally.decided
        active = (began < drafts.stop).long()
        # The mask stays where there were no numbers, for the host to notice.
        broken = tally.broken | (drafts.law.log_z.isnan() & drafts.inside).any(1)
        drawn = torch.where(broken.unsqueeze(1), self.model.mask_id, tally.tokens)
        # Behind the last place of σ all repeat what is done there.
        places = drafts.places.clamp(max=rows.order.shape[1] - 1)
        drawn = drawn.gather(1, (places - began.unsqueeze(1)).clamp(min=0))
        kept = (places >= began.unsqueeze(1)) & (places < revealed.unsqueeze(1))
        now = torch.where(kept, drawn, rows.tokens.gather(1, drafts.positions))
        pool.rows.tokens[pool.slots.unsqueeze(1), drafts.positions] = now
        rows.revealed = revealed
        self._move_on(pool, rows)
        if self.variant.rule is not None:
            pool.rows.order[pool.slots] = rows.order
        rows.passes = rows.passes + active
        rows.trunk_passes = rows.passes
        rows.head_passes = rows.head_passes + tally.heads
        rows.drafted = rows.drafted + revealed - began
        rows.accepted = rows.accepted + revealed - began - tally.rejections
        finished = rows.revealed >= rows.end
        rows.done = finished
        for name in MOVES:
            getattr(pool.rows, name)[pool.slots] = getattr(rows, name)
        pool.admit(finished)

    def _move_on(self, pool: Pool, rows: Rows) -> None:
        """Where the next window ends, once tokens are taken back from the rows that do so."""
        if self.variant.remasks:
            gone = take_back(rows, rows.eta, rows.remasks)
            tokens = pool.rows.tokens[pool.slots].masked_fill(gone, self.model.mask_id)
            pool.rows.tokens[pool.slots] = tokens
        else:
            generated = (rows.revealed - rows.observed).unsqueeze(1)
            rows.stop = rows.revealed + rows.windows.gather(1, generated).squeeze(1)

    def _law(self, logits: Tensor, temperature: Tensor, top_p: Tensor) -> Law:
        return law_of(logits, temperature, top_p if self.variant.nucleus else None)


def _open(rows: Rows, drafts: Drafts, tally: Tally) -> Tensor:
    """(S,) bool: the row has places to judge, and rounds left."""
    return (tally.decided < drafts.stop) & (tally.rejections < rows.rounds)


@cache
def cheapest_blocks(places: int, rounds: int, logits: int, overhead: int) -> tuple[int, int]:
    """K and M for T `places`, one of which has so many `logits` in all slots together.

    >>> cheapest_blocks(39, 4, 64 * 27, 1 << 25), cheapest_blocks(135, 4, 64 * 50257, 1 << 25)
    ((36, 4), (22, 9))
    """
    counts = {k: (places + rounds * (k - 1)) // k for k in range(places, 0, -1)}
    return min(counts.items(), key=lambda item: item[1] * (overhead + item[0] * logits))
