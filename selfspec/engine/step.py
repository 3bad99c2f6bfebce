"""One pass over all slots: the same draws as `sampling/`, on fixed shapes.

    take the slots' rows; one trunk pass; σ anew where its rule asks for it
    draft the window                                                          (S, W) places
    M times: the head's verdict on the next block of it, at most a redraw a row   (S, K) places
    put the rows back; a finished row's slot takes the next one

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

from selfspec.engine.head import Tracks, corrected, open_tracks, replace_token
from selfspec.engine.law import Law, draw_of, law_of, log_probs_of
from selfspec.engine.state import Pool, Rows
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead
from selfspec.noise import Purpose, uniform
from selfspec.ops import take
from selfspec.orders import Order, rearranged
from selfspec.selection import DraftOrder
from selfspec.verification import first_rejection, residual

__all__ = ["Step", "Variant"]


MOVES = ("tokens", "order", "revealed", "passes", "trunk_passes", "head_passes", "drafted",
         "accepted", "done")  # fmt: skip
"""The fields of a row that a pass may change."""
OVERHEAD = {"cpu": 1 << 20, "cuda": 1 << 25}
"""What a block costs beside its logits, in logits; by estimates from timings of whole passes."""


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
    tokens: Tensor
    """(S, W)."""
    logp: Tensor
    """(S, W) nats of the tokens."""


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
    """(S,) bool: something that was read is NaN."""


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
            tally = self.judge(rows, drafts, tracks, tally, block, index + 1 == blocks)
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
        stop = first + torch.where(first < rows.end, rows.window, 0)
        places = first.unsqueeze(1) + torch.arange(width, device=first.device)
        inside = places < stop.unsqueeze(1)
        positions = rows.order.gather(1, places.clamp(max=length - 1))
        law = self._law(self.model.draft(hidden, positions), rows.temperature, rows.top_p)
        tokens = law.draw(uniform(rows.seeds, Purpose.DRAFT, rows.passes, 0, places))
        drafts = Drafts(places, positions, inside, stop, law, tokens, law.of(tokens))
        verified = (rows.rounds > 0) & (first < stop)
        decided = torch.where(verified, first + 1, stop)  # the tie accepts the first place
        broken = (law.log_z.isnan() & inside).any(1)
        tally = Tally(tokens, decided, torch.zeros_like(first), torch.zeros_like(first), broken)
        if not self.variant.verifies:
            return drafts, None, tally
        embedded = self.model.trunk.embed(_written(rows.tokens, positions, tokens, inside))  # type: ignore[operator]
        tracks = open_tracks(self._head, hidden, embedded, rows.order)
        return drafts, tracks, tally

    def _judge(
        self, rows: Rows, drafts: Drafts, tracks: Tracks, tally: Tally, block: int, last: bool
    ) -> Tally:
        """Verdict on the next `block` of places of the open rows, one redraw a row.

        Nobody reads the tracks after the `last` one.
        """
        open_row, round_ = _open(rows, drafts, tally), tally.rejections
        places = tally.decided.unsqueeze(1) + torch.arange(block, device=round_.device)
        open_ = open_row.unsqueeze(1) & (places < drafts.stop.unsqueeze(1))
        logits = self.model.trunk.unembed(corrected(self._head, tracks, places))  # type: ignore[operator]
        target = self._law(logits, rows.temperature, rows.top_p)
        column = (places - drafts.places[:, :1]).clamp(max=drafts.places.shape[1] - 1)
        judged, logp = tally.tokens.gather(1, column), drafts.logp.gather(1, column)
        key = (rows.passes, round_)
        u_accept = uniform(rows.seeds, Purpose.ACCEPT, *key, places)
        rejected, k = first_rejection(logp, target.of(judged), open_, u_accept)
        place = take(places, k)
        u_residual = uniform(rows.seeds, Purpose.RESIDUAL, *key, torch.zeros_like(places[:, :1]))
        weights = residual(drafts.law.at(take(column, k)), target.at(k))
        redrawn = draw_of(weights, u_residual.squeeze(1))
        if not last:
            embedded = self.model.trunk.embed(redrawn)  # type: ignore[operator]
            replace_token(self._head, tracks, rejected, place, embedded)
        behind = torch.where(rejected, place + 1, torch.minimum(places[:, -1] + 1, drafts.stop))
        hit = rejected.unsqueeze(1) & (drafts.places == place.unsqueeze(1))
        return Tally(
            tokens=torch.where(hit, redrawn.unsqueeze(1), tally.tokens),
            decided=torch.where(open_row, behind, tally.decided),
            heads=torch.where(open_row, round_ + 1, tally.heads),
            rejections=round_ + rejected.long(),
            broken=tally.broken | (target.log_z.isnan() & open_).any(1),
        )

    def _finish(self, pool: Pool, rows: Rows, drafts: Drafts, tally: Tally) -> None:
        """Reveal what is decided, keep the account, hand finished rows' slots on."""
        began, revealed = drafts.places[:, 0], tally.decided
        kept = drafts.inside & (drafts.places < revealed.unsqueeze(1))
        active = (began < drafts.stop).long()
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

    @property
    def _head(self) -> CausalHead:
        assert self.model.head is not None
        return self.model.head


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


def _written(tokens: Tensor, positions: Tensor, drafted: Tensor, keep: Tensor) -> Tensor:
    """(S, L) `tokens` with those of `drafted` (S, W) that are kept at their positions."""
    length = tokens.shape[1]
    # What is not kept goes to a column of its own: it may repeat a position.
    wide = torch.nn.functional.pad(tokens, (0, 1))
    return wide.scatter(1, torch.where(keep, positions, length), drafted)[:, :length]
