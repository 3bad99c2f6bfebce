"""Rotary attention.

Shapes: B batch, S sequence (positions or places), H heads, E channels a head, C = H · E.

Queries and keys are normalised, then rotated. Channel pair (e, e + E/2) is turned by the angle
position · 10000^(-2e/E), so that a score depends on the offset between the position that the query
is rotated by and the one that the key is rotated by (RoFormer, arXiv 2104.09864). The two may
differ: the causal head rotates a query by the position it predicts and a key by the position of the
token it holds.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "Memory", "RMSNorm", "Rotation", "rotation"]


class Rotation(NamedTuple):
    """What turns channel pairs (e, e + E/2): (B or 1, 1, S, E) each."""

    cos: Tensor
    sin: Tensor
    """With its sign: negative for the first of a pair."""


def rotation(positions: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Rotation:
    """Angles for `positions` (B, S) or (S,); computed here, not stored: no buffer can go stale.

    In float32 at least: in bfloat16 neighbouring positions would share an angle.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, channels, 2, device=positions.device, dtype=dtype) / channels
    angles = positions.to(dtype).unsqueeze(-1) * 10000.0**-exponents
    angles = torch.cat([-angles, angles], dim=-1)
    angles = angles.reshape(-1, 1, *angles.shape[-2:])
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """(B, H, S, E) turned pairwise.

    Without taking x apart and together again, which compiled would be kernels of their own.
    """
    return x * by.cos + x.roll(x.shape[-1] // 2, -1) * by.sin


class Memory:
    """The keys and values of an attention at all positions, some of them stale.

    Attributes:
        keys, values: (B, H, L, E), keys rotated; of the last pass over all positions at first.
    """

    keys: Tensor
    values: Tensor

    def renew(self, keys: Tensor, values: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take in (B, H, S, E) keys and values at positions (B, S), or all; returns all of them."""
        if at is None:
            self.keys, self.values = keys, values
        else:
            index = at[:, None, :, None].expand_as(keys)
            self.keys = self.keys.scatter(2, index, keys)
            self.values = self.values.scatter(2, index, values)
        return self.keys, self.values


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · weight, in the type of x: under autocast the fused kernel needs them equal."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys and no biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"`width` must be a multiple of 2 · heads = {2 * heads}, got {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        query_rotation: Rotation,
        key_rotation: Rotation,
        mask: Tensor | None = None,
        causal: bool = False,
        memory: Memory | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, S, C).
            query_rotation, key_rotation: angles of queries and of keys.
            mask: (B, 1, 1, S) bool, True where a key may be seen; None for all.
            causal: a place sees itself and earlier ones only; not together with `mask`.
            memory: takes in the keys and values of x, and is what x attends to.
            at: (B, S) positions of x in the memory; None where x is the whole row.

        Returns:
            (B, S, C).
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = rotate(self.query_norm(q), query_rotation).to(v.dtype)
        k = rotate(self.key_norm(k), key_rotation).to(v.dtype)
        if memory is not None:
            k, v = memory.renew(k, v, at)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(attended.transpose(1, 2).flatten(2))
