"""The cross-entropy of a batch, unembedding only where the loss looks.

    loss = Σ_n w_n · -log softmax(U h_n)[x_n],        n over all places of all rows, U = `unembed`

Of a batch of masked diffusion half of the w_n are 0: what is known is not predicted. So the places
of weight are put first and go through U in portions of one size, as many as hold them; what is left
of the last one is filled with places of weight 0. A compiled U has one shape then, and the logits
of one portion exist at a time: as the w_n are known, a portion's gradient is made with its logits,
and only multiplied by the gradient of the loss later.

The host has to know how many portions there are. The number sets out when the weights are made and
is waited for when the states are there: the device, which has to make them, never waits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["TokenNLL", "WeightedNLL", "token_nll"]

SHARE, LEAST, LOGITS = 8, 256, 2**28
"""A portion has an eighth of all places; at least so many of them, and at most so many logits."""


class TokenNLL(nn.Module):
    """Cross-entropy of each token; a module, so that training can compile it.

    With the unembedding inside: compiled, its padded logits are then neither cut nor padded again.
    """

    def forward(self, trunk: nn.Module, states: Tensor, tokens: Tensor) -> Tensor:
        """(…, C) states to unembed and (…) tokens → (…) nats, in float32 at least."""
        logits = trunk.unembed(states)  # type: ignore[operator]
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(precise.flatten(0, -2), tokens.flatten(), reduction="none")
        return nll.view(tokens.shape)


token_nll = TokenNLL()


class WeightedNLL:
    """Σ weight · nll; to be made before the states are, as the module says.

    What has no weight may have an infinite nll, as the draft of a forbidden token has.

    Args:
        weight: (B, L), at least 0.
    """

    def __init__(self, weight: Tensor) -> None:
        heavy = weight.flatten() > 0
        self._number = _Arriving(heavy.sum())
        self._places = heavy.argsort(descending=True, stable=True)
        self._weight = weight.flatten()[self._places]

    def __call__(self, trunk: nn.Module, states: Tensor, tokens: Tensor) -> Tensor:
        """(B, L, C) states and (B, L) tokens → scalar nats, with a gradient of first order."""
        learning = torch.is_grad_enabled()
        trained = [p for p in trunk.parameters() if learning and p.requires_grad]
        states = states if learning else states.detach()
        portions = self._portions(trunk.vocab_size)  # type: ignore[arg-type]
        return _Portions.apply(trunk, tokens, portions, states, *trained)  # type: ignore[return-value]

    def _portions(self, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
        """Places and their weights, those of weight first."""
        total = len(self._places)
        size = min(max(total // SHARE, LEAST), max(LOGITS // vocab_size, 1), total)
        used = max(1, math.ceil(self._number.get() / size)) * size
        both = self._places, self._weight
        cut = (F.pad(x, (0, max(0, used - total)))[:used].split(size) for x in both)
        return list(zip(*cut, strict=True))


class _Portions(torch.autograd.Function):
    """The sum over portions; gradients of states and parameters are made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        trunk: nn.Module,
        tokens: Tensor,
        portions: list[tuple[Tensor, Tensor]],
        states: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        flat, answers, learns = states.flatten(0, 1), tokens.flatten(), states.requires_grad
        total = torch.zeros((), dtype=torch.float64, device=states.device)
        towards_states = torch.zeros_like(flat) if learns else None
        towards_trained: list[Tensor | None] = [None] * len(trained)
        for places, weight in portions:
            own = flat[places].requires_grad_(learns)
            inputs = [*trained, *([own] if learns else [])]
            with torch.set_grad_enabled(bool(inputs)):
                nll = token_nll(trunk, own, answers[places]).masked_fill(weight == 0, 0)
                part = (nll * weight.to(nll.dtype)).sum()
            total += part.detach()
            found: Any = torch.autograd.grad(part, inputs, allow_unused=True) if inputs else []
            towards_trained = list(map(_plus, towards_trained, found))
            if towards_states is not None:
                towards_states.index_add_(0, places, found[-1])
        ctx.save_for_backward(*towards_trained, towards_states)
        ctx.shape = states.shape
        return total.to(torch.promote_types(states.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        scaled = [None if g is None else g * upstream[0].to(g.dtype) for g in ctx.saved_tensors]
        towards_states = None if scaled[-1] is None else scaled[-1].view(ctx.shape)
        return None, None, None, towards_states, *scaled[:-1]


def _plus(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    """In place; None for what has no gradient, or none yet."""
    return term if total is None or term is None else total.add_(term)


class _Arriving:
    """A number on its way to the host, which may do other things meanwhile."""

    def __init__(self, number: Tensor) -> None:
        self._near = number.to("cpu", non_blocking=number.is_cuda)
        stream = torch.cuda.current_stream(number.device) if number.is_cuda else None
        self._sent = stream.record_event() if stream else None

    def get(self) -> int:
        """The number; waits until it is there."""
        if self._sent:
            self._sent.synchronize()
        return int(self._near)
