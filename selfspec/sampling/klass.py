"""KLASS: positions that are sure and have been stable.

With d_ℓ = KL(p_ℓ now ‖ p_ℓ one pass ago),

    S = {ℓ ∈ M : the last n values of d_ℓ all < ε, and max p_ℓ > τ},
    U = S, or the u surest positions where S is empty,     x_U ~ p_U.

So the first n passes find no stable position. Source: KLASS 2511.05664 (n = 2; τ = 0.6, ε = 0.015
for LLaDA on GSM8K; u = 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.model import SSMD
from selfspec.sampling.base import State
from selfspec.sampling.plain import PlainSampler
from selfspec.schedules import UnboundedWindow
from selfspec.selection import Confidence, ScoreOrder, divergence

__all__ = ["KLASSSampler"]


@dataclass
class KLASSState(State):
    """What was drafted before."""

    previous: Tensor
    """(B, L, V) log-probabilities of the last pass; -inf before the first."""
    stable: Tensor
    """(B, L) int64 passes in a row with d below ε."""


class KLASSSampler(PlainSampler):
    """Positions that are sure and stable; see the module.

    Args:
        model: an `SSMD`.
        tau: τ in [0, 1].
        epsilon: ε > 0, nats.
        history: n ≥ 1.
        fallback: u ≥ 1.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        model: SSMD,
        tau: float = 0.6,
        epsilon: float = 0.015,
        history: int = 2,
        fallback: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, None, UnboundedWindow(), temperature, top_p)
        if not 0 <= tau <= 1:
            raise ValueError(f"`tau` must be in [0, 1], got {tau}")
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be above 0, got {epsilon}")
        for name, value in {"history": history, "fallback": fallback}.items():
            whole(name, value, least=1)
        self.tau, self.epsilon, self.history, self.fallback = tau, epsilon, history, fallback

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> KLASSState:
        """No history yet."""
        state = super().start(tokens, seeds, pad)
        shape = (*tokens.shape, self.model.vocab_size)
        unknown = torch.full(shape, -torch.inf, dtype=torch.float64, device=tokens.device)
        return KLASSState(**vars(state), previous=unknown, stable=torch.zeros_like(tokens))

    def arrange(self, state: State, hidden: Tensor) -> Tensor:
        """Stable and sure positions first; their number, or u."""
        assert isinstance(state, KLASSState)
        logp = self.log_probs(self.model.draft(hidden))
        calm = divergence(logp, state.previous) < self.epsilon
        state.stable = torch.where(calm, state.stable + 1, 0)
        state.previous = logp
        confidence = Confidence()(logp)
        masked = state.tokens == self.model.mask_id
        chosen = masked & (state.stable >= self.history) & (confidence > self.tau)
        state.reorder(ScoreOrder(lambda _: confidence + chosen).reading(logp))
        fallback = (state.end - state.revealed).clamp(max=self.fallback)
        return torch.where(chosen.any(1), chosen.sum(1), fallback)
