"""The order σ in which positions are revealed.

σ always begins with the observed tokens and ends with the pads; a rule orders what lies between,
the places to generate. It sees positions and random numbers only, never tokens, so each pass
follows its law exactly, given the order.

A rule that is **fixed** in advance draws σ once. One that is not draws the rest of σ anew before
every trunk pass, for the places still masked: then the state of the sampler is no longer a count,
and `likelihood.log_likelihood` does not apply (`estimate_log_likelihood` does). Rules that read
the draft distributions too are in `selection`.

**Spaced orders.** Neighbouring positions depend on each other most. An order that keeps the
positions of one window apart makes a factorised draft a better approximation (the idea of dilated
scheduling, Luxembourg et al. 2025, arXiv 2506.19037).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from selfspec.noise import Purpose, uniform
from selfspec.ops import inverse_order

__all__ = [
    "Order",
    "RespacedOrder",
    "UniformOrder",
    "VanDerCorputOrder",
    "as_order",
    "initial_order",
    "rearranged",
    "rotated_ranks",
    "same_rule",
]


@runtime_checkable
class Order(Protocol):
    """A rule that orders the places to generate."""

    fixed: ClassVar[bool]
    """Whether σ is drawn once, in advance."""

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        """Sort keys of the masked positions, smaller is revealed earlier.

        Args:
            masked: (B, L) bool, the positions to order.
            window: (B,) int64, how many of them the coming pass may reveal; 1 for a fixed rule,
                whose σ is the same for all windows.
            u: (B, L) uniform numbers in (0, 1), one a position.
            u_row: (B, 1) one more for the row.

        Returns:
            (B, L) float64 in [0, 1); only the entries at masked positions count.
        """
        ...


@dataclass(frozen=True, eq=False)
class UniformOrder:
    """Every order equally likely, as in Campbell et al. 2025 (arXiv 2510.03929)."""

    fixed: ClassVar[bool] = True

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        """The random numbers themselves."""
        return u


def as_order(order: Order | None) -> Order:
    """A rule; None stands for the uniform one.

    Raises:
        ValueError: no rule.
    """
    if order is None:
        return UniformOrder()
    if isinstance(order, type) or not isinstance(order, Order):
        raise ValueError(f"`order` must be a rule, such as UniformOrder(), got {order!r}")
    return order


def same_rule(one: Any, other: Any) -> bool:
    """Whether two rules are surely the same; fields may be such as cannot be compared, tensors."""
    try:
        return one is other or (type(one) is type(other) and vars(one) == vars(other))
    except (RuntimeError, TypeError, ValueError):
        return False


@dataclass(frozen=True, eq=False)
class VanDerCorputOrder:
    """Spaced and fixed in advance: the van der Corput sequence with a random shift.

    With n = 2^m masked positions, the k-th to be revealed is the one whose rank, rotated by a
    uniform shift, is k with its m bits reversed: any 2^j consecutive ones fall into different
    cells of n/2^j ranks. For other n, the order is that of the next power of two without the
    missing ranks.
    """

    fixed: ClassVar[bool] = True

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        """Bit-reversed rotated ranks."""
        return _bits_reversed(rotated_ranks(masked, u_row), masked.shape[1])


@dataclass(frozen=True, eq=False)
class RespacedOrder:
    """Spaced anew before every pass over the places still masked.

    With n masked positions and a window of w, they are cut into w cells of n/w each, from a random
    offset, and the first of every cell is taken, cell after cell in van der Corput's order: what a
    rejection leaves of a pass is spaced too. Then come the others in random order. Where w does not
    divide n, cells differ by one: a stride of ⌊n/w⌋ throughout would leave out up to w - 1 places
    in a row.
    """

    fixed: ClassVar[bool] = False

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        """Half the bit-reversed cell for the w chosen positions, (1 + u)/2 for the others."""
        count, window = masked.sum(dim=1, keepdim=True).clamp(min=1), window.unsqueeze(1)
        # With each rank, rank · w/n grows by at most one: a cell begins where it passes a number.
        share = rotated_ranks(masked, u_row) * window
        first = _bits_reversed(share // count, masked.shape[1])
        return torch.where(share % count < window, first, 1 + u) / 2


def _bits_reversed(x: Tensor, size: int) -> Tensor:
    """Integers in 0..size-1 with their bits reversed, as fractions in [0, 1), float64."""
    bits = max(1, (size - 1).bit_length())
    reversed_ = torch.zeros_like(x)
    for bit in range(bits):
        reversed_ |= ((x >> bit) & 1) << (bits - 1 - bit)
    return reversed_.double() / 2**bits


def rotated_ranks(masked: Tensor, u_row: Tensor) -> Tensor:
    """Rank of each masked position among the masked, rotated by a uniform offset: (B, L) int64."""
    count = masked.sum(dim=1, keepdim=True)
    return (masked.long().cumsum(dim=1) - 1 + (u_row * count).long()) % count.clamp(min=1)


def initial_order(rule: Order, masked: Tensor, pad: Tensor, seeds: Tensor) -> Tensor:
    """σ before the first pass: observed tokens in random order, places to generate, pads.

    Args:
        rule: orders the places to generate, if it is fixed in advance; else they are in uniform
            order, until the first pass rearranges them.
        masked, pad: (B, L) bool; positions that are neither are observed.
        seeds: (B,) int64.

    Returns:
        (B, L) int64.
    """
    u, u_row = _noise(seeds, masked.shape[1], torch.zeros_like(seeds))
    rule = rule if rule.fixed else UniformOrder()
    keys = torch.where(masked, 1 + rule.keys(masked, torch.ones_like(seeds), u, u_row), u)
    return torch.where(pad, 3.0, keys).argsort(dim=1, stable=True)


def rearranged(
    rule: Order,
    order: Tensor,
    revealed: Tensor,
    end: Tensor,
    window: Tensor,
    seeds: Tensor,
    pass_index: Tensor,
) -> Tensor:
    """σ before a later pass: places below `revealed` and from `end` on are kept.

    Args:
        rule: orders the places that are still masked.
        order: (B, L) σ before the previous pass.
        revealed, end: (B,) first masked place, first pad place.
        window: (B,) of the coming pass.
        seeds, pass_index: (B,) int64, key the draws.

    Returns:
        (B, L) int64.
    """
    place = inverse_order(order)
    masked = (place >= revealed.unsqueeze(1)) & (place < end.unsqueeze(1))
    u, u_row = _noise(seeds, order.shape[1], pass_index)
    # Keys in [revealed, revealed + 1) stand behind the revealed places and before the pads.
    keys = revealed.unsqueeze(1) + rule.keys(masked, window, u, u_row)
    return torch.where(masked, keys, place.double()).argsort(dim=1, stable=True)


def _noise(seeds: Tensor, length: int, pass_index: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) numbers keyed by position and (B, 1) keyed by the row alone."""
    positions = torch.arange(-1, length, device=seeds.device).expand(len(seeds), -1)
    u = uniform(seeds, Purpose.ORDER, pass_index, 0, positions)
    return u[:, 1:], u[:, :1]
