"""What a user could run instead of the engine, each at its best or as it was published.

`mdlm_loop` is the sampler of MDLM (Sahoo et al. 2024, arXiv 2406.07524) with its cache, around the
same trunk, written from its description: in each of T steps from t to s every masked position is
revealed with probability 1 - s/t; laws at *all* positions are computed when something has changed
since they were last, with Gumbel noise in float32, and the host is asked in every step.

`CachedDecoder` is an autoregressive transformer with a static cache of keys and values: one token a
pass, compiled, and recorded as a CUDA graph.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec.model import SSMD
from selfspec.nn.attention import rotate, rotation
from selfspec.nn.transformer import Block, Trunk

__all__ = ["CachedDecoder", "mdlm_loop"]


@torch.no_grad()
def mdlm_loop(model: SSMD, rows: int, length: int, steps: int) -> tuple[Tensor, int]:
    """Sample by the published loop: (rows, length) tokens, and how many trunk passes it took."""
    mask, device, passes = model.mask_id, model.device, 0
    x = torch.full((rows, length), mask, device=device)
    times = torch.linspace(1, 1e-5, steps + 1, device=device)
    laws = None
    for t, s in zip(times[:-1], times[1:]):  # noqa: B905, RUF007
        if laws is None:
            laws, passes = model.draft(model.encode(x)).float().softmax(-1), passes + 1
        weights = F.pad(laws * (t - s), (0, 1))
        weights[..., mask] = s
        noise = 1e-10 - (torch.rand_like(weights) + 1e-10).log()
        drawn = torch.where(x == mask, (weights / noise).argmax(-1), x)
        if not torch.equal(drawn, x):
            laws = None
        x = drawn
    last = model.draft(model.encode(x)).argmax(-1)  # what is masked still, at t near 0
    return torch.where(x == mask, last, x), passes + 1


class CachedDecoder:
    """Ancestral sampling from a causal trunk, a token a pass."""

    def __init__(self, trunk: Trunk, rows: int, fast: bool):
        config, device = trunk.config, next(trunk.parameters()).device
        self.trunk, self.length = trunk, config.length
        shape = (config.blocks, rows, config.heads, config.length, config.width // config.heads)
        kind = trunk.unembedding.weight.dtype
        self.keys = torch.zeros(shape, device=device, dtype=kind)
        self.values = torch.zeros_like(self.keys)
        self.token = torch.full((rows, 1), trunk.mask_id, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(rows, config.length, dtype=torch.int64, device=device)
        # One block is compiled and serves them all.
        self.block = torch.compile(_block, dynamic=False) if fast else _block
        self.graph: torch.cuda.CUDAGraph | None = None
        if fast and device.type == "cuda":
            self._record()

    @torch.no_grad()
    def sample(self) -> Tensor:
        """(rows, length) tokens."""
        self.token.fill_(self.trunk.mask_id)
        self.at.zero_()
        for _ in range(self.length):
            if self.graph is None:
                self._pass()
            else:
                self.graph.replay()
        return self.drawn.clone()

    @torch.no_grad()
    def _record(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), self._precision():
            for _ in range(3):
                self._pass()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self._pass()
        torch.cuda.current_stream().wait_stream(stream)

    def _precision(self):
        low = self.keys.dtype == torch.bfloat16
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if low else nullcontext()

    def _pass(self) -> None:
        x = self.trunk.embed(self.token)
        seen = torch.arange(self.length, device=x.device) <= self.at
        for block, keys, values in zip(self.trunk.blocks, self.keys, self.values, strict=True):
            x = self.block(block, x, keys, values, self.at, seen)  # type: ignore[arg-type]
        law = self.trunk.unembed(x[:, 0]).float().softmax(-1)
        # One over an exponential number, and the largest wins: an exact draw up to float32.
        self.token.copy_((law / torch.empty_like(law).exponential_()).argmax(-1, keepdim=True))
        self.drawn.index_copy_(1, self.at, self.token)
        self.at += 1


def _block(
    block: Block, x: Tensor, keys: Tensor, values: Tensor, at: Tensor, seen: Tensor
) -> Tensor:
    """A block on the token at `at`; its key and value are written to the cache (B, H, L, E)."""
    attention, angles = block.attention, rotation(at, keys.shape[-1])
    qkv = attention.qkv(block.attention_norm(x)).unflatten(-1, (3, attention.heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q = rotate(attention.query_norm(q), angles).to(v.dtype)
    k = rotate(attention.key_norm(k), angles).to(v.dtype)
    keys.index_copy_(2, at, k)
    values.index_copy_(2, at, v)
    attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen[None, None, None])
    x = x + attention.out(attended.transpose(1, 2).flatten(2))
    return x + block.down(F.relu(block.up(block.mlp_norm(x))).square())
