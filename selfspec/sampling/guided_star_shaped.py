"""Guided star-shaped: predict the whole row, then mask what a small network takes for errors.

    x̂ = what is known, and a draw x̂_ℓ ~ p_ℓ at every masked ℓ;
    ⌈(1 - α_s) n⌉ of the n positions to generate are masked, drawn without replacement in proportion
    to exp(g_ℓ(x̂)) (those of largest g_ℓ + Gumbel noise); all others stand.

g is a `Scorer` that reads the predicted row alone: g_ℓ is the log-odds that x̂_ℓ is not the true
token, see `train.Errors`. Untrained it is 0, and positions are masked at random. Until the masked
share has fallen to `on` the steps are ancestral, as in `star_shaped`. The choice reads drawn
tokens: the law is its own. A step is one trunk pass and one of g, which counts as the share of a
trunk pass that a block of its width costs. Source: star-shaped diffusion 2510.08369; that the noise
falls on the log-odds is a reading.
"""

import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.nn.scorer import Scorer
from selfspec.noise import Purpose
from selfspec.sampling.base import State
from selfspec.sampling.sets import GivenState, Outcome, at_step, largest
from selfspec.sampling.star_shaped import StarShapedSampler
from selfspec.schedules import Schedule

__all__ = ["GuidedStarShapedSampler"]


class GuidedStarShapedSampler(StarShapedSampler):
    """Predicts all and masks what looks wrong; see the module.

    Args:
        model: an `SSMD`.
        predictor: g, a `Scorer` of the model's tokens, in evaluation mode.
        steps: K ≥ 1.
        on: the masked share from which on positions are masked afresh, in [0, 1]; 0 is ancestral.
        schedule: the masked share over time; linear by default.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: `steps` or `on` out of range, or a predictor of other tokens.
    """

    def __init__(
        self,
        model: SSMD,
        predictor: Scorer,
        steps: int = 64,
        on: float = 0.3,
        schedule: Schedule | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, steps, on, schedule, temperature, top_p)
        if predictor.vocab_size < model.vocab_size:
            raise ValueError(f"`predictor` must read the model's {model.vocab_size} tokens, "
                             f"got {predictor.vocab_size}")  # fmt: skip
        self.predictor = predictor
        self.cost = predictor.share(model.trunk.width, model.num_trunk_blocks)  # type: ignore[arg-type]

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> GivenState:
        """As `Sampler.start`, with an account of shares."""
        state = super().start(tokens, seeds, pad)
        state.trunk_passes = state.trunk_passes.double()
        return state

    def move(self, state: State) -> Outcome:
        """An ancestral step; from `on` on, one trunk pass, one of the predictor, and new masks."""
        assert isinstance(state, GivenState)
        if not bool(at_step(self.star, state).all()):  # all rows are at the same step
            return super().move(state)
        masked, pad = self.masked(state), state.pad if bool(state.pad.any()) else None
        whole = self.drawn(state, self.forward(state, state.tokens))
        whole = torch.where(masked, whole, state.tokens)
        odds = self.predictor(whole, pad).double()
        state.trunk_passes = state.trunk_passes + self.cost
        gumbel = -(-self.noise(state, Purpose.SELECT).log()).log()
        n = (state.end - state.observed).unsqueeze(1)
        count = (n * at_step(self.share, state) - 1e-9).ceil().long().squeeze(1)
        hidden = largest(odds + gumbel, ~state.given, count)
        return Outcome(whole, masked & ~hidden, ~masked & ~state.given & hidden)
