"""text8 with the published settings.

Source: Campbell et al. 2025 (arXiv 2510.03929): 11 non-causal blocks and one causal, D = 256, 27
symbols, 150M parameters; AdamW with betas (0.9, 0.999), learning rate 1.5e-4 on a cosine after
10,000 steps of warm-up, weight decay 0.01, clip 1.0, dropout 0.1, batch 256, a million steps. The
optimiser's settings are those published for OpenWebText. This project's: width 1024 with 16
attention heads, a reading of "150M" (155M here), the blocks themselves and the average of the
weights. `selfspec recipes` says what it costs. **It has not been run to its end by this project.**
"""

from __future__ import annotations

from typing import Any

from selfspec.nn.head import HeadConfig
from selfspec.nn.transformer import TrunkConfig
from selfspec.recipes.openwebtext import published
from selfspec.recipes.recipe import Recipe
from selfspec.train import Diffusion

TRUNK = TrunkConfig(vocab_size=27, length=256, width=1024, blocks=11, heads=16, dropout=0.1)
HEAD = HeadConfig(heads=16, blocks=1, dropout=0.1)


def text8(steps: int = 1_000_000, **changes: Any) -> Recipe:
    """Trunk and head jointly, from scratch."""
    return Recipe("text8", TRUNK, Diffusion(), published(steps, **changes), HEAD)
