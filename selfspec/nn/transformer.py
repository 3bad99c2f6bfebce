"""The trunk: a pre-norm transformer over the masked sequence.

Shapes: B batch, L positions (natural order), C channels, V vocabulary without the mask token.

    x ← x + attention(norm(x)),   x ← x + W₂ relu(W₁ norm(x))²

(ReLU²: So et al. 2021, arXiv 2109.08668). There is no time input: the number of masks says it. The
same module with `causal=True` is an autoregressive transformer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec.checks import whole
from selfspec.nn.attention import Attention, Memory, RMSNorm, Rotation, rotation

__all__ = ["Block", "Trunk", "TrunkConfig", "aligned", "relu_squared"]

ALIGNED = 64
"""Rows of a half-precision unembedding are rounded up to a multiple of this."""


@dataclass(frozen=True)
class TrunkConfig:
    """Shape of a trunk.

    Attributes:
        vocab_size: V, without the mask token.
        length: the longest sequence, D.
        width: C.
        blocks: number of transformer blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over C.
        dropout: after attention and MLP, in training.
        causal: an autoregressive trunk: a position sees itself and earlier ones.
    """

    vocab_size: int
    length: int
    width: int
    blocks: int
    heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0
    causal: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "length", "width", "blocks", "heads", "mlp_ratio"):
            whole(name, getattr(self, name), least=1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4, dropout: float = 0.0):
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = RMSNorm(width)
        self.up = nn.Linear(width, mlp_ratio * width, bias=False)
        self.down = nn.Linear(mlp_ratio * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

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
        """(B, S, C) → (B, S, C); arguments as in `Attention`."""
        attended = self.attention(
            self.attention_norm(x), query_rotation, key_rotation, mask, causal, memory, at
        )
        x = x + self.dropout(attended)
        return x + self.dropout(self.down(relu_squared(self.up(self.mlp_norm(x)))))


class Trunk(nn.Module):
    """Tokens in, hidden states out; `unembed` turns hidden states into logits.

    The embedding has V + 1 rows: the last is the mask token, `mask_id` = V. An autoregressive
    trunk uses it as the token before the first.
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size + 1, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, config.dropout)
            for _ in range(config.blocks)
        )
        self.norm = RMSNorm(config.width)
        self.unembedding = nn.Linear(config.width, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation 1/√fan-in; what is added to the stream starts smaller."""
        nn.init.normal_(self.embedding.weight, std=1.0)
        nn.init.normal_(self.unembedding.weight, std=0.02)
        for block in self.blocks:
            reset_block(block, out_scale=1 / math.sqrt(2 * len(self.blocks)))

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def mask_id(self) -> int:
        """The token that stands for a masked position."""
        return self.config.vocab_size

    @property
    def width(self) -> int:
        """C."""
        return self.config.width

    @property
    def length(self) -> int:
        """The longest sequence."""
        return self.config.length

    @property
    def num_blocks(self) -> int:
        """Blocks, for the NFE account."""
        return self.config.blocks

    def forward(
        self,
        tokens: Tensor,
        pad: Tensor | None = None,
        memories: Sequence[Memory] | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """One trunk pass, or part of one.

        Args:
            tokens: (B, L) int64 in 0..V, V where masked.
            pad: (B, L) bool, True at pads: no position attends to them.
            memories: take in the keys and values of every block; from `memories`.
            at: (B, P) the positions of `tokens`, then (B, P), in the row that the memories hold:
                only these are computed, all others are as the memories have them.

        Returns:
            (B, L, C) or (B, P, C) hidden states, before the final norm.
        """
        x = self.embed(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device) if at is None else at
        channels = self.config.width // self.config.heads
        angles = rotation(positions, channels, self.embedding.weight.dtype)
        mask = None if pad is None else ~pad[:, None, None, :]
        for k, block in enumerate(self.blocks):
            memory = None if memories is None else memories[k]
            x = block(x, angles, angles, mask, self.config.causal, memory, at)
        return x

    def memories(self) -> list[Memory]:
        """What a pass over a row can leave behind for `forward` at some of its positions."""
        return [Memory() for _ in self.blocks]

    def embed(self, tokens: Tensor) -> Tensor:
        """(…) tokens → (…, C)."""
        return self.embedding(tokens)

    def unembed(self, hidden: Tensor) -> Tensor:
        """(…, C) hidden states → (…, V) logits: final norm, then unembedding."""
        normed, weight = self.norm(hidden), self.unembedding.weight
        kind = product_type(normed, weight)
        if kind.itemsize == 2:
            weight = aligned(weight.to(kind))
        return F.linear(normed, weight)[..., : self.vocab_size]


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)², by a product: on CUDA autocast takes powers in float32, four times the memory."""
    positive = F.relu(x)
    return positive * positive


def product_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """In which a matrix product is taken: the weight's, or what autocast makes of it."""
    device = x.device.type
    if x.is_meta or weight.dtype == torch.float64:  # autocast raises on the one, leaves the other
        return weight.dtype
    enabled = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if enabled else weight.dtype


def aligned(weight: Tensor) -> Tensor:
    """(V, C) with rows of zeros up to a multiple of 64.

    Matrix units read and write rows of a length that is a multiple of 16 bytes: with V = 50257 the
    library falls back to kernels several times as slow.
    """
    missing = -len(weight) % ALIGNED
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


def reset_block(block: nn.Module, out_scale: float = 1.0) -> None:
    """Ordinary initialisation of a block; `out_scale` multiplies its two output projections."""
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear):
            std = 1 / math.sqrt(layer.in_features)
            nn.init.normal_(layer.weight, std=std * (out_scale if is_output(name) else 1.0))


def is_output(name: str) -> bool:
    """Whether a block's layer writes to the stream."""
    return name in ("attention.out", "down")
