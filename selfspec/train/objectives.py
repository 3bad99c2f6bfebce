"""The three training jobs, each an object with the same three methods.

    Diffusion()                     trunk and head jointly; without a head, plain masked diffusion
    Diffusion(freeze_trunk=True)    the head alone, on a trunk that runs without gradients
    NextToken()                     an autoregressive model: the judge

`draw` makes everything random about a batch at once, so that splitting it into micro-batches
changes nothing; `loss` is then a function of what was drawn, apart from dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfspec.losses import next_token_loss, ssmd_loss, stratified_revealed

Drawn = dict[str, Any]
"""Tensors (B, ...) by the names that the loss has for them."""


@dataclass(frozen=True)
class Chance:
    """Random numbers for the rows of a global batch: a rank gets what one process would give them.

    Attributes:
        generator: on the device of the rows.
        rank, world: r of w processes has the rows r, r + w, …
    """

    generator: torch.Generator
    rank: int = 0
    world: int = 1

    def uniform(self, rows: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers in [0, 1) for this rank's rows: (rows, …)."""
        device = self.generator.device
        size = (rows * self.world, *shape)
        numbers = torch.rand(size, generator=self.generator, device=device, dtype=dtype)
        return numbers[self.rank :: self.world]

    def seeds(self, rows: int) -> Tensor:
        """A seed for each of this rank's rows: (rows,) int64."""
        device = self.generator.device
        size = (rows * self.world,)
        seeds = torch.randint(1 << 62, size, generator=self.generator, device=device)
        return seeds[self.rank :: self.world]

    def common(self) -> Tensor:
        """One number in [0, 1) for all rows of all ranks."""
        return torch.rand((), generator=self.generator, device=self.generator.device)


class Objective(Protocol):
    """What a training run minimises."""

    def trainable(self, model: Any) -> nn.Module:
        """The part of `model` whose weights move; the rest is fixed, without dropout."""
        ...

    def draw(self, tokens: Tensor, chance: Chance, pad: Tensor | None = None) -> Drawn:
        """What `loss` needs for the tokens (B, L) of this rank and their pads."""
        ...

    def loss(self, model: Any, **drawn: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The mean loss over the rows, and its named parts, all scalars in nats per token."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """Masked diffusion with the causal head's loss beside it where the model has a head.

    Attributes:
        freeze_trunk: train the head alone.
        window_weight: weight of the head's loss over the window of a sampler, with Δτ drawn
            log-uniformly from 0.01 to 0.3; 0 leaves the term out.
        observed: tokens that are always revealed, such as those that stand around a sequence.
    """

    freeze_trunk: bool = False
    window_weight: float = 0.0
    observed: tuple[int, ...] = ()

    def trainable(self, model: Any) -> nn.Module:
        """The whole model, or its head."""
        if not self.freeze_trunk:
            return model
        if model.head is None:
            raise ValueError("`freeze_trunk` needs a model with a head, got one without")
        return model.head

    def draw(self, tokens: Tensor, chance: Chance, pad: Tensor | None = None) -> Drawn:
        """The arguments of `ssmd_loss`: a uniform order with pads last, and how much is revealed.

        The numbers revealed are spread evenly over 0..N-1, N the tokens of a row that are neither
        pads nor observed; observed ones come first and on top of that.
        """
        keys = chance.uniform(*tokens.shape)
        observed = is_one_of(tokens, self.observed)
        keys = torch.where(observed, keys - 1, keys)
        if pad is not None:
            observed, keys = observed & ~pad, keys.masked_fill(pad, 2.0)
        first = observed.sum(1)
        end = torch.full_like(first, tokens.shape[1]) if pad is None else (~pad).sum(1)
        u = chance.common()
        revealed = stratified_revealed(first, end, u, chance.rank, chance.world)
        drawn = {"tokens": tokens, "order": keys.argsort(1), "revealed": revealed}
        if pad is not None:
            drawn["pad"] = pad
        if self.window_weight:
            u = chance.uniform(len(tokens))
            drawn["window"] = _random_windows(revealed - first, end - first, u)
        return drawn

    def loss(self, model: Any, **drawn: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """`ssmd_loss`; the parts are `draft` (the bound) and, with a head, `target`, `window`."""
        loss = ssmd_loss(
            model,
            **drawn,
            freeze_trunk=self.freeze_trunk,
            window_weight=self.window_weight,
        )
        parts = {"draft": loss.draft, "target": loss.target, "window": loss.window}
        return loss.total, {name: part for name, part in parts.items() if part is not None}


def is_one_of(tokens: Tensor, ids: tuple[int, ...]) -> Tensor:
    """(B, L) bool, without a copy to the device."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for i in ids:
        found |= tokens == i
    return found


def _random_windows(generated: Tensor, total: Tensor, u: Tensor) -> Tensor:
    """The cosine window (`schedules.py`) of every row at a random Δτ: (B,) int64, at least 1.

    With `generated` of `total` (B,) tokens known and `u` (B,) uniform in [0, 1). In float32: a
    training batch need not agree with the sampler's table in every entry.
    """
    dtau = 0.01 * 30.0**u
    tau = (1 - generated / total.clamp(min=1)).acos() * 2 / torch.pi
    masked = (total * torch.cos(torch.pi / 2 * (tau + dtau).clamp(max=1))).floor().clamp(min=0)
    return (total - generated - masked.long()).clamp(min=1)


@dataclass(frozen=True)
class NextToken:
    """The next-token loss of an autoregressive model; nothing is random."""

    def trainable(self, model: Any) -> nn.Module:
        """The whole model."""
        return model

    def draw(self, tokens: Tensor, chance: Chance, pad: Tensor | None = None) -> Drawn:
        """The tokens (B, L), and their pads."""
        return {"tokens": tokens} if pad is None else {"tokens": tokens, "pad": pad}

    def loss(self, model: Any, **drawn: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """`next_token_loss`, under the name `judge`."""
        loss = next_token_loss(model, **drawn)
        return loss, {"judge": loss}
