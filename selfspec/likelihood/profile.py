"""How much drafts know: the measurements behind an optimal schedule (see `information`)."""

from typing import Any

import numpy as np
from torch import Tensor

from selfspec.information import falling_fit
from selfspec.likelihood.tables import draw_order, scores
from selfspec.model import SSMD
from selfspec.orders import Order, UniformOrder

__all__ = ["draft_nats", "information_profile"]


def draft_nats(
    model: SSMD, tokens: Tensor, order: Order | None = None, seeds: int = 0, **options: Any
) -> np.ndarray:
    """g(i, d), the mean of -log p_i(d, x_σ(d)) over sequences, each with a σ of its own.

    One trunk pass a sequence and number of known tokens.

    Args:
        model: an `SSMD`.
        tokens: (B, L) complete sequences without pads: real text, or samples of the model.
        order: a rule that is fixed in advance; uniform by default.
        seeds: of the run.
        **options: `batch_size`, `temperature`, `top_p`, as in `scores`.

    Returns:
        (L, L) float64 nats with axes (i, d); 0 where d < i.

    Raises:
        ValueError: a rule that is re-chosen between passes, or as `scores`.
    """
    sigma, first = draw_order(order if order is not None else UniformOrder(), tokens, seeds)
    trunk = SSMD(model.trunk)  # the targets are not needed
    draft = scores(trunk, tokens, sigma, first, **options).draft.mean(0).cpu().numpy()
    return np.triu(-np.where(np.isfinite(draft), draft, 0.0))


def information_profile(model: SSMD, tokens: Tensor, seeds: int = 0, **options: Any) -> np.ndarray:
    """f(i), the mean cross-entropy of a masked token when i are known, for a uniform σ.

    The mean over the masked places of `draft_nats`, whose arguments it takes, fitted by a falling
    sequence.

    Returns:
        (L,) float64 nats, nonincreasing.
    """
    nats = draft_nats(model, tokens, None, seeds, **options)
    masked = np.arange(len(nats), 0, -1)
    return falling_fit(nats.sum(1) / masked, masked)
