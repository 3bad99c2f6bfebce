"""Muon where the library's own step is slow, or rounds otherwise than one process does.

With the gradient G of a matrix W, its momentum M, learning rate η and weight decay λ:

    M ← μ M + (1 - μ) G
    X ← (μ M + (1 - μ) G) / ‖·‖, then five times X ← a X + (b X Xᵀ + c (X Xᵀ)²) X
    W ← (1 - η λ) W - .2 √max(rows, columns) η X

so that X is nearly U Vᵀ of the momentum U Σ Vᵀ (Jordan et al., 2024; the constants are the
library's). `torch.optim.Muon` iterates in bfloat16. A CPU without such products takes 45 times as
long for them as in float32, which was 98 % of a step of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selfspec.train.parallel import is_sharded, whole

__all__ = ["Muon"]


class Muon(torch.optim.Muon):
    """Muon on the CPU, in float32, and on sharded matrices.

    Momentum stays on shards; the orthogonal factor is that of the gathered whole. The library's
    own step would run on sharded tensors too, but multiplies them in pieces, with another rounding
    than on one process. On a GPU the whole travels in bfloat16, in which the library starts.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step over all matrices that have gradients."""
        for settings in self.param_groups:
            for param in settings["params"]:
                if param.grad is not None:
                    self._move(param, settings)

    def _move(self, param: Tensor, settings: dict[str, Any]) -> None:
        assert param.grad is not None
        state, momentum = self.state[param], settings["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param.grad)
        buffer = state["momentum_buffer"].lerp_(param.grad, 1 - momentum)
        update = param.grad.lerp(buffer, momentum)
        if update.is_cuda:
            move = _of_library(whole(update.bfloat16()).to(param.dtype), settings)
        else:
            rate = 0.2 * max(param.shape) ** 0.5 * settings["lr"]
            move = -rate * orthogonal(whole(update), settings).to(param.dtype)
        param.mul_(1 - settings["lr"] * settings["weight_decay"])
        param.add_(_divided(move, param) if is_sharded(param) else move)


def orthogonal(matrix: Tensor, settings: dict[str, Any]) -> Tensor:
    """X of a matrix after `ns_steps`, in float32."""
    a, b, c = settings["ns_coefficients"]
    x = matrix.float()
    x = x.T if len(x) > x.shape[1] else x  # the smaller product
    x = x / x.norm().clamp(min=settings["eps"])
    for _ in range(settings["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if x.shape != matrix.shape else x


def _of_library(update: Tensor, settings: dict[str, Any]) -> Tensor:
    """What the library's Muon adds to a matrix for this update."""
    move = nn.Parameter(torch.zeros_like(update))
    move.grad = update
    plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    same = {name: settings[name] for name in ("lr", "adjust_lr_fn")}
    torch.optim.Muon([move], **plain, **same).step()
    return move.detach()


def _divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank holds whole, sharded as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
