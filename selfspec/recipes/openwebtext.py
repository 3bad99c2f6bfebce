"""OpenWebText at the scale of GPT-2, with the published settings.

    selfspec prepare openwebtext --out data/owt
    torchrun --nproc-per-node 8 -m -- selfspec train openwebtext --data data/owt --out runs/owt

Published (Campbell et al. 2025, arXiv 2510.03929): 11 non-causal blocks and one causal, D = 1024,
GPT-2's BPE, 150M parameters; AdamW with betas (0.9, 0.999), learning rate 1.5e-4 on a cosine after
10,000 steps of warm-up, weight decay 0.01, clip 1.0, dropout 0.1, batch 256, a million steps.

This project's: width 768 and 12 attention heads, as in GPT-2 small, which make 165M parameters here
(126M without the token embedding); the blocks themselves (rotary positions, RMS norms, ReLU²); the
average of the weights; micro-batches (`--accumulate 1` on eight GPUs); and 100,000 documents held
out, as MDLM does. `selfspec recipes` says what it costs. **It has not been run to its end by this
project**, and OpenWebText was not downloaded for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from selfspec.nn.head import HeadConfig
from selfspec.nn.transformer import TrunkConfig
from selfspec.recipes.recipe import Recipe
from selfspec.train import AdamWConfig, Cosine, Diffusion, TrainConfig

TRUNK = TrunkConfig(vocab_size=50257, length=1024, width=768, blocks=11, heads=12, dropout=0.1)
HEAD = HeadConfig(heads=12, blocks=1, dropout=0.1)


def published(steps: int, **changes: Any) -> TrainConfig:
    """The optimiser's settings, for text8 too."""
    config = TrainConfig(
        steps=steps,
        batch_size=256,
        adamw=AdamWConfig(lr=1.5e-4, betas=(0.9, 0.999), weight_decay=0.01),
        schedule=Cosine(warmup=10_000),
        clip=1.0,
        ema_decay=0.9999,
        valid_every=10_000,
        save_every=10_000,
    )
    return replace(config, **changes)


def openwebtext(steps: int = 1_000_000, accumulate: int = 4, **changes: Any) -> Recipe:
    """Trunk and head jointly, from scratch; the vocabulary is that of the data."""
    settings = published(steps, accumulate=accumulate, **changes)
    return Recipe("openwebtext", TRUNK, Diffusion(), settings, HEAD, tokenizer=None)
