"""An unbiased estimate of p(x) for any rule of orders, also for those re-chosen between passes.

Pass after pass: draw the order, let L_j be the probability that the pass reveals exactly x up to j,

    p̂ ← p̂ · Σ_j L_j,    go on from j with probability L_j / Σ_j L_j.

Then E p̂ = p(x), and by Jensen's inequality E log p̂ ≤ log p(x).
"""

import torch
from torch import Tensor

from selfspec.inputs import check_tokens, mask_of, seeds_of
from selfspec.likelihood.chains import check_known, transition
from selfspec.likelihood.exact import check_rounds
from selfspec.likelihood.tables import encoded, score_pass
from selfspec.model import SSMD
from selfspec.noise import Purpose, uniform
from selfspec.ops import draw, log_probs
from selfspec.orders import Order, as_order, initial_order, rearranged
from selfspec.schedules import Window, as_window, stacked_tables
from selfspec.selection import DraftOrder

__all__ = ["estimate_log_likelihood"]


@torch.no_grad()
def estimate_log_likelihood(
    model: SSMD,
    tokens: Tensor,
    order: Order | None,
    window: Window | int,
    rounds: int,
    pad: Tensor | None = None,
    observed: Tensor | None = None,
    seeds: Tensor | int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """Logarithm of an unbiased estimate of p(x), for any order rule: (B,) nats.

    A stochastic lower bound of log p(x); see the module.

    Args:
        model: an `SSMD`; with a head unless `rounds` is 0.
        tokens: (B, L) complete sequences.
        order: any rule, None for the uniform one; one that reads the drafts of a pass reads them
            given x's revealed tokens.
        window: W, which reads no drafts, or a constant number of tokens.
        rounds: R; 0 for plain sampling with the counts of `window`.
        pad: (B, L) bool, True at pads.
        observed: (B, L) bool, True at given tokens: the result is then conditional on them.
        seeds: (B,) int64, or one, of orders and paths.
        temperature, top_p: of the sampler that is scored.

    Raises:
        ValueError: a window that reads drafts, `rounds` that the model cannot do, tokens that it
            does not know, a setting out of range, or a wrong shape or type.
    """
    check_rounds(model, rounds)
    order, window = as_order(order), as_window(window)
    check_known(window)
    pad = mask_of("pad", pad, tokens)
    check_tokens(model, tokens, pad, False, mask_of("observed", observed, tokens))
    observed, seeds = mask_of("observed", observed, tokens) & ~pad, seeds_of(seeds, tokens)
    first, end = observed.sum(1), (~pad).sum(1)
    tables = torch.from_numpy(stacked_tables(window, (end - first).tolist())).to(tokens.device)
    sigma = initial_order(order, ~(pad | observed), pad, seeds)
    revealed, total = first, torch.zeros_like(end, dtype=torch.float64)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    for pass_index in range(tokens.shape[1]):
        open_ = revealed < end
        if not bool(open_.any()):
            break
        sizes = tables.gather(1, (revealed - first).unsqueeze(1)).squeeze(1)
        passes = torch.full_like(end, pass_index)
        hidden, rule = encoded(model, tokens, sigma, revealed, pad), order
        if isinstance(order, DraftOrder):
            rule = order.reading(log_probs(model.draft(hidden), temperature, top_p))
        if not order.fixed:
            sigma = rearranged(rule, sigma, revealed, end, sizes, seeds, passes)
        logp = score_pass(model, hidden, tokens, sigma, revealed, pad, temperature, top_p)
        ahead = revealed.unsqueeze(1) + places[: int(sizes.max())]
        draft, target = (x.gather(1, ahead.clamp(max=len(places) - 1)) for x in logp)
        kernel = transition(draft, target, sizes, rounds)
        total += torch.where(open_, kernel.logsumexp(1), 0.0)
        u = uniform(seeds, Purpose.ESTIMATE, passes, 0, torch.zeros_like(sizes).unsqueeze(1))
        # If x is impossible, its estimate is 0 already and any way on will do.
        weights = (kernel - kernel.amax(1, keepdim=True)).exp().nan_to_num(1.0)
        further = torch.minimum(revealed + draw(weights, u.squeeze(1)), end)
        revealed = torch.where(open_, further, revealed)
    return total
