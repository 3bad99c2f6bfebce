"""Accept or reject a draft: the heart of the method.

A draft y_d ~ p_d is verified against the target q_d, place after place along the order:

    accept y_d  with probability  min(1, q_d(y_d) / p_d(y_d));
    at the first rejection f draw instead  y_f ~ max(0, q_f - p_f) / Σ max(0, q_f - p_f).

The token that stands at d afterwards, accepted or redrawn, has law q_d exactly, whatever p_d is:

    p·min(1, q/p) + (1 - Σ min(p, q)) · max(0, q - p) / Σ max(0, q - p)
        = min(p, q) + max(0, q - p) = q,           as Σ max(0, q - p) = 1 - Σ min(p, q).

Behind the first rejection nothing is decided: the target there was computed from a token that has
just been replaced. Source: Leviathan et al. 2023; Chen et al. 2023; for an order σ, Campbell et
al. 2025 (arXiv 2510.03929).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from selfspec.ops import draw, take

__all__ = ["Verdict", "accept_draft", "first_rejection", "residual"]


class Verdict(NamedTuple):
    """What `accept_draft` decided, one entry a row."""

    rejected: Tensor
    """(B,) bool: some open draft was rejected."""
    first: Tensor
    """(B,) int64: index in the window of the first rejection; W where there was none."""
    redrawn: Tensor
    """(B,) int64: the token drawn there instead; undefined where there was none."""


def residual(draft: Tensor, target: Tensor) -> Tensor:
    """max(0, q - p), unnormalised; the target itself where that has no mass by rounding.

    Args:
        draft, target: (..., V) log-probabilities, float64.

    Returns:
        (..., V) nonnegative weights of positive mass.
    """
    weights = (target.exp() - draft.exp()).clamp(min=0)
    return torch.where(weights.sum(-1, keepdim=True) > 0, weights, target.exp())


def first_rejection(
    draft: Tensor, target: Tensor, open_: Tensor, u_accept: Tensor
) -> tuple[Tensor, Tensor]:
    """Where u > q(y) / p(y) for the first time, from log p(y) and log q(y) of the drafted tokens.

    Args:
        draft, target: (B, W) nats, float64.
        open_: (B, W) bool, the places to verify.
        u_accept: (B, W) uniform numbers in (0, 1).

    Returns:
        (B,) bool, whether some open draft is rejected, and (B,) its index in the window.
    """
    reject = open_ & (u_accept.log() + draft > target)
    width = reject.shape[1]
    # `argmax` of a boolean is compiled wrongly by torch 2.11 on CPUs.
    first = torch.where(reject, torch.arange(width, device=reject.device), width).amin(dim=1)
    return first < width, first % width


def accept_draft(
    draft: Tensor,
    target: Tensor,
    tokens: Tensor,
    open_: Tensor,
    u_accept: Tensor,
    u_residual: Tensor,
) -> Verdict:
    """Verify the open places of each row's window, in order, up to the first rejection.

    Args:
        draft: (B, W, V) log p, the very distributions that `tokens` were drawn from; float64.
        target: (B, W, V) log q, float64.
        tokens: (B, W) drafted tokens.
        open_: (B, W) bool, the places to verify.
        u_accept: (B, W) uniform numbers in (0, 1).
        u_residual: (B,) uniform numbers in (0, 1).

    Returns:
        A `Verdict`; row by row, independent of the other rows.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    rejected, first = first_rejection(take(draft, tokens), take(target, tokens), open_, u_accept)
    redrawn = draw(residual(draft[rows, first], target[rows, first]), u_residual)
    return Verdict(rejected, torch.where(rejected, first, tokens.shape[1]), redrawn)
