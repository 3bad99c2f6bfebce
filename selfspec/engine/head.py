"""The causal head with its keys and values kept: what a round costs beyond the first.

With one causal block, keys and values of a track depend on that track alone. All tracks are
computed once a trunk pass, from the revealed tokens and the drafts; a round runs the queries of
those that predict the places to be judged, and a redrawn token changes one track.

Shapes: B rows, L tracks (σ order), K places, C channels, H heads. Track j holds σ(j) and predicts
σ(j+1); the last one predicts nothing and is never seen.
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

    order: Tensor
    """(B, L)."""
    hidden: Tensor
    """(B, L, C) the trunk's states, natural order."""
    context: Tensor
    """(B, L, C) what a track holds without its token."""
    x: Tensor
    """(B, L, C) with it."""
    keys: Tensor
    """(B, H, L, E)."""
    values: Tensor


def open_tracks(head: CausalHead, hidden: Tensor, embedded: Tensor, order: Tensor) -> Tracks:
    """The tracks after a trunk pass.

    Args:
        head: of one block.
        hidden: (B, L, C) from the trunk, natural order.
        embedded: (B, L, C) embeddings of the revealed and the drafted tokens, natural order.
        order: (B, L).
    """
    following = torch.cat([order[:, 1:], order[:, -1:]], dim=1)
    _, held, predicted = head.fuse.weight.chunk(3, dim=1)
    holds = F.linear(head.held_norm(hidden), held)
    predicts = F.linear(head.predicted_norm(hidden), predicted)
    context = take_along(holds, order) + take_along(predicts, following)
    x = context + take_along(_token_part(head, embedded), order)
    return Tracks(order, hidden, context, x, *_keys_and_values(head, x, _rotation(head, order)))


def corrected(head: CausalHead, tracks: Tracks, places: Tensor) -> Tensor:
    """(B, K, C) target hidden states at places (B, K), of which the first has none."""
    block, length = _block(head), tracks.order.shape[1]
    attention = block.attention
    chosen = (places - 1).clamp(0, length - 1)
    predicted = tracks.order.gather(1, places.clamp(max=length - 1))
    held = take_along(tracks.x, chosen)
    query = attention.qkv.weight[: held.shape[-1]]
    q = F.linear(block.attention_norm(held), query).unflatten(-1, (attention.heads, -1))
    q = rotate(attention.query_norm(q.transpose(1, 2)), _rotation(head, predicted))
    seen = torch.arange(length, device=places.device) <= chosen.unsqueeze(-1)
    attended = F.scaled_dot_product_attention(
        q.to(tracks.values.dtype), tracks.keys, tracks.values, attn_mask=seen.unsqueeze(1)
    )
    x = held + attention.out(attended.transpose(1, 2).flatten(2))
    x = x + block.down(F.relu(block.up(block.mlp_norm(x))).square())
    states = take_along(tracks.hidden, predicted)
    return head.add_residual(states, head.project(head.norm(x)))


def replace_token(
    head: CausalHead, tracks: Tracks, replaced: Tensor, place: Tensor, embedded: Tensor
) -> None:
    """Renew the tracks, in place, after a token was replaced in some rows.

    Args:
        head: of one block.
        tracks: those of all places.
        replaced: (B,) bool.
        place: (B,) of the token.
        embedded: (B, C) embedding of the new token.
    """
    rows, last = torch.arange(len(place), device=place.device), tracks.order.shape[1] - 1
    track = torch.where(replaced, place, last).clamp(max=last)  # nobody sees the last one
    x = (tracks.context[rows, track] + _token_part(head, embedded)).unsqueeze(1)
    turn = _rotation(head, tracks.order[rows, track].unsqueeze(1))
    keys, values = _keys_and_values(head, x, turn)
    tracks.x[rows, track] = x.squeeze(1).to(tracks.x.dtype)
    tracks.keys[rows, :, track] = keys.squeeze(2).to(tracks.keys.dtype)
    tracks.values[rows, :, track] = values.squeeze(2).to(tracks.values.dtype)


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
