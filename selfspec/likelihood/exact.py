"""log p(x | σ) of a sampler, exactly, for orders that are fixed in advance.

Averaged over orders it is a lower bound of log p(x):

    log p(x) = log E_σ p(x | σ) ≥ E_σ log p(x | σ).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.inputs import check_model, check_tokens, mask_of
from selfspec.likelihood.chains import ancestral_chain, chain
from selfspec.likelihood.tables import Scores, draw_order, encoded, generated, score_pass, scores
from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.orders import Order, as_order
from selfspec.schedules import (
    USUAL_ROUNDS,
    CosineSchedule,
    Schedule,
    ScheduleWindow,
    Window,
    as_window,
)

__all__ = ["ELBO", "ancestral_log_likelihood", "elbo", "log_likelihood", "one_pass_score"]


class ELBO(NamedTuple):
    """A mean over orders with its standard error, (B,) nats each."""

    mean: Tensor
    standard_error: Tensor


def log_likelihood(
    model: SSMD,
    tokens: Tensor,
    order: Order | None = None,
    window: Window | int | None = None,
    rounds: int = USUAL_ROUNDS,
    pad: Tensor | None = None,
    observed: Tensor | None = None,
    seeds: Tensor | int = 0,
    **options: Any,
) -> Tensor:
    """Exact log p(x | σ) of the sampler with these settings, for a σ drawn from the seeds.

    This is the distribution of `SpeculativeSampler`. With `rounds=0` it is that of
    `FixedCountSampler` (window: a `ScheduleWindow`) and of `AnyOrderSampler` (window:
    `ConstantWindow(1)`).

    Args:
        model: an `SSMD`; with a head unless `rounds` is 0.
        tokens: (B, L) complete sequences.
        order: a rule that is fixed in advance; uniform by default.
        window: W, or a constant number of tokens; `LinearWindow(0.045)` by default, as for
            `SpeculativeSampler`.
        rounds: R; 0 for plain sampling with the counts of `window`.
        pad: (B, L) bool, True at pads.
        observed: (B, L) bool, True at given tokens: the result is then conditional on them.
        seeds: (B,) int64, or one; the same seeds give the σ that a sampler would draw.
        **options: `temperature`, `top_p`, `batch_size`, `watch`, as in `scores`.

    Returns:
        (B,) nats, at most 0.

    Raises:
        ValueError: an order that is re-chosen between passes, `rounds` above 0 without a head, a
            `window` below 1, tokens outside the vocabulary, or a wrong shape or type.
    """
    check_rounds(model, rounds)
    widths = as_window(window)  # raises on bad values
    table = _table(model, tokens, order, pad, observed, seeds, **options)
    return chain(table, widths, rounds)


def ancestral_log_likelihood(
    model: SSMD,
    tokens: Tensor,
    order: Order | None = None,
    schedule: Schedule | None = None,
    steps: int = 16,
    pad: Tensor | None = None,
    observed: Tensor | None = None,
    seeds: Tensor | int = 0,
    **options: Any,
) -> Tensor:
    """Exact log p(x | σ) of `AncestralSampler`, over all numbers of tokens that its steps reveal.

    Args:
        model, tokens, order, pad, observed, seeds, **options: as in `log_likelihood`.
        schedule: the masked share at a time; cosine by default.
        steps: K ≥ 1.

    Returns:
        (B,) nats, at most 0.

    Raises:
        ValueError: `steps` below 1, or as `log_likelihood`.
    """
    settings = ScheduleWindow(schedule or CosineSchedule(), steps)  # raises on bad values
    table = _table(model, tokens, order, pad, observed, seeds, **options)
    return ancestral_chain(table, settings.schedule, settings.steps)


def elbo(model: SSMD, tokens: Tensor, orders: int = 8, seed: int = 0, **settings: Any) -> ELBO:
    """E_σ log p(x | σ), a lower bound of log p(x), by Monte Carlo over `orders` ≥ 2 orders.

    Args:
        model, tokens, **settings: as in `log_likelihood`.
        orders: how many σ to draw.
        seed: of the run; every order of every row has a seed of its own.

    Raises:
        ValueError: `orders` below 2, or as `log_likelihood`.
    """
    whole("orders", orders, least=2)
    seeds = row_seeds(seed, len(tokens) * orders).view(len(tokens), orders)
    draws = torch.stack(
        [log_likelihood(model, tokens, seeds=own, **settings) for own in seeds.unbind(1)]
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
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """Σ_{d ≥ observed} log q(d, x_σ(d)) from a single trunk pass: (B,) nats.

    The joint distribution of the target given the observed tokens. It is exactly that of one trunk
    pass with an unbounded window and at least as many rounds as tokens, and not that of the sampler
    at other settings. For a model without head the draft is used instead of the target. Arguments
    and errors as in `log_likelihood`.
    """
    pad = mask_of("pad", pad, tokens)
    check_tokens(model, tokens, pad, False, mask_of("observed", observed, tokens))
    sigma, first = draw_order(as_order(order), tokens, seeds, pad, observed)
    hidden = encoded(model, tokens, sigma, first, pad)
    logq = score_pass(model, hidden, tokens, sigma, first, pad, temperature, top_p)[1]
    return torch.where(generated(sigma, first, pad), logq, 0.0).sum(1)


def check_rounds(model: SSMD, rounds: int) -> None:
    """Raises a `ValueError` unless the model can do so many rounds."""
    check_model(model)
    if whole("rounds", rounds) < 0 or (rounds and model.head is None):
        raise ValueError(f"`rounds` must be at least 0, and 0 without a head, got {rounds}")


def _table(
    model: SSMD,
    tokens: Tensor,
    order: Order | None,
    pad: Tensor | None,
    observed: Tensor | None,
    seeds: Tensor | int,
    **options: Any,
) -> Scores:
    """The scores along a σ drawn from the seeds."""
    pad = mask_of("pad", pad, tokens)
    check_tokens(model, tokens, pad, False, mask_of("observed", observed, tokens))
    sigma, first = draw_order(as_order(order), tokens, seeds, pad, observed)
    return scores(model, tokens, sigma, first, pad, **options)
