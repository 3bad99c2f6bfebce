"""Training on the passes that a sampler makes under an order and windows of its own.

A sampler reads its head at the places i < d < i + W(i) of a pass that begins at i. If every draft
is accepted, each place of σ is in one pass, and a token's mean loss is

    1/N · Σ_passes Σ_{i < d < i+W} -log q_i(d, x_σ(d)).

Passes begin at i with density 1/W(i), so this is the `window` term of `ssmd_loss` for i uniform,
whatever the window: mean over the places of a window, then over i. (Uniform i stands for windows
that begin anywhere, which rejections and several sizes of windows make of them.) So only σ and W
have to be the sampler's.

**σ before the pass at i.** A rule that is fixed in advance draws it once, whatever i. A re-chosen
one draws it for the places that earlier passes left masked: the passes are gone through, each
revealing its whole window, the last one what is left to i, as after a rejection. A rejection in an
earlier pass is not imitated: where it falls depends on the tokens. The rules see positions and
counts only, so no draft has to be made for this.

A rule that reads drafts would need a trunk pass for each pass gone through. It has one, for the
coming pass alone: what is known is what re-spaced passes have left, and only the window at i is
chosen as the sampler chooses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfspec.likelihood.tables import encoded
from selfspec.model import SSMD
from selfspec.ops import log_probs
from selfspec.orders import Order, RespacedOrder, UniformOrder, initial_order, rearranged
from selfspec.schedules import LinearWindow, Window, stacked_tables
from selfspec.selection import DraftOrder
from selfspec.train.objectives import Chance, Diffusion, Drawn, is_one_of

__all__ = ["OrderedDiffusion"]

USUAL = tuple(LinearWindow(dtau) for dtau in (0.03, 0.045, 0.06, 0.09, 0.125, 0.17, 0.25))


@dataclass(frozen=True)
class OrderedDiffusion(Diffusion):
    """`Diffusion` on σ and windows of a sampler, for fine-tuning.

    Attributes:
        window_weight: weight of the loss over the window beside that over all places.
        order: the rule for σ; one that reads drafts takes a trunk pass more a step.
        windows: of the samplers to come, equally often; linear ones of 4 to 34 passes by default.
    """

    window_weight: float = 1.0
    order: Order = field(default_factory=UniformOrder)
    windows: tuple[Window, ...] = USUAL

    def __post_init__(self) -> None:
        if not self.windows:
            raise ValueError("`windows` must hold at least one window, got none")

    def draw(self, tokens: Tensor, chance: Chance, pad: Tensor | None = None) -> Drawn:
        """As `Diffusion.draw`, for the order and one of the windows of each row."""
        drawn = super().draw(tokens, chance, pad)
        tables = _tables(self.windows, tokens.shape[1], tokens.device)
        which = (chance.uniform(len(tokens), dtype=torch.float64) * len(tables)).long()
        seeds = (chance.uniform(len(tokens), dtype=torch.float64) * 2**53).long()
        gone = torch.zeros_like(tokens, dtype=torch.bool) if pad is None else pad
        masked = ~(is_one_of(tokens, self.observed) | gone)
        total, end = masked.sum(1), (~gone).sum(1)

        def window(revealed: Tensor) -> Tensor:
            return tables[which, total, revealed - end + total]

        revealed = drawn["revealed"]
        passes = 0 if self.order.fixed else most_passes(self.windows, tokens.shape[1])
        reads = isinstance(self.order, DraftOrder)
        rule = RespacedOrder() if reads else self.order
        order = _order_at(rule, masked, gone, revealed, end, window, seeds, passes)
        drawn |= {"order": order, "window": window(revealed)}
        return drawn | {"seeds": seeds} if reads else drawn

    def loss(self, model: Any, **drawn: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """That of `Diffusion`, the window chosen by the drafts first where the order reads them."""
        if isinstance(self.order, DraftOrder):
            drawn["order"] = _chosen(model, self.order, drawn.pop("seeds"), **drawn)
        return super().loss(model, **drawn)


@torch.no_grad()
def _chosen(
    model: SSMD,
    rule: DraftOrder,
    seeds: Tensor,
    tokens: Tensor,
    order: Tensor,
    revealed: Tensor,
    window: Tensor,
    pad: Tensor | None = None,
) -> Tensor:
    """σ as the rule has it that reads the drafts of the pass at `revealed`."""
    gone = torch.zeros_like(tokens, dtype=torch.bool) if pad is None else pad
    logits = model.draft(encoded(model, tokens, order, revealed, gone))
    reading = rule.reading(log_probs(logits))
    fresh = torch.full_like(seeds, tokens.shape[1])  # the passes before had the numbers below
    return rearranged(reading, order, revealed, (~gone).sum(1), window, seeds, fresh)


def _order_at(
    rule: Order,
    masked: Tensor,
    pad: Tensor,
    revealed: Tensor,
    end: Tensor,
    window: Callable[[Tensor], Tensor],
    seeds: Tensor,
    passes: int,
) -> Tensor:
    """σ before the pass that begins at `revealed`, (B, L), after at most so many passes."""
    known = end - masked.sum(1)
    order = initial_order(rule, masked, pad, seeds)
    for index in range(0 if rule.fixed else passes + 1):
        if index:
            known = torch.minimum(known + window(known), revealed)
        passed = torch.full_like(seeds, index)
        order = rearranged(rule, order, known, end, window(known), seeds, passed)
    return order


@lru_cache
def _tables(windows: tuple[Window, ...], length: int, device: torch.device) -> Tensor:
    """W(i) of each window for n tokens to generate: (windows, L + 1, L + 1) by (n, i)."""
    tables = np.stack([stacked_tables(window, range(length + 1)) for window in windows])
    return torch.from_numpy(tables).to(device)


@lru_cache
def most_passes(windows: tuple[Window, ...], length: int) -> int:
    """The most passes of any row: of its windows, and of its number of tokens to generate."""
    tables = _tables(windows, length, torch.device("cpu"))
    total = torch.arange(length + 1).expand(len(windows), -1)
    known, passes = torch.zeros_like(total), 0
    while bool((known < total).any()):
        known = torch.minimum(known + tables.gather(2, known.unsqueeze(2)).squeeze(2), total)
        passes += 1
    return passes
