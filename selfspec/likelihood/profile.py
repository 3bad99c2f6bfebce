"""How much drafts know: the measurements behind an optimal schedule (see `information`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfspec.information import falling_fit
from selfspec.inputs import check_tokens, mask_of
from selfspec.likelihood.tables import draw_order, scores
from selfspec.model import SSMD
from selfspec.orders import Order, as_order

__all__ = ["draft_nats", "information_profile"]


def draft_nats(
    model: SSMD,
    tokens: Tensor,
    order: Order | None = None,
    seeds: int = 0,
    observed: Tensor | None = None,
    **options: Any,
) -> np.ndarray:
    """g(i, d), the mean of -log p_i(d, x_σ(d)) over sequences, each with a σ of its own.

    One trunk pass a sequence and number of known tokens.

    Args:
        model: an `SSMD`.
        tokens: (B, L) complete sequences without pads: real text, or samples of the model.
        order: a rule that is fixed in advance; uniform by default.
        seeds: of the run.
        observed: (B, L) bool, tokens that stand in every row, such as the model's frame: known from
            the start, and no places of the result. As many in each row; none by default.
        **options: `batch_size`, `temperature`, `top_p`, as in `scores`.

    Returns:
        (N, N) float64 nats with axes (i, d), N the tokens of a row that are not observed; 0 where
        d < i.

    Raises:
        ValueError: a rule that is re-chosen between passes, rows with more observed tokens than
            others, a token that `top_p` leaves no probability, or as `scores`.
    """
    observed = mask_of("observed", observed, tokens)
    check_tokens(model, tokens, torch.zeros_like(observed), False, observed)
    if len(counts := observed.sum(1).unique().tolist()) > 1:
        raise ValueError(f"`observed` must be as many tokens in each row, got {counts}")
    rule = as_order(order)
    sigma, first = draw_order(rule, tokens, seeds, None, observed)
    trunk = SSMD(model.trunk)  # the targets are not needed
    draft = scores(trunk, tokens, sigma, first, **options).draft.mean(0).cpu().numpy()
    draft = draft[counts[0] :, counts[0] :]
    nats = np.triu(-draft)
    if not np.isfinite(nats).all():
        raise ValueError("`tokens` must be possible for every draft, got one outside the nucleus")
    return nats


def information_profile(
    model: SSMD, tokens: Tensor, seeds: int = 0, observed: Tensor | None = None, **options: Any
) -> np.ndarray:
    """f(i), the mean cross-entropy of a masked token when i are known, for a uniform σ.

    The mean over the masked places of `draft_nats`, whose arguments it takes, fitted by a falling
    sequence.

    Returns:
        (N,) float64 nats, nonincreasing.
    """
    nats = draft_nats(model, tokens, None, seeds, observed, **options)
    masked = np.arange(len(nats), 0, -1)
    return falling_fit(nats.sum(1) / masked, masked)
