"""Which optimiser moves which parameter.

    hidden matrices   weights of two axes inside the network          Muon, or AdamW with decay
    the rest          embeddings and unembeddings (AdamW with decay),
                      gains, biases and other vectors (AdamW without decay)

Muon replaces the momentum M of a matrix by the nearest orthogonal one, U Vᵀ of M = U Σ Vᵀ. That
suits a map between hidden states, but neither a table that is looked up nor a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selfspec.train.config import AdamWConfig, MuonConfig
from selfspec.train.muon import Muon
from selfspec.train.parallel import is_sharded


def hidden_matrices(model: nn.Module, vocab_size: int) -> set[str]:
    """Names of the parameters that Muon may take.

    Args:
        model: any network.
        vocab_size: V; a matrix with V or V + 1 rows is a table over the vocabulary.

    Returns:
        The weights of linear layers that are not tables over the vocabulary.
    """
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features not in (vocab_size, vocab_size + 1)
    }


class Optimisers:
    """AdamW and, if asked for, Muon over the trainable parameters of a model, as one.

    Args:
        model: its parameters with `requires_grad` are optimised.
        adamw: AdamW's settings.
        muon: Muon's settings; None gives everything to AdamW.
        vocab_size: see `hidden_matrices`.
    """

    def __init__(
        self, model: nn.Module, adamw: AdamWConfig, muon: MuonConfig | None, vocab_size: int
    ) -> None:
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        hidden = hidden_matrices(model, vocab_size) if muon else set()
        split: dict[str, list[Tensor]] = {"muon": [], "matrices": [], "vectors": []}
        for name, param in self.params.items():
            kind = "muon" if name in hidden else "matrices" if param.ndim > 1 else "vectors"
            split[kind].append(param)
        self.optimizers: list[Optimizer] = [_adamw(adamw, split["matrices"], split["vectors"])]
        if muon and split["muon"]:
            self.optimizers.append(_muon(muon, split["muon"]))
        self._full_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    def step(self, factor: float) -> None:
        """One step with every learning rate multiplied by `factor`; clears the gradients."""
        for optimizer, rates in zip(self.optimizers, self._full_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = factor * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All moments as `<parameter>/<moment>`, for a checkpoint."""
        return {
            f"{name}/{key}": value
            for name, param in self.params.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(param, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the moments that `state` returned."""
        moments: dict[str, dict[str, Any]] = {name: {} for name in self.params}
        for path, value in state.items():
            name, key = path.rsplit("/", 1)
            moments[name][key] = value.to(self.params[name].device)
        names = {param: name for name, param in self.params.items()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    optimizer.state[param] = moments[names[param]]


def _adamw(config: AdamWConfig, matrices: list[Tensor], vectors: list[Tensor]) -> Optimizer:
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.is_cuda for p in matrices + vectors)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None
    )


def _muon(config: MuonConfig, matrices: list[Tensor]) -> Optimizer:
    plain = matrices[0].is_cuda and not is_sharded(matrices[0])
    return (torch.optim.Muon if plain else Muon)(
        matrices,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
