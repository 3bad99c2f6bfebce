"""Stale-cache drafting, fully verified (DualDiffusion-style).

A trunk pass over the tokens known leaves the keys and values of all positions behind. From them
the W(i) next places of σ are drafted one after another,

    y_i ~ p_i(i, ·),      y_d ~ s_d(·), d > i:  of the n positions only σ(d-1), whose token is new,
                          and σ(d) are computed, with all else as it was          (2/n of a pass)

and then verified as in `any_order_verified`: the target p_d(d, ·) is the trunk run on all tokens
before d, a sequence a place in one call. A draft behind a rejection followed a token that is gone,
and is dropped. So what stands has the law of `AnyOrderSampler`, however stale the drafts were.

DualDiffusion (2604.05250, K = 5) verifies in a single pass, which sees the very drafts that it
judges: cheaper, but no longer the model's law (`dual_diffusion`). Verified in full it is never
below one evaluation a token; it pays in calls one after another.
"""

from typing import Any

import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.noise import Purpose, uniform
from selfspec.ops import draw, take_along
from selfspec.orders import Order
from selfspec.sampling.any_order_verified import AnyOrderVerifiedSampler
from selfspec.sampling.base import Drafts, Sampler, State, window_places
from selfspec.schedules import Window

__all__ = ["StaleCacheSampler"]


def check_keeps(model: SSMD) -> None:
    """Refuse a trunk that does not keep keys and values."""
    if not hasattr(model.trunk, "memories"):
        raise ValueError(f"`model` must have a trunk that keeps keys and values, "
                         f"got {type(model.trunk).__name__}")  # fmt: skip


def draw_stale(
    sampler: Sampler,
    first: Tensor,
    text: Tensor,
    pad: Tensor | None,
    memories: Any,
    positions: Tensor,
    u: Tensor,
) -> tuple[Tensor, Tensor]:
    """Drafts one after another, each from the memories with only the draft before it renewed.

    Args:
        sampler: whose model, temperature and nucleus count.
        first: (B, 1, C) the hidden state of the first position.
        text: (B, L) what is known.
        pad: (B, L) bool.
        memories: of a pass over the row.
        positions: (B, W) where to draft.
        u: (B, W) uniform numbers.

    Returns:
        (B, W, V) float64 log-probabilities s, and (B, W) draws from them.
    """
    model = sampler.model
    logp = [sampler.log_probs(model.draft(first))]
    tokens = [draw(logp[0].exp(), u[:, :1])]
    for d in range(1, positions.shape[1]):
        pair = positions[:, d - 1 : d + 1]
        text = text.scatter(1, pair[:, :1], tokens[-1])
        fresh = model.trunk(text.gather(1, pair), pad, memories, pair)
        logp.append(sampler.log_probs(model.draft(fresh[:, 1:])))
        tokens.append(draw(logp[-1].exp(), u[:, d : d + 1]))
    return torch.cat(logp, 1), torch.cat(tokens, 1)


class StaleCacheSampler(AnyOrderVerifiedSampler):
    """Drafts one after another with stale keys and values, verified by the trunk; see the module.

    Args:
        model: an `SSMD` whose trunk keeps keys and values, such as our own.
        order: the rule for σ; uniform by default.
        window: W; 5 tokens by default.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: the trunk keeps nothing.
    """

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        window: Window | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        check_keeps(model)
        super().__init__(model, order, window, temperature, top_p)

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> State:
        """As `Sampler.start`, with an account of shares."""
        state = super().start(tokens, seeds, pad)
        state.trunk_passes = state.trunk_passes.double()
        return state

    def draw_drafts(self, state: State) -> Drafts:
        """One trunk pass, then a small part of one a place."""
        trunk, memories = self.model.trunk, self.model.trunk.memories()  # type: ignore[operator]
        pad = state.pad if bool(state.pad.any()) else None
        hidden = trunk(state.tokens, pad, memories)
        sizes = self.arrange(state, hidden)
        places, inside = window_places(state, sizes)
        positions = state.order.gather(1, places)
        u = uniform(state.seeds, Purpose.DRAFT, state.passes, 0, places)
        first = take_along(hidden, positions[:, :1])
        drawn = draw_stale(self, first, state.tokens, pad, memories, positions, u)
        state.trunk_passes = state.trunk_passes + 1 + 2 * (sizes - 1) / state.end
        return Drafts(hidden, places, positions, inside, state.revealed + sizes, *drawn)
