"""Counter-based random numbers.

Every uniform number is a function of what it is for:

    u = hash(row seed, purpose, pass, round, place),

never of how many were drawn before it. A row of a batch therefore gets the same result alone, in
any batch and on any device, and two implementations of one sampler can be compared draw by draw.
The hash chains the finaliser of SplitMix64 (Steele, Lea & Flood 2014), a bijection of 64-bit
integers, over the counters.
"""

from enum import IntEnum

import torch
from torch import Tensor

from selfspec.checks import whole

__all__ = ["Purpose", "numbers", "row_seeds", "streams", "uniform"]


class Purpose(IntEnum):
    """What a number is drawn for."""

    ORDER = 1
    DRAFT = 2
    ACCEPT = 3
    RESIDUAL = 4
    COUNT = 5
    ESTIMATE = 6
    SELECT = 7
    REMASK = 8
    LENGTH = 100


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _absorb(state: Tensor, counter: Tensor | int) -> Tensor:
    if isinstance(counter, int):  # filled in on the device, which need not be waited for
        counter = torch.full((), counter, device=state.device)
    # counter + golden, of which no compiler makes an index: Triton's have 32 bits.
    counter = _GOLDEN - 1 - ~counter
    return _mix(state * _GOLDEN + _mix(counter))


def row_seeds(
    seed: int, rows: int, device: torch.device | str | None = None, first: int = 0
) -> Tensor:
    """One seed a row from the seed of a run: (rows,) int64; row r has the same seed in any run.

    Args:
        seed: of the run.
        rows: how many.
        device: where to put them.
        first: the number of the first row.

    Raises:
        ValueError: `seed` is no whole number, or has more than 64 bits.
    """
    seed = whole("seed", seed)
    numbers = torch.arange(first, first + rows)
    return _absorb(torch.full((rows,), seed, dtype=torch.int64), numbers).to(device)


def uniform(
    seeds: Tensor,
    purpose: Purpose,
    pass_index: Tensor | int,
    round_index: Tensor | int,
    places: Tensor,
) -> Tensor:
    """Uniform numbers in (0, 1), 52 random bits each.

    Args:
        seeds: (B,) int64, a seed a row.
        purpose: what they are for.
        pass_index: (B,) int64 or int, the trunk pass of the row.
        round_index: (B,) int64 or int, the round within the pass.
        places: (B, W) int64, any further counter: a place of the order or a position.

    Returns:
        (B, W) float64.
    """
    state = _absorb(_absorb(_absorb(seeds, int(purpose)), pass_index), round_index)
    return numbers(state.unsqueeze(1), places)


def streams(seeds: Tensor, purpose: Purpose, pass_index: Tensor, rounds: int) -> Tensor:
    """What `numbers` takes for each of the first rounds of a pass: (B, rounds) int64."""
    state = _absorb(_absorb(seeds, int(purpose)), pass_index).unsqueeze(1)
    return _absorb(state, torch.arange(rounds, device=seeds.device))


def numbers(stream: Tensor, places: Tensor | int) -> Tensor:
    """Uniform numbers of streams (B, R) at places that fit: float64."""
    return (_shift(_absorb(stream, places), 12).double() + 0.5) * 2.0**-52
