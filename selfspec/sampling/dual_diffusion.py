"""Stale-cache drafting, verified in one pass (DualDiffusion-style): cheap, and no law is kept.

A trunk pass over the text, with the W drafts y of the pass before in it, gives p' at every position
and leaves keys and values behind. It judges the very drafts that it sees: a draft is taken back if

    moved        KL(p'_ℓ ‖ s_ℓ) > ε,  s_ℓ what it was drawn from,      or
    unlikely     p'_ℓ(y_ℓ) < τ,

but for the one least so, which always stands (τ = 0 takes nothing back). Then the next W masked
positions of σ, those taken back first, are drafted for the next pass: computed anew within keys and
values that are otherwise stale, then one after another, as in `stale_cache`,

    y_d ~ s_d(·):  a trunk pass, (W + 2 (W - 1))/n of one for the n positions.

No loss has trained p' at a position that the trunk sees, and a draft is judged in sight of those
drawn after it. Source: DualDiffusion 2604.05250 (K = 5 draft steps, one full pass; KL or low
confidence); that a step draws one token, and ε and τ, are a reading. `StaleCacheSampler` verifies
the same drafts without changing the law.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.model import SSMD
from selfspec.noise import Purpose, uniform
from selfspec.ops import take, take_along
from selfspec.orders import Order, as_order
from selfspec.sampling.base import State
from selfspec.sampling.sets import Outcome, SetSampler, largest
from selfspec.sampling.stale_cache import check_keeps, draw_stale
from selfspec.selection import divergence

__all__ = ["Doubt", "DualDiffusionSampler", "DivergenceDoubt", "ConfidenceDoubt"]


class Doubt(Protocol):
    """A rule for what is taken back."""

    def __call__(self, judged: Tensor, drafted: Tensor, tokens: Tensor) -> Tensor:
        """(B, L, V) log p' and log s, (B, L) drafts → (B, L), above 0 where one is taken back."""
        ...


@dataclass(frozen=True)
class DivergenceDoubt:
    """KL(p' ‖ s) > ε, nats."""

    epsilon: float = 0.5

    def __post_init__(self):
        if not self.epsilon >= 0:
            raise ValueError(f"`epsilon` must be at least 0, got {self.epsilon}")

    def __call__(self, judged: Tensor, drafted: Tensor, tokens: Tensor) -> Tensor:
        """KL(p' ‖ s) - ε."""
        return divergence(judged, drafted) - self.epsilon


@dataclass(frozen=True)
class ConfidenceDoubt:
    """p'(y) < τ."""

    tau: float = 0.1

    def __post_init__(self):
        if not 0 <= self.tau <= 1:
            raise ValueError(f"`tau` must be in [0, 1], got {self.tau}")

    def __call__(self, judged: Tensor, drafted: Tensor, tokens: Tensor) -> Tensor:
        """τ - p'(y)."""
        return self.tau - take(judged, tokens).exp()


@dataclass
class DualState(State):
    """Remembers what waits to be judged."""

    waiting: Tensor
    """(B, L) bool: masked positions for which there is a draft."""
    guess: Tensor
    """(B, L) int64, the drafts."""
    source: Tensor
    """(B, L, V) float64 log s, what they were drawn from."""


class DualDiffusionSampler(SetSampler):
    """Drafts with stale keys and values, judged by the pass that renews them; see the module.

    Args:
        model: an `SSMD` whose trunk keeps keys and values, such as our own.
        doubt: what is taken back; `DivergenceDoubt()` by default.
        drafts: W ≥ 1.
        order: the rule for σ, fixed in advance; uniform by default.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: the trunk keeps nothing, `drafts` below 1, or an order that is re-chosen.
    """

    def __init__(
        self,
        model: SSMD,
        doubt: Doubt | None = None,
        drafts: int = 5,
        order: Order | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        check_keeps(model)
        super().__init__(model, None, temperature, top_p)
        whole("drafts", drafts, least=1)
        self.order = as_order(order)
        if not self.order.fixed:
            raise ValueError(f"`order` must be fixed in advance, got {type(order).__name__}")
        self.doubt = doubt if doubt is not None else DivergenceDoubt()
        self.drafts = drafts

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> DualState:
        """Nothing waits; an account of shares."""
        state = super().start(tokens, seeds, pad)
        state.trunk_passes = state.trunk_passes.double()
        shape = (*tokens.shape, self.model.vocab_size)
        return DualState(
            **vars(state),
            waiting=torch.zeros_like(state.pad),
            guess=torch.zeros_like(state.tokens),
            source=torch.zeros(shape, dtype=torch.float64, device=tokens.device),
        )

    def move(self, state: State) -> Outcome:
        """One trunk pass, which judges and is drafted from."""
        assert isinstance(state, DualState)
        memories = self.model.trunk.memories()  # type: ignore[operator]
        whole = torch.where(state.waiting, state.guess, state.tokens)
        pad = state.pad if bool(state.pad.any()) else None
        judged = self.log_probs(self.model.draft(self.model.trunk(whole, pad, memories)))
        state.trunk_passes = state.trunk_passes + 1
        excess = self.doubt(judged, state.source, state.guess)
        least = largest(-excess, state.waiting, torch.ones_like(state.end))
        stands = state.waiting & ((excess <= 0) | least)
        outcome = Outcome(
            torch.where(stands, state.guess, state.tokens), stands, judged=state.waiting
        )
        self.draft(state, outcome.tokens, memories)  # other places wait then
        return outcome

    def draft(self, state: DualState, known: Tensor, memories: object) -> None:
        """Drafts for the next pass, at the next masked places of σ."""
        along = take_along(known == self.model.mask_id, state.order)
        left = along.sum(1)
        sizes = left.clamp(max=self.drafts)
        state.waiting = torch.zeros_like(state.waiting)
        if not (most := int(sizes.max())):
            return
        ahead = torch.arange(most, device=known.device)
        inside = ahead < sizes.unsqueeze(1)
        # Behind the last of a row stands that again: what is known stays as the memories have it.
        last = (sizes.unsqueeze(1) - 1).clamp(min=0)
        places = (~along).byte().argsort(dim=1, stable=True).gather(1, torch.minimum(ahead, last))
        positions = state.order.gather(1, places)
        u = uniform(state.seeds, Purpose.DRAFT, state.passes, 0, places)
        pad = state.pad if bool(state.pad.any()) else None
        anew = self.model.trunk(known.gather(1, positions), pad, memories, positions)
        logp, tokens = draw_stale(self, anew[:, :1], known, pad, memories, positions, u)
        row, column = inside.nonzero(as_tuple=True)
        at = row, positions[row, column]
        state.waiting[at], state.guess[at] = True, tokens[row, column]
        state.source[at] = logp[row, column]
        state.trunk_passes = state.trunk_passes + (3 * sizes - 2).clamp(min=0) / state.end
