"""Exact likelihood of what the samplers do.

The target moves when i does, so where a rejection fell is part of the probability. For a fixed
order σ and places counted from 0, write for d ≥ i

    a_i(d) = min(p_i, q_i)(d, x_σ(d)),      b_i(d) = max(0, q_i - p_i)(d, x_σ(d)),

the probabilities that x_σ(d) is drafted and accepted, and that it is redrawn after a rejection. One
pass that starts with i revealed tokens ends with j revealed, all of them those of x, with
probability K_i(j). With a window of W(i) and R rounds, A(j) the probability that a round ended in a
rejection just below j (A(i) = 1 before the first), each round computes

    B = 0;  for d = i, …, i+W(i)-1:   B ← B + A(d);  A'(d+1) = B · b_i(d);  B ← B · a_i(d)

then K_i(i+W) += B + A'(i+W), and A ← A' without its last entry; what is left in A after R rounds
goes to K_i. Then P(j) = Σ_i P(i) K_i(j) from P(observed) = 1, and p(x | σ) = P(end). For R = 0 the
drafts stand unverified, which is plain sampling: K_i(i+W) = Π p_i(d, x_σ(d)).

All of it in log space and float64. Averaged over orders, log p(x | σ) is a lower bound of log p(x).
The recursion is this project's; for R = 1 and an unbounded window it is equation 12 of Campbell et
al. 2025 (arXiv 2510.03929). It needs σ fixed in advance; for orders that are re-chosen between
passes the state is no count, and `estimate_log_likelihood` applies.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.noise import Purpose, row_seeds, uniform
from selfspec.ops import draw, inverse_order, log_probs, take
from selfspec.orders import Order, UniformOrder, initial_order, rearranged
from selfspec.schedules import UnboundedWindow, Window

__all__ = [
    "ELBO",
    "Scores",
    "chain",
    "draw_order",
    "elbo",
    "estimate_log_likelihood",
    "log_likelihood",
    "one_pass_score",
    "scores",
    "transition",
]


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


class ELBO(NamedTuple):
    """A mean over orders with its standard error, (B,) nats each."""

    mean: Tensor
    standard_error: Tensor


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
        ValueError: the rule re-chooses the order between passes.
    """
    if not rule.fixed:
        raise ValueError(
            f"`order` must be fixed in advance, got {type(rule).__name__}, which is re-chosen "
            "between passes: use `estimate_log_likelihood`"
        )
    pad, observed = _masks(tokens, pad, observed)
    masked = ~(pad | observed)
    window = torch.ones_like(masked[:, 0], dtype=torch.int64)
    order = initial_order(rule, masked, pad, window, _seeds(seeds, tokens))
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
    """
    size, length = tokens.shape
    pad, _ = _masks(tokens, pad, None)
    end = (~pad).sum(1)
    first = torch.zeros_like(end) if first is None else first
    shape = (2, size, length, length)
    table = torch.full(shape, -torch.inf, dtype=torch.float64, device=tokens.device)
    places = torch.arange(length, device=tokens.device)
    jobs = ((places >= first.unsqueeze(1)) & (places < end.unsqueeze(1))).nonzero()
    for row, i in (chunk.T for chunk in jobs.split(batch_size)):
        logp = _score_pass(model, tokens[row], order[row], i, pad[row], temperature, top_p)
        table[:, row, i] = logp
    return Scores(table[0], table[1], first, end)


def transition(draft: Tensor, target: Tensor, window: Tensor, rounds: int) -> Tensor:
    """log K_i(i + w) for w = 0..W: one pass, in window coordinates.

    Args:
        draft, target: (..., W) log p_i and log q_i at places i, i+1, …; tied at the first.
        window: (...) int64 in 1..W.
        rounds: R; 0 for unverified drafts.

    Returns:
        (..., W + 1); entry w is the log-probability that the pass reveals exactly w tokens, all
        those of x.
    """
    size = draft.shape[-1]
    kernel = draft.new_full((*draft.shape[:-1], size + 1), -torch.inf)
    last = window.unsqueeze(-1)
    if rounds == 0:
        return kernel.scatter(-1, last, draft.cumsum(-1).gather(-1, last - 1))
    log_a = torch.minimum(draft, target)
    log_b = _log_difference(target, draft)
    ended = kernel.clone()
    ended[..., 0] = 0
    for _ in range(rounds):
        running, rejected = kernel[..., 0].clone(), torch.full_like(kernel, -torch.inf)
        for w in range(size):
            running = torch.logaddexp(running, ended[..., w])
            rejected[..., w + 1] = running + log_b[..., w]
            running = running + log_a[..., w]
            done = torch.logaddexp(
                kernel[..., w + 1], torch.logaddexp(running, rejected[..., w + 1])
            )
            stops = window == w + 1
            kernel[..., w + 1] = torch.where(stops, done, kernel[..., w + 1])
            rejected[..., w + 1].masked_fill_(stops, -torch.inf)
            running = running.masked_fill(stops, -torch.inf)
        ended = rejected
    return torch.logaddexp(kernel, ended)


def chain(table: Scores, window: Window, rounds: int) -> Tensor:
    """log p(x | σ) from the scores of every pass: (B,) nats.

    Args:
        table: from `scores`.
        window: W, on the number of tokens generated so far.
        rounds: R; 0 for plain sampling with the counts of `window` (a `ScheduleWindow`, say).
    """
    size, length = table.draft.shape[:2]
    device = table.draft.device
    windows = torch.ones(size, length, dtype=torch.int64)
    for row, (first, end) in enumerate(
        zip(table.observed.tolist(), table.end.tolist(), strict=True)
    ):
        if first < end:
            windows[row, first:end] = torch.from_numpy(window.table(end - first))
    widest = int(windows.max())
    ahead = torch.arange(length, device=device).unsqueeze(1) + torch.arange(widest, device=device)
    inside = (ahead < length).expand(size, -1, -1)
    index = ahead.clamp(max=length - 1).expand(size, -1, -1)
    draft, target = (
        t.gather(2, index).masked_fill(~inside, -torch.inf) for t in (table.draft, table.target)
    )
    kernel = transition(draft, target, windows.to(device), rounds)
    logp = kernel.new_full((size, length + widest + 1), -torch.inf)
    logp.scatter_(1, table.observed.unsqueeze(1), 0.0)
    for i in range(length):
        reached = logp[:, i : i + 1] + kernel[:, i]
        logp[:, i + 1 : i + widest + 1] = torch.logaddexp(
            logp[:, i + 1 : i + widest + 1], reached[:, 1:]
        )
    return logp.gather(1, table.end.unsqueeze(1)).squeeze(1)


def log_likelihood(
    model: SSMD,
    tokens: Tensor,
    order: Order | None = None,
    window: Window | None = None,
    rounds: int = 4,
    pad: Tensor | None = None,
    observed: Tensor | None = None,
    seeds: Tensor | int = 0,
    **options: float,
) -> Tensor:
    """Exact log p(x | σ) of the sampler with these settings, for a σ drawn from the seeds.

    Args:
        model: an `SSMD`; with a head unless `rounds` is 0.
        tokens: (B, L) complete sequences.
        order: a rule that is fixed in advance; uniform by default.
        window: W; unbounded by default.
        rounds: R; 0 for plain sampling with the counts of `window`.
        pad: (B, L) bool, True at pads.
        observed: (B, L) bool, True at given tokens: the result is then conditional on them.
        seeds: (B,) or one; the same seeds give the σ that a sampler would draw.
        **options: `temperature`, `top_p`, `batch_size`, as in `scores`.

    Returns:
        (B,) nats, at most 0.

    Raises:
        ValueError: a rule that is re-chosen between passes, `rounds` that the model cannot do, or
            tokens that it does not know.
    """
    _check(model, tokens, pad, rounds)
    sigma, first = draw_order(order or UniformOrder(), tokens, seeds, pad, observed)
    table = scores(model, tokens, sigma, first, pad, **options)  # type: ignore[arg-type]
    return chain(table, window or UnboundedWindow(), rounds)


def elbo(model: SSMD, tokens: Tensor, orders: int = 8, seed: int = 0, **settings) -> ELBO:
    """E_σ log p(x | σ), a lower bound of log p(x), by Monte Carlo over `orders` ≥ 2 orders.

    Args:
        model, tokens, **settings: as in `log_likelihood`.
        orders: how many σ to draw.
        seed: of the run.
    """
    if orders < 2:
        raise ValueError(f"`orders` must be at least 2, got {orders}")
    draws = torch.stack(
        [
            log_likelihood(model, tokens, seeds=row_seeds(seed + k, len(tokens)), **settings)
            for k in range(orders)
        ]
    )
    return ELBO(draws.mean(0), draws.std(0) / orders**0.5)


@torch.no_grad()
def one_pass_score(
    model: SSMD,
    tokens: Tensor,
    order: Order | None = None,
    pad: Tensor | None = None,
    observed: Tensor | None = None,
    seeds: Tensor | int = 0,
) -> Tensor:
    """Σ_{d ≥ observed} log q(d, x_σ(d)) from a single trunk pass: (B,) nats.

    The target's own joint law given the observed tokens: exactly the law of one trunk pass with an
    unbounded window and at least as many rounds as tokens; not the law of the sampler at other
    settings. Arguments as in `log_likelihood`.
    """
    _check(model, tokens, pad)
    sigma, first = draw_order(order or UniformOrder(), tokens, seeds, pad, observed)
    pad, _ = _masks(tokens, pad, None)
    logq = _score_pass(model, tokens, sigma, first, pad)[1]
    return logq.masked_fill(logq.isneginf() & ~_generated(sigma, first, pad), 0).sum(1)


@torch.no_grad()
def estimate_log_likelihood(
    model: SSMD,
    tokens: Tensor,
    order: Order,
    window: Window,
    rounds: int,
    pad: Tensor | None = None,
    observed: Tensor | None = None,
    seeds: Tensor | int = 0,
) -> Tensor:
    """Logarithm of an unbiased estimate of p(x), for any order rule: (B,) nats.

    Pass after pass: draw the order, let L_j be the probability that the pass reveals exactly x up
    to j; multiply the estimate by Σ_j L_j and go on from j ∝ L_j. By Jensen's inequality the
    logarithm is a stochastic lower bound of log p(x). Arguments as in `log_likelihood`.
    """
    _check(model, tokens, pad, rounds)
    pad, observed = _masks(tokens, pad, observed)
    masked, seeds = ~(pad | observed), _seeds(seeds, tokens)
    revealed, end = observed.sum(1), (~pad).sum(1)
    tables = [torch.from_numpy(window.table(n)).to(tokens.device) if n else None
              for n in (end - revealed).tolist()]  # fmt: skip
    sizes = _window_now(tables, revealed - observed.sum(1))
    sigma = initial_order(order, masked, pad, sizes, seeds)
    total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    for pass_index in range(tokens.shape[1]):
        open_ = revealed < end
        if not bool(open_.any()):
            break
        sizes = _window_now(tables, revealed - observed.sum(1))
        passes = torch.full_like(end, pass_index)
        if not order.fixed:
            sigma = rearranged(order, sigma, revealed, end, sizes, seeds, passes)
        logp = _score_pass(model, tokens, sigma, revealed, pad)
        ahead = revealed.unsqueeze(1) + torch.arange(int(sizes.max()), device=end.device)
        ahead = ahead.clamp(max=tokens.shape[1] - 1)
        kernel = transition(logp[0].gather(1, ahead), logp[1].gather(1, ahead), sizes, rounds)
        mass = kernel.logsumexp(1)
        total += torch.where(open_, mass, 0.0)
        u = uniform(seeds, Purpose.ESTIMATE, passes, 0, torch.zeros_like(end).unsqueeze(1))
        weights = (kernel - kernel.amax(1, keepdim=True)).exp().nan_to_num(1.0)
        revealed = torch.where(open_, revealed + draw(weights, u.squeeze(1)), revealed)
    return total


def _check(model: SSMD, tokens: Tensor, pad: Tensor | None, rounds: int = 0) -> None:
    """Complete sequences that the model can read, and rounds that it can do."""
    if rounds < 0 or (rounds and model.head is None):
        raise ValueError(f"`rounds` must be at least 0, and 0 without a head, got {rounds}")
    if tokens.shape[1] > model.length:
        raise ValueError(f"`tokens` may be at most {model.length} long, got {tokens.shape[1]}")
    unknown = (tokens < 0) | (tokens >= model.vocab_size)
    if pad is not None:
        unknown &= ~pad
    if bool(unknown.any()):
        raise ValueError(f"`tokens` must be in 0..{model.vocab_size - 1}, "
                         f"got {int(tokens[unknown][0])}")  # fmt: skip


def _score_pass(
    model: SSMD,
    tokens: Tensor,
    order: Tensor,
    revealed: Tensor,
    pad: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """(2, B, L) draft and target log-probabilities of x in σ order; -inf outside [i, end)."""
    hidden_places = inverse_order(order) >= revealed.unsqueeze(1)
    known = tokens.masked_fill(pad, 0)  # what stands there need not be in the vocabulary
    masked = torch.where(hidden_places & ~pad, model.mask_id, known)
    hidden = model.encode(masked, pad if bool(pad.any()) else None)
    logits = [model.draft(hidden, order)]
    if model.head is not None:
        logits.append(model.target(hidden, known, order, revealed))
    wanted = known.gather(1, order)
    logp = torch.stack([take(log_probs(x, temperature, top_p), wanted) for x in logits])
    logp = logp.expand(2, -1, -1)
    return logp.masked_fill(~_generated(order, revealed, pad), -torch.inf)


def _generated(order: Tensor, revealed: Tensor, pad: Tensor) -> Tensor:
    """(B, L) bool: places from `revealed` on that are not pads."""
    places = torch.arange(order.shape[1], device=order.device)
    return (places >= revealed.unsqueeze(1)) & ~pad.gather(1, order)


def _window_now(tables: list[Tensor | None], generated: Tensor) -> Tensor:
    sizes = [1 if t is None or k >= len(t) else int(t[k])
             for t, k in zip(tables, generated.tolist(), strict=True)]  # fmt: skip
    return torch.tensor(sizes, device=generated.device)


def _log_difference(larger: Tensor, smaller: Tensor) -> Tensor:
    """log max(0, e^larger - e^smaller) = larger + log(1 - e^(smaller - larger))."""
    gap = torch.where(larger > smaller, smaller - larger, torch.zeros_like(larger))
    return torch.where(larger > smaller, larger + torch.log1p(-gap.exp()), -torch.inf)


def _seeds(seeds: Tensor | int, tokens: Tensor) -> Tensor:
    if isinstance(seeds, int):
        seeds = row_seeds(seeds, len(tokens))
    return seeds.to(tokens.device)


def _masks(tokens: Tensor, pad: Tensor | None, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    none = torch.zeros_like(tokens, dtype=torch.bool)
    pad = none if pad is None else pad
    return pad, none if observed is None else observed & ~pad
