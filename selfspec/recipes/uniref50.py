"""UniRef50 as the paper ran it: one causal block on a frozen protein language model.

Source: Campbell et al. 2025 (arXiv 2510.03929): the trunk is a masked diffusion of ESM-2's shape
with 30 layers and 150M parameters, DPLM (Wang et al. 2024, arXiv 2402.18567: `airkingbd/dplm_150m`
on the Hub), which stays frozen; one causal block is trained on UniRef50. At most 1,022 residues, as
for DPLM; as many attention heads as a layer of the trunk has. Optimiser, batch size and dropout are
those published for OpenWebText; the number of steps is this project's choice. **This recipe has not
been run by this project**, only its stand-in in the tests.

    selfspec train uniref50 --data uniref50.fasta.gz --out runs/uniref50

The sequences of UniRef50 are representatives of clusters of 50 % identity, so the rows that
`recipes.attach` holds out are no near relatives of those that it trains on.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from selfspec.hub import attach_head
from selfspec.recipes.attach import attach
from selfspec.train import AdamWConfig, Cosine, Trainer

TRUNK = "airkingbd/dplm_150m"
LENGTH = 1024
"""1,022 residues between <cls> and <eos>."""
HEADS, DROPOUT = 20, 0.1


def settings(steps: int = 100_000, **changes: Any) -> dict[str, Any]:
    """Of `TrainConfig`: 256 proteins a step, AdamW on half a cosine."""
    published: dict[str, Any] = {
        "batch_size": 256,
        "accumulate": 8,
        "adamw": AdamWConfig(lr=1.5e-4, betas=(0.9, 0.999), weight_decay=0.01),
        "muon": None,
        "schedule": Cosine(warmup=min(10_000, steps // 10)),
        "clip": 1.0,
        "ema_decay": 0.9999,
        "valid_every": 5_000,
        "save_every": 5_000,
    }
    return {"steps": steps, **published, **changes}


def trainer(
    data: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    trunk: Any = TRUNK,
    device: str | torch.device | None = None,
    progress: bool = True,
    **changes: Any,
) -> Trainer:
    """A trainer of the head; the same call resumes a run.

    Args:
        data: UniRef50 as FASTA, plain or packed.
        folder: of the run.
        trunk: a name, a folder or a model, as for `attach_head`.
        device: where to train; CUDA if there is one.
        progress: show bars.
        **changes: of `settings`; `seed` is that of the head's weights too.

    Raises:
        ValueError, OSError, RuntimeError: as `attach_head` and `recipes.attach`.
    """
    model = attach_head(trunk, heads=HEADS, dropout=DROPOUT, seed=changes.get("seed", 0))
    length = min(LENGTH, model.length)
    return attach(
        model, data, folder, rows="lines", length=length, device=device, progress=progress,
        **settings(**changes),
    )  # fmt: skip
