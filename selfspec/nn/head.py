"""The causal head: one transformer block that is causal in the order σ.

Shapes: B batch, L positions (natural order), S places of σ, C channels. Places are counted from 0.

Track j (0 ≤ j < L-1) **holds** σ(j) and **predicts** σ(j+1). It reads the token at σ(j) and the
trunk's hidden states at both positions,

    track_j = W [ norm e(x_σ(j)), norm h_σ(j), norm h_σ(j+1) ],

goes through causal blocks over tracks, and its output is added to the hidden state of the position
it predicts:

    h'_σ(j+1) = h_σ(j+1) + P norm(track_j).

The trunk's own final norm and unembedding turn h' into the target. A query is rotated by the
position that its track predicts, a key by the position of the token that its track holds: a score
sees the offset from the position predicted to the token held.

P starts at zero, so that target = draft before training; everything else has an ordinary
initialisation. Source: Campbell et al. 2025 (arXiv 2510.03929); rotation and initialisation are
this project's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec.checks import whole
from selfspec.nn.attention import RMSNorm, Rotation, rotation
from selfspec.nn.transformer import Block, reset_block
from selfspec.ops import reorder

__all__ = ["CausalHead", "HeadConfig"]


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a causal head; its width is the trunk's.

    Attributes:
        heads: attention heads.
        blocks: number of causal blocks.
        mlp_ratio: hidden width of the MLP over C.
        dropout: after attention and MLP, in training.
    """

    heads: int
    blocks: int = 1
    mlp_ratio: int = 4
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("heads", "blocks", "mlp_ratio"):
            whole(name, getattr(self, name), least=1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")


class CausalHead(nn.Module):
    """Hidden states of the trunk and tokens in, hidden states of the target out."""

    def __init__(self, config: HeadConfig, width: int):
        super().__init__()
        self.config = config
        self.token_norm = RMSNorm(width)
        self.held_norm = RMSNorm(width)
        self.predicted_norm = RMSNorm(width)
        self.fuse = nn.Linear(3 * width, width, bias=False)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, config.dropout)
            for _ in range(config.blocks)
        )
        self.norm = RMSNorm(width)
        self.project = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ordinary everywhere but in the last projection, which starts at zero."""
        reset_block(self)
        nn.init.zeros_(self.project.weight)

    def forward(self, hidden: Tensor, embedded: Tensor, order: Tensor) -> Tensor:
        """One head pass.

        Args:
            hidden: (B, L, C) trunk output, natural order.
            embedded: (B, L, C) embeddings of the tokens to be read, natural order.
            order: (B, L) position at each place.

        Returns:
            (B, L, C) target hidden states in σ order. Entry s depends on the tokens at places
            below s only. Place 0 has no track and keeps the trunk's state: there the target is
            the draft.
        """
        h = reorder(hidden, order)
        if order.shape[1] == 1:
            return h
        x = self.tracks(hidden, embedded, order)
        query_rotation, key_rotation = self.rotations(order)
        for block in self.blocks:
            x = block(x, query_rotation, key_rotation, causal=True)
        return torch.cat([h[:, :1], self.add_residual(h[:, 1:], self.project(self.norm(x)))], 1)

    def tracks(self, hidden: Tensor, embedded: Tensor, order: Tensor) -> Tensor:
        """W [token, held, predicted] for every track: (B, L-1, C).

        W acts in natural order and its three parts are added in σ order: what is gathered is then
        C wide, not 3C.
        """
        token, held, predicted = self.fuse.weight.chunk(3, dim=1)
        holds = F.linear(self.token_norm(embedded), token) + F.linear(self.held_norm(hidden), held)
        predicts = F.linear(self.predicted_norm(hidden), predicted)
        return reorder(holds, order)[:, :-1] + reorder(predicts, order)[:, 1:]

    def rotations(self, order: Tensor) -> tuple[Rotation, Rotation]:
        """Queries by the position predicted, keys by the position held."""
        channels = self.project.out_features // self.config.heads
        dtype = self.project.weight.dtype
        return rotation(order[:, 1:], channels, dtype), rotation(order[:, :-1], channels, dtype)

    def add_residual(self, predicted: Tensor, output: Tensor) -> Tensor:
        """The track's output is a correction of the trunk's state at the position it predicts."""
        return predicted + output
