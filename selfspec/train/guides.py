"""Training of the small networks that guide a sampler, on a frozen model.

`Errors` trains the predictor g of guided star-shaped sampling. With x masked as in `Diffusion` and
x̂ filled by draws x̂_ℓ ~ p_ℓ of the model,

    loss = mean over rows and their positions ℓ of  -log P_g(x̂_ℓ ≠ x_ℓ or not | x̂),

a binary cross-entropy; known positions are right and count too, as g cannot tell them. Source:
star-shaped diffusion 2510.08369.

`GRPO` trains the policy of `PolicySampler`. From each blank row a group of G texts is sampled, with

    R = quality(text) · (1 - steps/N)^α,          A = (R - mean R) / std R within the group,
    loss = -mean of A · Σ_steps Σ_{ℓ ∈ M} log P(u_ℓ | b_ℓ),

the log-probability of the policy's coins. Each group is used for one update only, so that the ratio
of GRPO is 1, and its clipping never acts. Source: 2512.09106 (G = 8, trunk frozen). The quality of
a text is the caller's, for instance `Likelihood` under a judge; one that likes likely texts is paid
for with diversity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.scorer import Scorer
from selfspec.ops import draw, inverse_order, log_probs
from selfspec.sampling.base import State
from selfspec.sampling.policy import PolicySampler
from selfspec.train.config import require
from selfspec.train.objectives import Chance, Diffusion, Drawn
from selfspec.weights import fingerprint

Quality = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OnFrozen:
    """What is trained beside a frozen model, which the run is known by."""

    model: SSMD = field(repr=False)
    observed: tuple[int, ...] = ()
    """Tokens that are always known."""
    frozen: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frozen", fingerprint(self.model.parameters()))

    def trainable(self, model: Any) -> nn.Module:
        """The whole small network."""
        return model


@dataclass(frozen=True)
class Errors(OnFrozen):
    """The error predictor; see the module."""

    def draw(self, tokens: Tensor, chance: Chance, pad: Tensor | None = None) -> Drawn:
        """What `Diffusion` draws, and a number for each token."""
        drawn = Diffusion(observed=self.observed).draw(tokens, chance, pad)
        return {**drawn, "u": chance.uniform(*tokens.shape, dtype=torch.float64)}

    def loss(self, model: Any, **drawn: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The cross-entropy, under the name `errors`."""
        tokens, pad = drawn["tokens"], drawn.get("pad")
        ours = torch.ones_like(tokens, dtype=torch.bool) if pad is None else ~pad
        tokens = tokens.masked_fill(~ours, 0)
        masked = (inverse_order(drawn["order"]) >= drawn["revealed"].unsqueeze(1)) & ours
        with torch.no_grad():
            hidden = self.model.encode(tokens.masked_fill(masked, self.model.mask_id), pad)
            guess = draw(log_probs(self.model.draft(hidden)).exp(), drawn["u"])
        guess = torch.where(masked, guess, tokens)
        wrong, odds = (guess != tokens).float(), model(guess, pad).float()
        cost = F.binary_cross_entropy_with_logits(odds, wrong, reduction="none")
        loss = ((cost * ours).sum(1) / ours.sum(1)).mean()
        return loss, {"errors": loss}


@dataclass(frozen=True)
class Likelihood:
    """The quality of a text: exp of its mean log-probability a token under a judge, in (0, 1]."""

    judge: AutoregressiveModel = field(repr=False)
    frozen: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frozen", fingerprint(self.judge.parameters()))

    def __call__(self, tokens: Tensor, pad: Tensor) -> Tensor:
        """(B, L) tokens and pads → (B,)."""
        logp = self.judge.log_probs(tokens.masked_fill(pad, 0)).masked_fill(pad, 0)
        return (logp.sum(1) / (~pad).sum(1)).exp()


@dataclass(frozen=True)
class GRPO(OnFrozen):
    """The policy; see the module.

    Attributes:
        quality: (B, L) tokens and (B, L) pads → (B,) in [0, 1].
        group: G ≥ 2, texts a row.
        alpha: α ≥ 0, the price of a step.
        policy_temperature: τ of the coins.
    """

    quality: Quality = field(kw_only=True, repr=False)
    group: int = 8
    alpha: float = 1.0
    policy_temperature: float = 1.0
    judged: str = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A resumed run must have the same quality; the address of a function is not its name.
        judged = getattr(self.quality, "__qualname__", repr(self.quality))
        object.__setattr__(self, "judged", judged)
        require(self.group >= 2, "group", "at least 2", self.group)
        require(self.alpha >= 0, "alpha", "at least 0", self.alpha)

    def draw(self, tokens: Tensor, chance: Chance, pad: Tensor | None = None) -> Drawn:
        """A seed a row; of the tokens the observed ones are used, and their number."""
        given = {"tokens": tokens, "seeds": chance.seeds(len(tokens))}
        return given if pad is None else {**given, "pad": pad}

    def loss(self, model: Any, **drawn: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Sample, judge, and weigh what the policy did; the parts are `reward` and `steps`."""
        tokens, seeds, pad = drawn["tokens"], drawn["seeds"], drawn.get("pad")
        pad = torch.zeros_like(tokens, dtype=torch.bool) if pad is None else pad
        known = pad.clone()
        for token in self.observed:
            known |= tokens == token
        blank = torch.where(known, tokens, self.model.mask_id).repeat_interleave(self.group, 0)
        seeds = (seeds.unsqueeze(1) + torch.arange(self.group, device=seeds.device)).flatten()
        pads = pad.repeat_interleave(self.group, 0)
        rollouts = Rollouts(self.model, model, self.policy_temperature)
        texts = rollouts.sample(blank, seeds, pads).tokens
        logp, steps = rollouts.log_prob(len(texts))
        n = (~known).sum(1).clamp(min=1).repeat_interleave(self.group)
        with torch.no_grad():
            reward = self.quality(texts, pads) * (1 - steps / n).clamp(min=0) ** self.alpha
        groups = reward.view(-1, self.group)
        spread = groups.std(1, keepdim=True).clamp(min=1e-6)
        advantage = ((groups - groups.mean(1, keepdim=True)) / spread).flatten()
        return -(advantage * logp).mean(), {"reward": reward.mean(), "steps": steps.mean()}


class Rollouts(PolicySampler):
    """Remembers what the policy saw and did."""

    def __init__(self, model: SSMD, policy: Scorer, policy_temperature: float):
        super().__init__(model, policy, policy_temperature)
        self.seen: list[tuple[Tensor, ...]] = []

    def act(self, state: State, features: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """As the sampler does."""
        odds, taken = super().act(state, features, masked)
        self.seen.append((state.index, features, state.pad, masked, taken))
        return odds, taken

    def log_prob(self, rows: int) -> tuple[Tensor, Tensor]:
        """Of the coins of every row, (rows,) with a gradient; and its steps, (rows,) float64."""
        device = self.model.device
        logp = torch.zeros(rows, dtype=torch.float64, device=device)
        steps = torch.zeros_like(logp)
        for index, features, pad, masked, taken in self.seen:
            odds = self.odds(features, pad)
            coins = F.logsigmoid(torch.where(taken, odds, -odds)).masked_fill(~masked, 0)
            logp = logp.index_add(0, index, coins.sum(1))
            steps = steps.index_add(0, index, torch.ones_like(logp[index]))
        return logp, steps.detach()
