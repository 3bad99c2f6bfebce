"""A learned policy: a small network decides what each pass reveals, from how sure the model is.

    b = policy(max p_ℓ, [ℓ is masked], share of masked positions),
    U = {ℓ ∈ M : u_ℓ < sigmoid(b_ℓ / τ)}, u_ℓ uniform; the largest b_ℓ where that is empty,
    x_U ~ p_U.

The policy is a `Scorer`, trained by `train.GRPO` on the frozen model; untrained it reveals each
position with probability 1/2. It reads no drawn token. A step is one trunk pass and one of the
policy, which counts as the share of a trunk pass that a block of its width costs. Source:
2512.09106, one block of width 128; tokens are drawn here.
"""

import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.nn.scorer import Scorer
from selfspec.noise import Purpose
from selfspec.sampling.base import State
from selfspec.sampling.sets import Outcome, SetSampler, largest
from selfspec.selection import Confidence

__all__ = ["FEATURES", "PolicySampler"]

FEATURES = 3


class PolicySampler(SetSampler):
    """Reveals what a policy says; see the module.

    Args:
        model: an `SSMD`.
        policy: a `Scorer` of `FEATURES` numbers a position, in evaluation mode.
        policy_temperature: τ, above 0.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: a setting out of range, or a policy of other features.
    """

    def __init__(
        self,
        model: SSMD,
        policy: Scorer,
        policy_temperature: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, None, temperature, top_p)
        if policy.config.features != FEATURES:
            raise ValueError(f"`policy` must read {FEATURES} features, "
                             f"got {policy.config.features}")  # fmt: skip
        if not policy_temperature > 0:
            raise ValueError(f"`policy_temperature` must be above 0, got {policy_temperature}")
        self.policy, self.heat = policy, policy_temperature
        self.cost = policy.share(model.trunk.width, model.num_trunk_blocks)  # type: ignore[arg-type]

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> State:
        """As `Sampler.start`, with an account of shares."""
        state = super().start(tokens, seeds, pad)
        state.trunk_passes = state.trunk_passes.double()
        return state

    def move(self, state: State) -> Outcome:
        """One trunk pass, one of the policy; the tokens that it takes are drawn."""
        logp, masked = self.forward(state, state.tokens), self.masked(state)
        share = masked.sum(1, keepdim=True) / (~state.pad).sum(1, keepdim=True)
        features = [Confidence()(logp), masked, share.expand_as(masked)]
        odds, taken = self.act(state, torch.stack([x.double() for x in features], -1), masked)
        state.trunk_passes = state.trunk_passes + self.cost
        one = largest(odds, masked, torch.ones_like(state.end))
        chosen = torch.where(taken.any(1, keepdim=True), taken, one)
        return Outcome(self.drawn(state, logp), chosen)

    def act(self, state: State, features: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """From (B, L, `FEATURES`): b / τ, (B, L) float64, and the positions whose coin says yes."""
        odds = self.odds(features, state.pad)
        return odds, masked & (self.noise(state, Purpose.SELECT) < odds.sigmoid())

    def odds(self, features: Tensor, pad: Tensor) -> Tensor:
        """(B, L, `FEATURES`) → b / τ, (B, L) float64."""
        return self.policy(features, pad if bool(pad.any()) else None).double() / self.heat
