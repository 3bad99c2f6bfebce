"""Categorical laws that are never written out in float64.

With logits z (as the network made them), the largest of them m, and a temperature T a row,

    log p(v) = (z_v - m) / T - log Z,   log Z = log Σ_v exp((z_v - m) / T),

and only what is asked for is computed: log p of given tokens, the whole law at one place a row, and
exact draws by inversion (`ops.draw`). For a large vocabulary a draw has two steps, first the chunk
of tokens that holds it, then the token: one pass over the logits, no table of V partial sums.

All is in float64 but the exponentials of half-precision and float32 logits, V a place: those are in
float32, right to about 1e-5 of themselves at any T, as m is subtracted first. They are added up in
float64; where V is large and the logits are in half precision, chunks of them in float32, which
moves log Z by less than 1e-6. What is cut off is below 1e-38, where float32 noise cuts off at 1e-7.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from selfspec.ops import outside, take

__all__ = ["Law", "draw_of", "law_of", "log_probs_of"]

CHUNK = 256
SMALL = 1024
"""Vocabularies up to this size are drawn from in one step."""


class Law(NamedTuple):
    """Laws at W places of B rows."""

    logits: Tensor
    """(B, W, V); -inf outside the nucleus."""
    top: Tensor
    """(B, W) m, of the type of the logits."""
    mass: Tensor
    """(B, W, C) float64: Z · p of C chunks of tokens, one chunk where V is small."""
    log_z: Tensor
    """(B, W) float64."""
    temperature: Tensor
    """(B,) float64."""

    def of(self, tokens: Tensor) -> Tensor:
        """Log p of `tokens` (B, W): (B, W) nats, float64."""
        below = take(self.logits, tokens).double() - self.top.double()
        return below / self.temperature.unsqueeze(1) - self.log_z

    def at(self, column: Tensor) -> Tensor:
        """The law at one place a row, (B,) columns: (B, V) nats, float64."""
        rows = torch.arange(len(column), device=column.device)
        top, log_z = (x[rows, column].double().unsqueeze(1) for x in (self.top, self.log_z))
        below = self.logits[rows, column].double() - top
        return below / self.temperature.unsqueeze(1) - log_z

    def draw(self, u: Tensor) -> Tensor:
        """Tokens (B, W) from uniform numbers (B, W); a token of probability zero is never drawn."""
        return draw_of(self.logits, u, self._weights, self.mass)

    def _weights(self, logits: Tensor) -> Tensor:
        """Z · p."""
        return _scaled(logits, self.top, self.temperature).exp().double()


def law_of(logits: Tensor, temperature: Tensor, top_p: Tensor | None = None) -> Law:
    """The law of logits (B, W, V) at a temperature (B,), within a nucleus (B,) if one is given."""
    logits, top = _prepared(logits, temperature, top_p)
    # Few numbers are converted then, and half-precision logits are no better.
    add = torch.float32 if logits.dtype.itemsize < 4 else torch.float64
    mass = _masses(_scaled(logits, top, temperature).exp(), add)
    return Law(logits, top, mass, mass.sum(-1).log(), temperature)


def log_probs_of(logits: Tensor, temperature: Tensor, top_p: Tensor | None = None) -> Tensor:
    """The law written out, (B, W, V) nats, in float32 at least: for what only reads it."""
    logits, top = _prepared(logits, temperature, top_p)
    return _scaled(logits, top, temperature).log_softmax(-1)


def _prepared(logits: Tensor, temperature: Tensor, top_p: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits, -inf outside the nucleus, and their largest."""
    top = logits.amax(-1)
    if top_p is None:
        return logits, top
    logp = _scaled(logits.double(), top, temperature).log_softmax(-1)
    limit = torch.where(top_p < 1, top_p, torch.inf)[:, None, None]
    return logits.masked_fill(outside(logp, limit), -torch.inf), top


def _scaled(logits: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """(z - m) / T of (B, W, ...), in float32 at least."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    range_ = torch.finfo(dtype)
    divisor = temperature.clamp(range_.tiny, range_.max)[:, None, None].to(dtype)
    return (logits.to(dtype) - top.unsqueeze(-1).to(dtype)) / divisor


def draw_of(
    x: Tensor,
    u: Tensor,
    weights: Callable[[Tensor], Tensor] = lambda x: x,
    mass: Tensor | None = None,
) -> Tensor:
    """The draw of `ops.draw(weights(x), u)`, in two steps where V is large.

    Args:
        x: (..., V).
        u: (...) float64 in (0, 1).
        weights: gives each entry of (..., n), independent of the others, a weight in float64;
            compiled, the V weights are not written out.
        mass: (..., C) the weights of the chunks, if they are known.

    Returns:
        (...) int64. In exact arithmetic that of `ops.draw`; of positive weight, whatever rounding
        does and in whatever order the device adds.
    """
    size = x.shape[-1]
    if size <= SMALL:
        cdf, total = _cumulated(weights(x))
        return _first_above(cdf, u * total)
    mass = _masses(weights(x), torch.float64) if mass is None else mass
    cdf, total = _cumulated(mass)
    goal = u * total
    chunk = _first_above(cdf, goal)
    tokens = chunk.unsqueeze(-1) * CHUNK + torch.arange(CHUNK, device=u.device)
    part = weights(x.gather(-1, tokens.clamp(max=size - 1)))
    inner, total = _cumulated(torch.where(tokens < size, part, 0.0))
    # Rounding may make the mass of a chunk another, and put the goal a little outside of it.
    held = take(mass, chunk)
    goal = (goal - (take(cdf, chunk) - held)) * (total / held)
    goal = torch.minimum(goal.clamp(min=0), total * (1 - 2.0**-52))
    return chunk * CHUNK + _first_above(inner, goal)


def _masses(weights: Tensor, add: torch.dtype) -> Tensor:
    """(..., V) → (..., C) float64; a chunk of a large V is added up in the type `add`."""
    size = weights.shape[-1]
    if size <= SMALL:
        return weights.sum(-1, keepdim=True, dtype=torch.float64)
    whole = size - size % CHUNK
    chunks = weights[..., :whole].unflatten(-1, (-1, CHUNK)).sum(-1, dtype=add)
    rest = weights[..., whole:].sum(-1, keepdim=True, dtype=add)
    return torch.cat([chunks, rest], -1).double()


def _cumulated(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Partial sums of (..., n), 0 where the weight is 0, so that no goal is below; and the last.

    A device may add in another order for each sum, so that they need not grow.
    """
    sums = torch.where(weights > 0, weights.cumsum(-1), 0.0)
    return sums, sums.amax(-1)


def _first_above(sums: Tensor, goal: Tensor) -> Tensor:
    """The first of (..., n) above (...), which some are."""
    index = torch.arange(sums.shape[-1], device=sums.device)
    return torch.where(sums > goal.unsqueeze(-1), index, len(index) - 1).amin(-1)
