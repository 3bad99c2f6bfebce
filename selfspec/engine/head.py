"""The causal head with its keys and values kept: what a round costs beyond the first.

With one causal block, keys and values of a track depend on that track alone. All tracks are
computed once a trunk pass, from the revealed tokens and the drafts; a round runs the tracks that
predict the places to be judged. A token that was redrawn is held by the first of these, so that
they bring keys and values with them from the second round on.

Shapes: B rows, L tracks (σ order), K places, C channels, H heads. Track j holds σ(j) and predicts
σ(j+1); the last one predicts nothing and is never seen.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec.model import SSMD
from selfspec.nn.attention import Rotation, rotate, rotation
from selfspec.nn.head import CausalHead
from selfspec.nn.transformer import Block, relu_squared
from selfspec.ops import take_along

__all__ = ["Tracks", "corrected", "every_rotation", "open_tracks"]


class Tracks(NamedTuple):
    """What the rounds of one trunk pass share."""

    order: Tensor
    """(B, L)."""
    hidden: Tensor
    """(B, L, C) the trunk's states, natural order."""
    holds: Tensor
    """(B, L, C) what a position adds to the track that holds it, natural order."""
    predicts: Tensor
    """(B, L, C) and to the one that predicts it."""
    tokens: Tensor | None
    """(V + 1, C) what a token adds; None where it is computed when it is needed."""
    turns: Rotation
    """Of every position."""
    keys: Tensor
    """(B, H, L, E)."""
    values: Tensor


def open_tracks(
    model: SSMD, hidden: Tensor, tokens: Tensor, order: Tensor, turns: Rotation
) -> Tracks:
    """The tracks after a trunk pass.

    Args:
        model: its head has one block.
        hidden: (B, L, C) from the trunk, natural order.
        tokens: (B, L) revealed and drafted, σ order.
        order: (B, L).
        turns: of every position.
    """
    head = _head(model)
    _, held, predicted = head.fuse.weight.chunk(3, dim=1)
    holds = F.linear(head.held_norm(hidden), held)
    predicts = F.linear(head.predicted_norm(hidden), predicted)
    every = torch.arange(max(model.vocab_size, model.mask_id + 1), device=order.device)
    table = _token_parts(model, every) if len(every) <= tokens.numel() else None
    following = torch.cat([order[:, 1:], order[:, -1:]], dim=1)
    x = take_along(holds, order) + take_along(predicts, following)
    x = x + (_token_parts(model, tokens) if table is None else table[tokens])
    block = _block(head)
    normed, (_, *weights) = block.attention_norm(x), block.attention.qkv.weight.chunk(3)
    # Each dense, as a compiler copies a part of a tensor before it writes to it.
    k, v = (_in_heads(block, F.linear(normed, weight))[0] for weight in weights)
    k = _turned(block.attention.key_norm(k), turns, order).to(v.dtype)
    return Tracks(order, hidden, holds, predicts, table, turns, k, v)


def corrected(model: SSMD, tracks: Tracks, tokens: Tensor, places: Tensor, renew: bool) -> Tensor:
    """Target hidden states, and what the tracks that predict them make known to later ones.

    Args:
        model: its head has one block.
        tracks: their keys and values at places - 1 are written, if `renew`.
        tokens: (B, K) at places - 1.
        places: (B, K) consecutive; the first of σ has no target.
        renew: whether tokens may be others than in `open_tracks`.

    Returns:
        (B, K, C).
    """
    head, last = _head(model), tracks.order.shape[1] - 1
    block = _block(head)
    attention = block.attention
    at = (places - 1).clamp(0, last)
    held = tracks.order.gather(1, at)
    predicted = tracks.order.gather(1, (at + 1).clamp(max=last))
    x = take_along(tracks.holds, held) + take_along(tracks.predicts, predicted)
    x = x + (_token_parts(model, tokens) if tracks.tokens is None else tracks.tokens[tokens])
    normed = block.attention_norm(x)
    if renew:
        q, k, v = _in_heads(block, attention.qkv(normed))
        k = _turned(attention.key_norm(k), tracks.turns, held)
        rows = torch.arange(len(at), device=at.device).unsqueeze(1)
        tracks.keys[rows, :, at] = k.transpose(1, 2).to(tracks.keys.dtype)
        tracks.values[rows, :, at] = v.transpose(1, 2)
    else:
        (q,) = _in_heads(block, F.linear(normed, attention.qkv.weight.chunk(3)[0]))
    q = _turned(attention.query_norm(q), tracks.turns, predicted).to(tracks.values.dtype)
    seen = torch.arange(last + 1, device=places.device) <= at.unsqueeze(-1)
    attended = F.scaled_dot_product_attention(
        q, tracks.keys, tracks.values, attn_mask=seen.unsqueeze(1)
    )
    x = x + attention.out(attended.transpose(1, 2).flatten(2))
    x = x + block.down(relu_squared(block.up(block.mlp_norm(x))))
    states = take_along(tracks.hidden, predicted)
    return head.add_residual(states, head.project(head.norm(x)))


def every_rotation(model: SSMD) -> Rotation:
    """Of all positions: (1, 1, L, E)."""
    head = _head(model)
    positions = torch.arange(model.length, device=model.device)
    channels = head.project.out_features // head.config.heads
    return rotation(positions, channels, head.project.weight.dtype)


def _turned(x: Tensor, turns: Rotation, positions: Tensor) -> Tensor:
    """(B, H, S, E) turned by positions (B, S)."""
    return rotate(x, Rotation(*(table[0, 0][positions].unsqueeze(1) for table in turns)))


def _token_parts(model: SSMD, tokens: Tensor) -> Tensor:
    """What tokens add to the tracks that hold them."""
    head = _head(model)
    embedded = model.trunk.embed(tokens)  # type: ignore[operator]
    return F.linear(head.token_norm(embedded), head.fuse.weight.chunk(3, dim=1)[0])


def _in_heads(block: Block, x: Tensor) -> Tensor:
    """(B, S, n C) → (n, B, H, S, E)."""
    heads = block.attention.heads
    size = block.attention.out.in_features // heads
    return x.unflatten(-1, (-1, heads, size)).permute(2, 0, 3, 1, 4)


def _head(model: SSMD) -> CausalHead:
    assert model.head is not None
    return model.head


def _block(head: CausalHead) -> Block:
    (block,) = head.blocks
    assert isinstance(block, Block)
    return block
