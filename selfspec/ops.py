"""Exact categorical draws and gathers along an order.

A categorical draw inverts the distribution function in float64 with one uniform number of 52
random bits,

    x = min { v : u · F(V) < F(v) },     F(v) = Σ_{w ≤ v} p(w),

so that P(x = v) is p(v) to within 2⁻⁵². Gumbel noise in float32 has its upper tail cut at
-log(2⁻²⁴) ≈ 16.6, which lowers the effective temperature and flatters a sampler's perplexity.
"""

import math
from typing import Any

import torch
from torch import Tensor

from selfspec.checks import real

__all__ = ["draw", "inverse_order", "log_probs", "outside", "reorder", "take", "take_along"]


def log_probs(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Normalised log-probabilities in float64, after temperature and nucleus.

    Args:
        logits: (..., V).
        temperature: logits are divided by it; above 0 and finite.
        top_p: the smallest set of most likely tokens whose mass reaches `top_p` is kept, ties in
            favour of the smaller token; in (0, 1].

    Returns:
        (..., V) nats, float64, -inf outside the nucleus.

    Raises:
        ValueError: `temperature` or `top_p` is no number, or out of range.
    """
    if not 0 < real("temperature", temperature) < math.inf:
        raise ValueError(f"`temperature` must be above 0 and finite, got {temperature}")
    if not 0 < real("top_p", top_p) <= 1:
        raise ValueError(f"`top_p` must be in (0, 1], got {top_p}")
    precise = logits.double()
    # Divided before, the likeliest could be infinite.
    below = precise - precise.amax(-1, keepdim=True)
    logp = torch.log_softmax(below / temperature, dim=-1)
    if top_p == 1:
        return logp
    return torch.log_softmax(logp.masked_fill(outside(logp, top_p), -torch.inf), dim=-1)


def outside(logp: Tensor, top_p: float | Tensor) -> Tensor:
    """What is not in the nucleus: the smallest set of most likely tokens whose mass reaches top_p.

    Args:
        logp: (..., V) log-probabilities.
        top_p: one for all, or (..., 1); infinite for no nucleus.

    Returns:
        (..., V) bool; of equally likely tokens the smaller ones are in the nucleus.
    """
    ranked, tokens = logp.sort(dim=-1, descending=True, stable=True)
    mass_before = ranked.exp().cumsum(-1) - ranked.exp()
    return torch.zeros_like(logp, dtype=torch.bool).scatter(-1, tokens, mass_before >= top_p)


def draw(probs: Tensor, u: Tensor) -> Tensor:
    """Exact categorical draw by inversion; a token of probability zero is never drawn.

    Args:
        probs: (..., V) nonnegative, not necessarily normalised, of positive mass.
        u: (...) float64 in (0, 1), as from `noise.uniform`.

    Returns:
        (...) int64.

    >>> draw(torch.tensor([0.25, 0.0, 0.75]), torch.tensor(0.26, dtype=torch.float64)).item()
    2
    """
    cdf = probs.double().cumsum(-1)
    return torch.searchsorted(cdf, (u * cdf[..., -1]).unsqueeze(-1), right=True).squeeze(-1)


def take_along(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, s], ...]: natural order to σ order when `index` is the order.

    Args:
        x: (B, L) or (B, L, C).
        index: (B, S) int64.

    Returns:
        (B, S) or (B, S, C).
    """
    if x.dim() == 2:
        return x.gather(1, index)
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def take(logp: Tensor, tokens: Tensor) -> Tensor:
    """The entry of `logp` (..., V) at each of `tokens` (...)."""
    return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def inverse_order(order: Tensor) -> Tensor:
    """The place of each position: result[b, order[b, s]] = s. (B, L) int64."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


class _Reordered(torch.autograd.Function):
    """A gather along a permutation: its gradient is a gather too, where autograd would add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return take_along(x, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return take_along(grads[0], inverse_order(order)), None


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """x[b, order[b, s]] for whole orders: `take_along`, with a faster gradient.

    Args:
        x: (B, L) or (B, L, C).
        order: (B, L) int64, a permutation of 0..L-1 in each row.

    Returns:
        Of the shape of x.
    """
    return _Reordered.apply(x, order)  # type: ignore[return-value]
