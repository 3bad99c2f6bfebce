"""The causal head with its keys and values kept: what a round costs beyond the first.

With one causal block, keys and values of a track depend on that track alone. Of a window that
begins at place i, all tracks are computed once a trunk pass, from the revealed tokens and the
drafts; a round runs the queries of the window's tracks i, …, i+W-2, which predict the places
i+1, …, i+W-1, and a redrawn token changes one track.

Shapes: B rows, L tracks (σ order), T = W - 1 tracks of the window, C channels, H heads. Track j
holds σ(j) and predicts σ(j+1); the last one predicts nothing and is never seen.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec.nn.attention import Rotation, rotate, rotation
from selfspec.nn.head import CausalHead
from selfspec.nn.transformer import Block
from selfspec.ops import take_along

__all__ = ["Tracks", "corrected", "open_tracks", "replace_token"]


class Tracks(NamedTuple):
    """What the rounds of one trunk pass share."""

    context: Tensor
    """(B, T, C) what a track of the window holds without its token."""
    x: Tensor
    """(B, T, C) with it."""
    keys: Tensor
    """(B, H, L, E) of all tracks."""
    values: Tensor
    mask: Tensor
    """(B, 1, T, L) bool, the tracks that one of the window sees."""
    first: Tensor
    """(B,) track of the window's first."""
    query_rotation: Rotation
    """Of the window's tracks."""
    key_rotation: Rotation
    states: Tensor
    """(B, T, C) the trunk's, at the positions predicted."""


def open_tracks(
    head: CausalHead, hidden: Tensor, embedded: Tensor, order: Tensor, first: Tensor, window: int
) -> Tracks:
    """The tracks after a trunk pass.

    Args:
        head: of one block.
        hidden: (B, L, C) from the trunk, natural order.
        embedded: (B, L, C) embeddings of the revealed and the drafted tokens, natural order.
        order: (B, L).
        first: (B,) index i of the first masked place.
        window: W, at least 2.
    """
    length = order.shape[1]
    following = torch.cat([order[:, 1:], order[:, -1:]], dim=1)
    _, held, predicted = head.fuse.weight.chunk(3, dim=1)
    holds = F.linear(head.held_norm(hidden), held)
    predicts = F.linear(head.predicted_norm(hidden), predicted)
    context = take_along(holds, order) + take_along(predicts, following)
    x = context + take_along(_token_part(head, embedded), order)
    tracks = torch.arange(length, device=order.device)
    chosen = first.unsqueeze(1) + tracks[: window - 1]
    mask = (tracks <= chosen.unsqueeze(-1)).unsqueeze(1)
    chosen = chosen.clamp(max=length - 1)
    held_at, predicted_at = order.gather(1, chosen), following.gather(1, chosen)
    keys, values = _keys_and_values(head, x, _rotation(head, order))
    return Tracks(
        context=take_along(context, chosen),
        x=take_along(x, chosen),
        keys=keys,
        values=values,
        mask=mask,
        first=first,
        query_rotation=_rotation(head, predicted_at),
        key_rotation=_rotation(head, held_at),
        states=take_along(hidden, predicted_at),
    )


def corrected(head: CausalHead, tracks: Tracks) -> Tensor:
    """(B, T, C) target hidden states at the places that the window's tracks predict."""
    block = _block(head)
    attention = block.attention
    query = attention.qkv.weight[: tracks.x.shape[-1]]
    q = F.linear(block.attention_norm(tracks.x), query).unflatten(-1, (attention.heads, -1))
    q = rotate(attention.query_norm(q.transpose(1, 2)), tracks.query_rotation)
    attended = F.scaled_dot_product_attention(
        q.to(tracks.values.dtype), tracks.keys, tracks.values, attn_mask=tracks.mask
    )
    x = tracks.x + attention.out(attended.transpose(1, 2).flatten(2))
    x = x + block.down(F.relu(block.up(block.mlp_norm(x))).square())
    return head.add_residual(tracks.states, head.project(head.norm(x)))


def replace_token(head: CausalHead, tracks: Tracks, column: Tensor, embedded: Tensor) -> Tracks:
    """The tracks after a token of the window was replaced, in every row.

    A row without a rejection is settled, and so is one whose last place was rejected: nobody reads
    their tracks again, and what is written there does not matter.

    Args:
        head: of one block.
        tracks: their keys and values are written to.
        column: (B,) place of the token in the window; the last is held by no track of it.
        embedded: (B, C) embedding of the new token.
    """
    rows = torch.arange(len(column), device=column.device)
    column = column.clamp(max=tracks.x.shape[1] - 1)
    track = (tracks.first + column).clamp(max=tracks.keys.shape[2] - 1)
    x = (tracks.context[rows, column] + _token_part(head, embedded)).unsqueeze(1)
    turn = Rotation(*(part[rows, :, column].unsqueeze(2) for part in tracks.key_rotation))
    for kept, new in zip((tracks.keys, tracks.values), _keys_and_values(head, x, turn)):  # noqa: B905
        kept[rows, :, track] = new.squeeze(2).to(kept.dtype)
    hit = torch.arange(tracks.x.shape[1], device=rows.device) == column.unsqueeze(1)
    x = torch.where(hit.unsqueeze(-1), x.to(tracks.x.dtype), tracks.x)
    return Tracks(tracks.context, x, *tracks[2:])  # torch 2.11 does not compile `_replace`


def _token_part(head: CausalHead, embedded: Tensor) -> Tensor:
    return F.linear(head.token_norm(embedded), head.fuse.weight.chunk(3, dim=1)[0])


def _keys_and_values(head: CausalHead, x: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
    """(B, H, S, E) each, of tracks (B, S, C)."""
    block = _block(head)
    attention = block.attention
    projected = F.linear(block.attention_norm(x), attention.qkv.weight[x.shape[-1] :])
    k, v = projected.unflatten(-1, (2, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    return rotate(attention.key_norm(k), by).to(v.dtype), v


def _block(head: CausalHead) -> Block:
    (block,) = head.blocks
    assert isinstance(block, Block)
    return block


def _rotation(head: CausalHead, positions: Tensor) -> Rotation:
    channels = head.project.out_features // head.config.heads
    return rotation(positions, channels, head.project.weight.dtype)
