"""What every likelihood is made of: the probabilities of the true tokens, pass by pass.

For a sequence x and an order σ, with places counted from 0,

    draft   log p_i(d, x_σ(d)),      target   log q_i(d, x_σ(d)),      d ≥ i,

for every number i of revealed tokens that a pass may start with: one trunk pass and one head pass
for each i.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.inputs import mask_of, seeds_of
from selfspec.model import SSMD
from selfspec.ops import inverse_order, log_probs, take
from selfspec.orders import Order, initial_order

__all__ = ["Scores", "draw_order", "encoded", "generated", "score_pass", "scores"]


class Scores(NamedTuple):
    """log p_i(d, x_σ(d)) and log q_i(d, x_σ(d)) of a sequence, for every i and d.

    Both are (B, L, L) float64 with axes (i, d), in nats, -inf where d < i or d is a pad. They do
    not depend on window or rounds: one table serves every setting.
    """

    draft: Tensor
    target: Tensor
    """Tied; equal to `draft` for a model without head."""
    observed: Tensor
    """(B,) the first i."""
    end: Tensor
    """(B,) places that are not pads."""


def draw_order(
    rule: Order,
    tokens: Tensor,
    seeds: Tensor | int = 0,
    pad: Tensor | None = None,
    observed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """σ for each row, observed tokens first and pads last, and the number of observed tokens.

    Args:
        rule: fixed in advance.
        tokens: (B, L).
        seeds: (B,) int64, or one for the run.
        pad, observed: (B, L) bool; None for none.

    Returns:
        (B, L) int64 and (B,) int64.

    Raises:
        ValueError: the rule re-chooses the order between passes, or a wrong shape or type.
    """
    if not rule.fixed:
        raise ValueError(
            f"`order` must be fixed in advance, got {type(rule).__name__}, which is re-chosen "
            "between passes: use `estimate_log_likelihood`"
        )
    pad = mask_of("pad", pad, tokens)
    observed = mask_of("observed", observed, tokens) & ~pad
    order = initial_order(rule, ~(pad | observed), pad, seeds_of(seeds, tokens))
    return order, observed.sum(1)


@torch.no_grad()
def scores(
    model: SSMD,
    tokens: Tensor,
    order: Tensor,
    first: Tensor | None = None,
    pad: Tensor | None = None,
    batch_size: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    watch: Callable[[int], object] | None = None,
) -> Scores:
    """One trunk pass and one head pass for every number of revealed tokens.

    Args:
        model: with or without a head.
        tokens: (B, L) the sequences to score.
        order: (B, L) from `draw_order`.
        first: (B,) observed tokens; 0 by default.
        pad: (B, L) bool.
        batch_size: rows of one pass.
        temperature, top_p: of the sampler that is scored.
        watch: is called with the number of rows of every pass.

    Raises:
        ValueError: `batch_size`, `temperature` or `top_p` out of range.
    """
    whole("batch_size", batch_size, least=1)
    size, length = tokens.shape
    pad = mask_of("pad", pad, tokens)
    end = (~pad).sum(1)
    first = torch.zeros_like(end) if first is None else first
    shape = (2, size, length, length)
    table = torch.full(shape, -torch.inf, dtype=torch.float64, device=tokens.device)
    places = torch.arange(length, device=tokens.device)
    jobs = ((places >= first.unsqueeze(1)) & (places < end.unsqueeze(1))).nonzero()
    for row, i in (chunk.T for chunk in jobs.split(batch_size) if len(chunk)):
        part = tokens[row], order[row], i, pad[row]
        table[:, row, i] = score_pass(model, encoded(model, *part), *part, temperature, top_p)
        if watch is not None:
            watch(len(row))
    return Scores(table[0], table[1], first, end)


def encoded(model: SSMD, tokens: Tensor, order: Tensor, revealed: Tensor, pad: Tensor) -> Tensor:
    """(B, L, C) what the trunk makes of x's tokens at the first i places of σ: one trunk pass."""
    hidden_places = inverse_order(order) >= revealed.unsqueeze(1)
    known = tokens.masked_fill(pad, 0)  # what stands there need not be in the vocabulary
    masked = torch.where(hidden_places & ~pad, model.mask_id, known)
    return model.encode(masked, pad if bool(pad.any()) else None)


def score_pass(
    model: SSMD,
    hidden: Tensor,
    tokens: Tensor,
    order: Tensor,
    revealed: Tensor,
    pad: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """(2, B, L) draft and target log-probabilities of x in σ order; -inf outside [i, end).

    With `hidden` from `encoded`, of an order with the same first i places.
    """
    known = tokens.masked_fill(pad, 0)
    logits = [model.draft(hidden, order)]
    if model.head is not None:
        logits.append(model.target(hidden, known, order, revealed))
    wanted = known.gather(1, order)
    logp = torch.stack([take(log_probs(x, temperature, top_p), wanted) for x in logits])
    logp = logp.expand(2, -1, -1)
    return logp.masked_fill(~generated(order, revealed, pad), -torch.inf)


def generated(order: Tensor, revealed: Tensor, pad: Tensor) -> Tensor:
    """(B, L) bool: places from `revealed` on that are not pads."""
    places = torch.arange(order.shape[1], device=order.device)
    return (places >= revealed.unsqueeze(1)) & ~pad.gather(1, order)
