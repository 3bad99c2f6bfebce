"""MDLM: the diffusion transformer of Sahoo et al. 2024 (arXiv 2406.07524), without its own code.

With c = silu(W₂ silu(W₁ e(t) + b₁) + b₂) of a time t, and (α, β, γ) affine functions of c,

    x ← x + γ₁ · attention((1 + α₁) · norm(x) + β₁),   x ← x + γ₂ · mlp((1 + α₂) · norm(x) + β₂),
    logits = W ((1 + α) · norm(x) + β) + b.

The published weights were trained without time: t = 0 always, so c is a constant. The names of the
parameters are those of the published file (kuleshov-group/mdlm-owt): GPT-2's 50,257 tokens, the
mask behind them, 12 blocks of width 768, 1,024 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec.hub.trunk import HubTrunk, transformers
from selfspec.nn.attention import Rotation, rotate, rotation

__all__ = ["DiT", "DiTConfig", "MDLMTrunk", "load"]

FREQUENCIES = 256
"""Channels of e(t) = (cos t·f, sin t·f): at t = 0 half ones, half zeros."""


@dataclass(frozen=True)
class DiTConfig:
    """The fields of the published `config.json` that shape the network."""

    vocab_size: int = 50258
    model_length: int = 1024
    hidden_dim: int = 768
    cond_dim: int = 128
    n_blocks: int = 12
    n_heads: int = 12
    model_type: str = "mdlm"
    _commit_hash: str | None = None
    """Of the repository, under the name that the `transformers` library has for it."""

    @property
    def mask_token_id(self) -> int:
        """The last token."""
        return self.vocab_size - 1

    def to_dict(self) -> dict[str, Any]:
        """As the `transformers` library's configs do."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Norm(nn.Module):
    """Layer norm with a gain and no bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C), in float32 at least."""
        return F.layer_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-1:]).to(
            x.dtype
        ) * self.weight.to(x.dtype)


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by c."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.hidden_dim
        self.heads = config.n_heads
        self.norm1 = Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = Norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * width)

    def forward(self, x: Tensor, c: Tensor, angles: Rotation, mask: Tensor | None) -> Tensor:
        """(B, L, C) → (B, L, C); `mask` (B, 1, 1, L) is True where a key may be seen."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        qkv = self.attn_qkv(self.norm1(x) * (1 + scale1) + shift1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, angles).to(v.dtype), rotate(k, angles).to(v.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + gate1 * self.attn_out(attended.transpose(1, 2).flatten(2))
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Tokens in, hidden states out; `unembed` is its last layer."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.vocab_embed = nn.ParameterDict(
            {"embedding": nn.Parameter(torch.randn(config.vocab_size, width))}
        )
        self.sigma_map = nn.ModuleDict({"mlp": nn.Sequential(
            nn.Linear(FREQUENCIES, config.cond_dim), nn.SiLU(),
            nn.Linear(config.cond_dim, config.cond_dim),
        )})  # fmt: skip
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.output_layer = nn.ModuleDict({
            "norm_final": Norm(width),
            "linear": nn.Linear(width, config.vocab_size),
            "adaLN_modulation": nn.Linear(config.cond_dim, 2 * width),
        })  # fmt: skip

    def condition(self) -> Tensor:
        """c at t = 0: (C_cond,)."""
        embedding = self.vocab_embed["embedding"]
        time = torch.ones(FREQUENCIES, dtype=embedding.dtype, device=embedding.device)
        time[FREQUENCIES // 2 :] = 0
        return F.silu(self.sigma_map["mlp"](time))

    def embed(self, tokens: Tensor) -> Tensor:
        """(…) → (…, C)."""
        return F.embedding(tokens, self.vocab_embed["embedding"])

    def get_input_embeddings(self) -> Callable[[Tensor], Tensor]:
        """As the `transformers` library's models do."""
        return self.embed

    def forward(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, L) tokens, (B, L) 1 at what is not a pad → (B, L, C)."""
        x, c = self.embed(tokens), self.condition()
        channels = self.config.hidden_dim // self.config.n_heads
        angles = rotation(torch.arange(tokens.shape[1], device=tokens.device), channels, x.dtype)
        mask = None if real is None else real.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, c, angles, mask)
        return x

    def unembed(self, hidden: Tensor) -> Tensor:
        """(…, C) → (…, V)."""
        layer = self.output_layer
        shift, scale = layer["adaLN_modulation"](self.condition()).chunk(2, dim=-1)
        return layer["linear"](layer["norm_final"](hidden) * (1 + scale) + shift)


class MDLMTrunk(HubTrunk):
    """The published MDLM weights, or any of their layout."""

    writes_specials: ClassVar[bool] = True  # the end-of-text token separates documents

    @staticmethod
    def fits(model: Any) -> bool:
        """Our own module only: the published class would need its repository's code."""
        return isinstance(model, DiT)

    @staticmethod
    def read_width(model: Any) -> int:
        """C."""
        return model.config.hidden_dim

    @staticmethod
    def read_blocks(model: Any) -> int:
        """Blocks."""
        return model.config.n_blocks

    @staticmethod
    def read_length(model: Any) -> int | None:
        """The length of training."""
        return model.config.model_length

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """All blocks."""
        return self.model(tokens, real)

    def logits(self, hidden: Tensor) -> Tensor:
        """The last layer."""
        return self.model.unembed(hidden)

    def own_logits(self, tokens: Tensor) -> Tensor:
        """The same two: this class *is* the model."""
        return self.model.unembed(self.model(tokens))


def load(name: str, config: dict[str, Any], revision: str | None = None) -> DiT:
    """The network with published weights.

    Args:
        name: a folder, or a repository of the Hub, with `model.safetensors`.
        config: its `config.json`.
        revision: of the repository.

    Raises:
        ValueError: the model was trained with time, or the weights are of another layout.
        OSError: no such file.
    """
    if config.get("time_conditioning"):
        raise ValueError(f"`model` must be an MDLM without time conditioning, got {name!r} with it")
    known = {f.name for f in fields(DiTConfig)}
    model = DiT(DiTConfig(**{key: value for key, value in config.items() if key in known}))
    path = Path(name, "model.safetensors")
    if not path.is_file():
        path = Path(transformers().utils.cached_file(name, path.name, revision=revision))
    weights = {key.removeprefix("backbone."): value
               for key, value in safetensors.torch.load_file(path).items()
               if not key.endswith("rotary_emb.inv_freq")}  # fmt: skip
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        message = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path}: weights do not fit the config ({message})") from error
    return model
