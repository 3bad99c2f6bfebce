"""UniRef50 as the paper ran it: one causal block on a frozen protein language model.

Source: Campbell et al. 2025 (arXiv 2510.03929): the trunk is a masked diffusion of ESM-2's shape
with 30 layers and 150M parameters, DPLM (Wang et al. 2024, arXiv 2402.18567: `airkingbd/dplm_150m`
on the Hub), which stays frozen; one causal block is trained on UniRef50. At most 1,022 residues, as
for DPLM. The optimiser is the one published for OpenWebText; batch size and steps are this
project's choice. **This recipe has not been run by this project.**

    selfspec prepare fasta --source uniref50 --alphabet esm --out data/uniref50
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from selfspec.data.corpus import Store
from selfspec.data.tokenizers import ESM_ALPHABET, ProteinTokenizer
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.recipes.recipe import make_trainer
from selfspec.train import AdamWConfig, Cosine, Diffusion, TrainConfig, Trainer

TRUNK = "airkingbd/dplm_150m"
LENGTH = 1022
HEAD = HeadConfig(heads=20, blocks=1)
"""As many attention heads as a layer of the trunk has."""
VALID_ROWS = 1024


def settings(steps: int = 100_000, **changes: Any) -> TrainConfig:
    """256 proteins a step; AdamW on half a cosine."""
    made = TrainConfig(
        steps=steps,
        batch_size=256,
        accumulate=8,
        adamw=AdamWConfig(lr=1.5e-4, betas=(0.9, 0.999), weight_decay=0.01),
        schedule=Cosine(warmup=min(10_000, steps // 10)),
        clip=1.0,
        ema_decay=0.9999,
        valid_every=5_000,
        save_every=5_000,
    )
    return replace(made, **changes)


def attach(trunk: torch.nn.Module, head: HeadConfig = HEAD, seed: int = 0) -> SSMD:
    """A masked protein model with a fresh causal head.

    Args:
        trunk: satisfies `TrunkProtocol` over the ids of ESM-2: 32 tokens, of which 32 is the mask.
        head: the shape of the head.
        seed: of its weights.

    Raises:
        ValueError: the trunk has other tokens.
    """
    tokenizer = ProteinTokenizer(ESM_ALPHABET)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = SSMD(trunk, CausalHead(head, int(trunk.width)))  # type: ignore[arg-type]
    if (model.vocab_size, model.mask_id) != (tokenizer.vocab_size, tokenizer.mask_id):
        raise ValueError(f"`trunk` must have ESM-2's 32 tokens and mask 32, got "
                         f"{model.vocab_size} and {model.mask_id}")  # fmt: skip
    model.tokenizer = tokenizer
    return model


def trainer(
    model: SSMD,
    folder: str | os.PathLike[str] | None,
    train: Store,
    valid: Store | None = None,
    device: str | torch.device | None = None,
    **changes: Any,
) -> Trainer:
    """Trains the head of a model from `attach`; the trunk stays frozen.

    Args:
        model: the trunk and its head.
        folder: for checkpoints and logs; a run found there is resumed.
        train, valid: ragged stores of `selfspec prepare fasta --alphabet esm`.
        device: where to train; CUDA if there is one.
        **changes: of `settings`.

    Raises:
        ValueError: the data have another alphabet, or a setting is out of its range.
    """
    return make_trainer(
        model, Diffusion(freeze_trunk=True), settings(**changes), folder, train, valid,
        min(LENGTH, model.length), VALID_ROWS, device,
    )  # fmt: skip
