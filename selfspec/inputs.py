"""What samplers and likelihoods are given: one rule for models, rows, masks and seeds."""

import torch
from torch import Tensor

from selfspec.checks import of_kind, whole
from selfspec.model import SSMD
from selfspec.noise import row_seeds

__all__ = ["check_model", "check_tokens", "checked_rows", "mask_of", "seeds_of"]


def checked_rows(
    model: SSMD, tokens: Tensor, seeds: Tensor | int, pad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What `Sampler.sample` is given, as tokens (B, L), seeds (B,) and pads (B, L).

    Raises:
        ValueError: as `check_tokens`, `mask_of` and `seeds_of`.
    """
    mask = mask_of("pad", pad, tokens)
    check_tokens(model, tokens, mask, masked=True)
    return tokens, seeds_of(seeds, tokens), mask


def check_model(model: object) -> None:
    """Raises a `ValueError` unless it is a masked diffusion model, say for the name of one."""
    of_kind("model", model, SSMD, "a masked diffusion model, as `load` gives")


def check_tokens(
    model: SSMD, tokens: Tensor, pad: Tensor, masked: bool, observed: Tensor | None = None
) -> None:
    """Rows that the model can read.

    Args:
        model: knows its vocabulary and its length.
        tokens: (B, L) int64; pads may hold anything.
        pad: (B, L) bool.
        masked: whether a row may hold the mask token.
        observed: (B, L) bool, of rows without it: what the model sees when nothing is drawn yet.

    Raises:
        ValueError: another kind of model, a wrong shape or type, no row, too long a row, an unknown
            token, or a row of which nothing is seen where the trunk `needs_a_token`.
    """
    check_model(model)
    if 0 in tokens.shape:
        raise ValueError(f"`tokens` must not be empty, got shape {tuple(tokens.shape)}")
    if tokens.shape[1] > model.length:
        raise ValueError(f"`tokens` may be at most {model.length} long, got {tokens.shape[1]}")
    known, mask = (tokens >= 0) & (tokens < model.vocab_size), tokens == model.mask_id
    rule = f"0..{model.vocab_size - 1}"
    if masked:
        rule += f" or the mask token {model.mask_id}"
    elif model.mask_id < model.vocab_size:
        rule += f" without the mask token {model.mask_id}"
    known = (known | mask if masked else known & ~mask) | pad
    if not bool(known.all()):
        raise ValueError(f"`tokens` must be in {rule}, got {int(tokens[~known][0])}")
    if getattr(model.trunk, "needs_a_token", False):
        seen = ~mask if masked else torch.zeros_like(pad) if observed is None else observed
        if not bool((seen & ~pad).any(1).all()):
            raise ValueError("`tokens` must show this model at least one token of a row, such as "
                             "<cls>, got a row of masks alone")  # fmt: skip


def mask_of(name: str, mask: Tensor | None, tokens: Tensor) -> Tensor:
    """The (B, L) bool `mask` of this name, on the device of `tokens`; none at all for None.

    Raises:
        ValueError: `tokens` are not (B, L) int64, or the mask is not bool of their shape.
    """
    of_kind("tokens", tokens, Tensor, "a (B, L) int64 tensor")
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(f"`tokens` must be (B, L) int64, got {tuple(tokens.shape)} {tokens.dtype}")
    if mask is None:
        return torch.zeros_like(tokens, dtype=torch.bool)
    of_kind(name, mask, Tensor, "a bool tensor of the shape of `tokens`")
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(f"`{name}` must be bool of the shape of `tokens`, {tuple(tokens.shape)}, "
                         f"got {tuple(mask.shape)} {mask.dtype}")  # fmt: skip
    return mask.to(tokens.device)


def seeds_of(seeds: Tensor | int, tokens: Tensor) -> Tensor:
    """A seed a row, (B,) int64, on the device of `tokens`; from one seed for the run.

    Raises:
        ValueError: `seeds` is neither a whole number nor one whole number a row.
    """
    if not isinstance(seeds, Tensor):
        return row_seeds(whole("seeds", seeds), len(tokens), tokens.device)
    if seeds.shape != tokens.shape[:1] or seeds.dtype != torch.int64:
        raise ValueError(f"`seeds` must have one int64 a row, ({len(tokens)},), "
                         f"got {tuple(seeds.shape)} {seeds.dtype}")  # fmt: skip
    return seeds.to(tokens.device)
