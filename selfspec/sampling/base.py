"""The loop that all samplers share.

    start: observed tokens stand first in σ and are revealed
    while a row is open, which by default it is while it has masked places:
        step: draft from a trunk pass, choose what to reveal

A subclass writes `step`, mostly around `draw_drafts`: one trunk pass, then σ and window of the pass
where their rule re-chooses them, then draws along σ. Rows that are finished leave the batch, and
every draw is keyed by the row's own seed and pass, so a row's result depends on nothing else in the
batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from selfspec.inputs import check_model, checked_rows
from selfspec.interfaces import Pass, Round, Samples, Trace
from selfspec.model import SSMD
from selfspec.noise import Purpose, uniform
from selfspec.ops import draw, log_probs, take_along
from selfspec.orders import Order, as_order, initial_order, rearranged
from selfspec.progress import tracked
from selfspec.schedules import Window, stacked_tables
from selfspec.selection import DraftOrder, DraftWindow

__all__ = ["Sampler", "State", "check_filled"]

NOT_NUMBERS = "`model` must give logits that are numbers, got NaN"
LEFT_MASKED = ("`model` must give logits that are numbers, and `order` keys in [0, 1), got a "
               "position that stays masked")  # fmt: skip

Rows = TypeVar("Rows", bound="State")


@dataclass
class State:
    """Where a batch of rows stands; every field has a leading axis B."""

    tokens: Tensor
    """(B, L) int64, natural order, the mask token at places still masked."""
    pad: Tensor
    """(B, L) bool."""
    order: Tensor
    """(B, L) int64."""
    seeds: Tensor
    index: Tensor
    """(B,) row of the whole batch, for the trace."""
    observed: Tensor
    """(B,) int64 places that were revealed from the start."""
    revealed: Tensor
    """(B,) int64 index of the first masked place."""
    end: Tensor
    """(B,) int64 first pad place."""
    windows: Tensor
    """(B, max N + 1) int64 window after k generated tokens; the last column pads."""
    passes: Tensor
    """(B,) int64 passes so far: keys the draws."""
    trunk_passes: Tensor
    head_passes: Tensor
    drafted: Tensor
    accepted: Tensor

    @property
    def window(self) -> Tensor:
        """(B,) int64: the most tokens that the coming pass may reveal."""
        return self.windows.gather(1, (self.revealed - self.observed).unsqueeze(1)).squeeze(1)

    def rows(self: Rows, index: Tensor) -> Rows:
        """The rows at `index` (R,), as copies."""
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def reorder(self, rule: Order) -> None:
        """Order the masked places anew."""
        self.order = rearranged(
            rule, self.order, self.revealed, self.end, self.window, self.seeds, self.passes
        )

    def put(self: Rows, index: Tensor, rows: Rows) -> None:
        """Write `rows` back."""
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(rows, f.name)


class Sampler(ABC):
    """Draws sequences from a model.

    Args:
        model: an `SSMD` in evaluation mode (with dropout, equal seeds would give different rows).
        order: the rule for σ.
        temperature: divides the logits of draft and target alike.
        top_p: nucleus, on draft and target alike.
    """

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        check_model(model)
        log_probs(torch.zeros(1), temperature, top_p)  # raises on bad values before any work
        self.model = model
        self.order = as_order(order)
        self.temperature = temperature
        self.top_p = top_p

    window: Window
    """How many tokens a pass may reveal."""

    @abstractmethod
    def step(self, state: State, trace: Trace | None) -> None:
        """One pass over rows that are all open; updates `state` in place."""

    def open(self, state: State) -> Tensor:
        """(B,) bool: rows that need another step."""
        return state.revealed < state.end

    @torch.no_grad()
    def sample(
        self,
        tokens: Tensor,
        seeds: Tensor | int = 0,
        pad: Tensor | None = None,
        trace: bool = False,
        progress: bool = False,
        watch: Callable[[Tensor], object] | None = None,
    ) -> Samples:
        """Fill every masked position.

        Args:
            tokens: (B, L) int64, `model.mask_id` where a token is to be generated; the others are
                observed and stay as they are.
            seeds: (B,) int64, a seed a row; or one seed for the run.
            pad: (B, L) bool, True at pads.
            trace: keep what every pass drafted, accepted, rejected and redrew.
            progress: show a progress bar over tokens.
            watch: is called with all tokens (B, L) after every pass.

        Returns:
            `Samples`. With the same seed, a row is the same alone and in any batch.

        Raises:
            ValueError: shapes, tokens outside the vocabulary, a length beyond the model's, or a
                model whose logits are NaN.
        """
        state = self.start(*checked_rows(self.model, tokens, seeds, pad))
        passes: Trace | None = [[] for _ in range(len(tokens))] if trace else None
        total = int((state.end - state.revealed).sum())
        with tracked(total=total, unit="tok", progress=progress, leave=False) as bar:
            while len(rows := self.open(state).nonzero().squeeze(1)):
                active = state.rows(rows)
                before = active.revealed
                self.step(active, passes)
                active.passes = active.passes + 1
                state.put(rows, active)
                bar.update(int((active.revealed - before).sum()))
                if watch is not None:
                    watch(state.tokens)
        check_filled(self.model, state.tokens, state.pad)
        return Samples(
            tokens=torch.where(state.pad, tokens, state.tokens),
            trunk_passes=state.trunk_passes,
            head_passes=state.head_passes,
            drafted=state.drafted,
            accepted=state.accepted,
            trunk_blocks=self.model.num_trunk_blocks,
            head_blocks=self.model.num_head_blocks,
            trace=passes,
            pad=state.pad,
        )

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> State:
        """Draw σ, reveal what is observed; of `checked_rows`."""
        masked = (tokens == self.model.mask_id) & ~pad
        end = (~pad).sum(1)
        observed = end - masked.sum(1)
        windows = self.row_windows(end - observed, seeds)
        zero = torch.zeros_like(end)
        return State(
            tokens=tokens.masked_fill(pad, 0),  # what stands there need not be in the vocabulary
            pad=pad.clone(),
            order=initial_order(self.order, masked, pad, seeds),
            seeds=seeds.clone(),
            index=torch.arange(len(tokens), device=tokens.device),
            observed=observed,
            revealed=observed.clone(),
            end=end,
            windows=windows,
            passes=zero,
            trunk_passes=zero.clone(),
            head_passes=zero.clone(),
            drafted=zero.clone(),
            accepted=zero.clone(),
        )

    def log_probs(self, logits: Tensor) -> Tensor:
        """(…, V) normalised float64 log-probabilities after temperature and nucleus."""
        logp = log_probs(logits, self.temperature, self.top_p)
        if bool(logp[..., 0].isnan().any()):  # one NaN makes all of its place NaN
            raise ValueError(NOT_NUMBERS)
        return logp

    def draw_drafts(self, state: State) -> "Drafts":
        """One trunk pass, σ and window where the pass chooses them, draws for the window."""
        state.trunk_passes = state.trunk_passes + 1
        hidden = self.model.encode(state.tokens, state.pad if bool(state.pad.any()) else None)
        stop = state.revealed + self.arrange(state, hidden)
        places, inside = window_places(state, stop - state.revealed)
        positions = state.order.gather(1, places)
        logp = self.log_probs(self.model.draft(hidden, positions))
        u = uniform(state.seeds, Purpose.DRAFT, state.passes, 0, places)
        return Drafts(hidden, places, positions, inside, stop, logp, draw(logp.exp(), u))

    def arrange(self, state: State, hidden: Tensor) -> Tensor:
        """Re-choose the rest of σ, if its rule does; how many tokens to draft, (B,) int64.

        Rules may read positions, random numbers and draft distributions, but no drawn token: so
        the pass follows its law, given σ and window.
        """
        reads_drafts = isinstance(self.order, DraftOrder) or isinstance(self.window, DraftWindow)
        logp = self.log_probs(self.model.draft(hidden)) if reads_drafts else None
        if isinstance(self.order, DraftOrder) and logp is not None:
            state.reorder(self.order.reading(logp))
        elif not self.order.fixed:
            state.reorder(self.order)
        if logp is None or not isinstance(self.window, DraftWindow):
            return state.window
        places, inside = window_places(state, state.window)
        return self.window.sizes(take_along(logp, state.order.gather(1, places)), inside)

    def row_windows(self, to_generate: Tensor, seeds: Tensor) -> Tensor:
        """(B, max N + 1) window of each row after 0, 1, … generated tokens, padded with 1."""
        tables = stacked_tables(self.window, to_generate.tolist())
        return torch.from_numpy(tables).to(to_generate.device)


def check_filled(model: SSMD, tokens: Tensor, pad: Tensor) -> None:
    """Raises a `ValueError` if (B, L) tokens have a mask left where there is no pad."""
    if bool(((tokens == model.mask_id) & ~pad).any()):
        raise ValueError(LEFT_MASKED)


def window_places(state: State, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """(B, W) the next places of σ, and which of them are among the row's `sizes` (B,)."""
    ahead = torch.arange(int(sizes.max()), device=sizes.device)
    places = state.revealed.unsqueeze(1) + ahead
    return torch.minimum(places, state.end.unsqueeze(1) - 1), ahead < sizes.unsqueeze(1)


@dataclass
class Drafts:
    """What one trunk pass drafted."""

    hidden: Tensor
    """(B, L, C) natural order."""
    places: Tensor
    """(B, W) of σ."""
    positions: Tensor
    """(B, W) natural positions of the places."""
    inside: Tensor
    """(B, W) bool: the place is in the row's window."""
    stop: Tensor
    """(B,) first place behind the window."""
    logp: Tensor
    """(B, W, V) float64."""
    tokens: Tensor
    """(B, W) drawn from `logp`."""

    def written(self, tokens: Tensor, upto: Tensor | None = None) -> Tensor:
        """(B, L) `tokens` with the drafts of the window (below place `upto`) written in."""
        keep = self.inside if upto is None else self.inside & (self.places < upto.unsqueeze(1))
        # A place outside the window may repeat a position: scatter only what is kept.
        row, column = keep.nonzero(as_tuple=True)
        out = tokens.clone()
        out[row, self.positions[row, column]] = self.tokens[row, column]
        return out

    def trace(self, row: int, drafted: Tensor, rounds: list[Round], revealed: int) -> Pass:
        """The record of a row: `drafted` (W,) as first drawn, `revealed` its first masked place."""
        inside = self.inside[row]
        positions = self.positions[row][inside].tolist()
        stands = self.tokens[row][inside].tolist()[: revealed - int(self.places[row, 0])]
        return Pass(positions, drafted[inside].tolist(), rounds, list(zip(positions, stands)))  # noqa: B905
