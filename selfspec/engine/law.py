"""Categorical laws that are never written out in float64.

With logits z (as the network made them), the largest of them m, and a temperature T a row,

    log p(v) = (z_v - m) / T - log Z,   log Z = log Σ_v exp((z_v - m) / T),

and only what is asked for is computed: log p of given tokens, and exact draws by inversion
(`ops.draw`), from a law or from what a target has more than its draft. Large vocabularies are gone
through by chunks c of tokens, each below its own largest logit m_c, so that one pass is enough:

    Z = Σ_c exp((m_c - m) / T) Σ_{v in c} exp((z_v - m_c) / T).

A draw then has two steps, first a span of chunks, then the token: no table of V partial sums.

All is in float64 but the exponentials of half-precision and float32 logits, V a place: those are in
float32, right to about 1e-5 of themselves at any T, as m is subtracted first. They are added up in
float64; where V is large and the logits are in half precision, chunks of them in float32, which
moves log Z by less than 1e-6. What is cut off is below 1e-38, where float32 noise cuts off at 1e-7.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec.ops import outside, take

__all__ = ["Law", "draw_of", "law_of", "log_probs_of", "residual_draw"]

CHUNK = 64
"""What the compiler holds in registers; a longer chunk is read twice, for m_c and for its sum."""
SPAN = 4 * CHUNK
"""A draw first decides between spans of tokens: fewer than chunks, as scans are dear."""
SMALL = 1024
"""Vocabularies up to this size are one chunk."""


class Law(NamedTuple):
    """Laws at W places of B rows."""

    logits: Tensor
    """(B, W, V); -inf outside the nucleus."""
    top: Tensor
    """(B, W) m, of the type of the logits."""
    mass: Tensor
    """(B, W, S) float64: Z · p of spans of tokens, one where V is small."""
    log_z: Tensor
    """(B, W) float64."""
    temperature: Tensor
    """(B,) float64."""

    def of(self, tokens: Tensor) -> Tensor:
        """Log p of `tokens` (B, W): (B, W) nats, float64."""
        below = take(self.logits, tokens).double() - self.top.double()
        return below / self.temperature.unsqueeze(1) - self.log_z

    def at(self, column: Tensor) -> "Law":
        """The law at one place a row, (B,) columns: W = 1."""
        rows = torch.arange(len(column), device=column.device)
        logits, top, mass, log_z = (part[rows, column].unsqueeze(1) for part in self[:-1])
        return Law(logits, top, mass, log_z, self.temperature)

    def draw(self, u: Tensor) -> Tensor:
        """Tokens (B, W) from uniform numbers (B, W); a token of probability zero is never drawn."""
        return draw_of([self.logits], u, self.weights, self.mass)

    def weights(self, logits: Tensor) -> Tensor:
        """Z · p of some of the law's logits, (B, W, ...): float64."""
        top = self.top[(..., *[None] * (logits.dim() - 3))]
        return _exponentials(logits, top, self.temperature).double()

    def probs(self, logits: Tensor) -> Tensor:
        """The p of some of the law's logits, (B, W, ...): float64."""
        return self.weights(logits) * (-self.log_z).exp()[(..., *[None] * (logits.dim() - 2))]


def law_of(logits: Tensor, temperature: Tensor, top_p: Tensor | None = None) -> Law:
    """The law of logits (B, W, V) at a temperature (B,), within a nucleus (B,) if one is given."""
    if top_p is not None:
        logits = _in_nucleus(logits, temperature, top_p)
    large = logits.shape[-1] > SMALL
    # Few numbers are converted then, and half-precision logits are no better.
    add = torch.float32 if large and logits.dtype.itemsize < 4 else torch.float64
    # A chunk may be all -inf; a row may not, and then is no number.
    lowest = torch.finfo(logits.dtype).min if large else -torch.inf
    tops, sums = [], []
    for chunks in _by_chunks(logits):
        tops.append(chunks.amax(-1))
        below = _exponentials(chunks, tops[-1].clamp(min=lowest), temperature)
        sums.append(below.sum(-1, dtype=add))
    highest = torch.cat(tops, -1)
    top = highest.amax(-1)
    mass = torch.cat(sums, -1).double()
    if large:
        mass = _spans(mass * _exponentials(highest, top, temperature))
    return Law(logits, top, mass, mass.sum(-1).log(), temperature)


def residual_draw(draft: Law, target: Law, u: Tensor) -> Tensor:
    """Tokens (B, W) of the law of `verification.residual`, from uniform numbers (B, W).

    Its weights, V a place, are not written out.
    """

    def more(q: Tensor, p: Tensor) -> Tensor:
        return (target.probs(q) - draft.probs(p)).clamp(min=0)

    parts = zip(_by_chunks(target.logits), _by_chunks(draft.logits), strict=True)
    mass = _spans(torch.cat([more(q, p).sum(-1) for q, p in parts], -1))
    some = mass.sum(-1, keepdim=True) > 0
    mass = torch.where(some, mass, target.mass)

    def weights(q: Tensor, p: Tensor) -> Tensor:
        return torch.where(some, more(q, p), target.weights(q))

    return draw_of([target.logits, draft.logits], u, weights, mass)


def log_probs_of(logits: Tensor, temperature: Tensor, top_p: Tensor | None = None) -> Tensor:
    """The law written out, (B, W, V) nats, in float32 at least: for what only reads it."""
    if top_p is not None:
        logits = _in_nucleus(logits, temperature, top_p)
    return _scaled(logits, temperature).log_softmax(-1)


def _in_nucleus(logits: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """The logits, -inf outside the nucleus."""
    logp = _scaled(logits.double(), temperature).log_softmax(-1)
    limit = torch.where(top_p < 1, top_p, torch.inf)[:, None, None]
    return logits.masked_fill(outside(logp, limit), -torch.inf)


def _scaled(logits: Tensor, temperature: Tensor) -> Tensor:
    """(z - m) / T of (B, W, V), in float32 at least."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    range_ = torch.finfo(dtype)
    divisor = temperature.clamp(range_.tiny, range_.max)[:, None, None].to(dtype)
    return (logits.to(dtype) - logits.amax(-1, keepdim=True).to(dtype)) / divisor


def _exponentials(logits: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """exp((z - m) / T) of logits (B, ..., n) and m (B, ...), in float32 at least.

    A power of two, and by a product, as instructions bound its speed on a GPU; in place, as fresh
    memory does on a CPU.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    tiny = torch.finfo(dtype).tiny
    rate = (temperature * math.log(2)).to(dtype).clamp(tiny, 1 / tiny).reciprocal()
    below = logits.to(dtype, copy=True).sub_(top.unsqueeze(-1).to(dtype))
    return below.mul_(rate[(..., *[None] * (logits.dim() - 1))]).exp2_()


def draw_of(
    x: Sequence[Tensor],
    u: Tensor,
    weights: Callable[..., Tensor] = lambda x: x,
    mass: Tensor | None = None,
) -> Tensor:
    """The draw of `ops.draw(weights(*x), u)`, in two steps where V is large.

    Args:
        x: each (..., V).
        u: (...) float64 in (0, 1).
        weights: gives each entry of (..., n), independent of the others, a weight in float64;
            compiled, the V weights are not written out.
        mass: (..., S) the weights of the spans, if they are known.

    Returns:
        (...) int64. In exact arithmetic that of `ops.draw`; of positive weight, whatever rounding
        does and in whatever order the device adds. Without a weight that is a number: V - 1.
    """
    size = x[0].shape[-1]
    if size <= SMALL:
        cdf, total = _cumulated(weights(*x))
        return _first_above(cdf, u * total)
    if mass is None:
        mass = _spans(torch.cat([chunks.sum(-1) for chunks in _by_chunks(weights(*x))], -1))
    cdf, total = _cumulated(mass)
    goal = u * total
    span = _first_above(cdf, goal)
    tokens = span.unsqueeze(-1) * SPAN + torch.arange(SPAN, device=u.device)
    inside = tokens.clamp(max=size - 1)
    part = weights(*(each.gather(-1, inside) for each in x))
    inner, total = _cumulated(torch.where(tokens < size, part, 0.0))
    # Rounding may make the mass of a span another, and put the goal a little outside of it.
    held = take(mass, span)
    goal = (goal - (take(cdf, span) - held)) * (total / held)
    goal = torch.minimum(goal.clamp(min=0), total * (1 - 2.0**-52))
    # Nor are weights that are NaN, or now round to nothing, to lead out of the vocabulary.
    return (span * SPAN + _first_above(inner, goal)).clamp(max=size - 1)


def _by_chunks(x: Tensor) -> list[Tensor]:
    """(..., V) as parts (..., C, n), whose C chunks follow one another; the last may be shorter."""
    size = x.shape[-1]
    if size <= SMALL:
        return [x.unsqueeze(-2)]
    whole = size - size % CHUNK
    parts = [x[..., :whole].unflatten(-1, (-1, CHUNK)), x[..., whole:].unsqueeze(-2)]
    return parts if whole < size else parts[:1]


def _spans(chunks: Tensor) -> Tensor:
    """The masses of chunks, (..., C), as those of spans of chunks, (..., S)."""
    count = SPAN // CHUNK
    if chunks.shape[-1] == 1:
        return chunks
    return F.pad(chunks, (0, -chunks.shape[-1] % count)).unflatten(-1, (-1, count)).sum(-1)


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
