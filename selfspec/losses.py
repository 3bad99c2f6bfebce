"""Training losses.

For a sequence of N tokens, an order σ and i revealed tokens (places counted from 0),

    draft  = 1/(N-i) · Σ_{d ≥ i}   -log p_i(d, x_σ(d)),
    target = 1/(N-i) · Σ_{d ≥ i+1} -log q_i(d, x_σ(d)),

averaged over the batch. With σ uniform and i uniform on 0..N-1 the first is the masked-diffusion
bound on -log p(x), in nats per token (MDLM 2406.07524, MD4 2406.04329); the second trains the head,
which reads the true tokens. Place i is left out of it: there the target is the draft. One trunk
pass gives both. Samplers read targets near i only, in a window of W places; the optional third term

    window = 1/(W-1) · Σ_{i < d < i+W} -log q_i(d, x_σ(d))

fits the head where it is read. It is for fine-tuning: from the start it learns slowly. Source:
Campbell et al. 2025 (arXiv 2510.03929); the third term is this project's.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from selfspec.checks import whole
from selfspec.cross_entropy import WeightedNLL
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.noise import row_seeds
from selfspec.ops import inverse_order

__all__ = [
    "SSMDLoss",
    "draft_bounds",
    "masked_weights",
    "next_token_loss",
    "ssmd_loss",
    "stratified_revealed",
    "verified_weights",
    "window_weights",
]


class SSMDLoss(NamedTuple):
    """Scalars in nats per token."""

    total: Tensor
    """What to minimise."""
    draft: Tensor
    target: Tensor | None
    """None without a head."""
    window: Tensor | None = None
    """None without windows."""


def stratified_revealed(
    observed: Tensor, end: Tensor, u: Tensor, rank: int = 0, world: int = 1
) -> Tensor:
    """How many tokens each row of a batch reveals: uniform on observed..end-1, spread evenly.

    Row b uses (u + b/B) mod 1, so the batch covers the range whatever u is: lower variance. On
    several processes b and B are those of the global batch, of which rank r has every w-th row.

    Args:
        observed: (B,) tokens that are always revealed.
        end: (B,) tokens that are not pads.
        u: scalar uniform number in [0, 1).
        rank, world: r and w.

    Returns:
        (B,) int64.
    """
    size = len(end) * world
    rows = torch.arange(rank, size, world, device=end.device, dtype=torch.float64)
    share = (u + rows / size) % 1.0
    return observed + (share * (end - observed)).long()


def ssmd_loss(
    model: SSMD,
    tokens: Tensor,
    order: Tensor,
    revealed: Tensor,
    pad: Tensor | None = None,
    freeze_trunk: bool = False,
    window: Tensor | None = None,
    window_weight: float = 1.0,
) -> SSMDLoss:
    """All terms from one forward, which unembeds only the places that they look at.

    Those of the window are unembedded for it once more.

    Args:
        model: with or without a head.
        tokens: (B, L) the true tokens.
        order: (B, L) position at each place, pads last.
        revealed: (B,) i, the number of places that the trunk sees.
        pad: (B, L) bool, True at pads.
        freeze_trunk: the trunk gets no gradient and `total` is without the draft term.
        window: (B,) int64 windows W; None for no window term.
        window_weight: of the window term in `total`.

    Raises:
        ValueError: `freeze_trunk` without a head.
    """
    if freeze_trunk and model.head is None:
        raise ValueError("`freeze_trunk` needs a model with a head, got head=None")
    if pad is not None:
        tokens = tokens.masked_fill(pad, 0)  # what stands there need not be in the vocabulary
    weight = masked_weights(order, revealed, pad)
    drafted = WeightedNLL(weight)
    verified = WeightedNLL(verified_weights(weight, order, revealed))
    near = None if window is None else WeightedNLL(window_weights(revealed, window, order.shape[1]))
    with _without_gradient(model.trunk) if freeze_trunk else nullcontext():
        hidden = model.encode(torch.where(weight > 0, model.mask_id, tokens), pad)
        draft = drafted(model.trunk, hidden, tokens)
        if model.head is None:
            return SSMDLoss(draft, draft, None)
        states = model.corrected_states(hidden, tokens, order)
        along = tokens.gather(1, order)
        target = verified(model.trunk, states, along)
        total = target if freeze_trunk else draft + target
        if near is None:
            return SSMDLoss(total, draft, target)
        windowed = near(model.trunk, states, along)
    return SSMDLoss(total + window_weight * windowed, draft, target, windowed)


@torch.no_grad()
def draft_bounds(
    model: SSMD,
    tokens: Tensor,
    seed: int = 0,
    first: int = 0,
    pad: Tensor | None = None,
    draws: int = 16,
) -> Tensor:
    """The masked-diffusion bound on -log p(x) of each sequence, by its trunk: (B,) nats a token.

    The mean of the draft term over `draws` orders, their numbers of revealed tokens spread evenly.

    Args:
        model: with or without a head.
        tokens: (B, L) the sequences.
        seed: of the run; a row's draws depend on it and on the row's number.
        first: the number of the first row.
        pad: (B, L) bool, True at pads.
        draws: of each sequence; one trunk pass each.

    Raises:
        ValueError: `draws` below 1.
    """
    whole("draws", draws, least=1)
    trunk, bounds = SSMD(model.trunk), []
    for row, key in enumerate(row_seeds(seed, len(tokens), first=first).tolist()):
        generator = torch.Generator().manual_seed(key & 0x7FFFFFFFFFFFFFFF)
        keys = torch.rand(draws, tokens.shape[1], generator=generator).to(tokens.device)
        u = torch.rand((), generator=generator).to(tokens.device)
        gone = None if pad is None else pad[row].expand(draws, -1)
        real = torch.full((draws,), tokens.shape[1], device=tokens.device)
        if gone is not None:
            keys, real = keys.masked_fill(gone, 2.0), (~gone).sum(1)
        revealed = stratified_revealed(torch.zeros_like(real), real, u)
        own = tokens[row].expand(draws, -1)
        bounds.append(ssmd_loss(trunk, own, keys.argsort(1), revealed, gone).draft.double())
    return torch.stack(bounds)


def masked_weights(order: Tensor, revealed: Tensor, pad: Tensor | None = None) -> Tensor:
    """1 / (B · (N - i)) at the masked positions, 0 elsewhere: (B, L) float64, natural order."""
    masked = inverse_order(order) >= revealed.unsqueeze(1)
    if pad is not None:
        masked &= ~pad
    return masked.double() / (masked.sum(dim=1, keepdim=True).clamp(min=1) * len(order))


def verified_weights(weight: Tensor, order: Tensor, revealed: Tensor) -> Tensor:
    """The masked weights in σ order, 0 at the tied place, where the target is the draft."""
    places = torch.arange(order.shape[1], device=order.device)
    return weight.gather(1, order).masked_fill(places == revealed.unsqueeze(1), 0)


def window_weights(revealed: Tensor, window: Tensor, length: int) -> Tensor:
    """1 / (B · (W - 1)) at places i+1..i+W-1, 0 elsewhere: (B, L) float64, σ order."""
    places = torch.arange(length, device=revealed.device)
    first = revealed.unsqueeze(1)
    inside = (places > first) & (places < first + window.unsqueeze(1))
    return inside.double() / (inside.sum(dim=1, keepdim=True).clamp(min=1) * len(revealed))


@contextmanager
def _without_gradient(module: nn.Module) -> Iterator[None]:
    """What is computed here has no gradient for the parameters of `module`.

    The target reads them too, through embedding and unembedding, and needs a gradient itself.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def next_token_loss(
    model: AutoregressiveModel, tokens: Tensor, pad: Tensor | None = None
) -> Tensor:
    """Mean over rows of the mean of -log p(x_ℓ | x_<ℓ) over a row's tokens, nats per token.

    Rows weigh equally, as in `ssmd_loss`; pads do not count.
    """
    pad = torch.zeros_like(tokens, dtype=torch.bool) if pad is None else pad
    tokens = tokens.masked_fill(pad, 0)  # what stands there need not be in the vocabulary
    weight = (~pad).double() / ((~pad).sum(dim=1, keepdim=True).clamp(min=1) * len(tokens))
    return WeightedNLL(weight)(model.trunk, model.encode(tokens), tokens)
