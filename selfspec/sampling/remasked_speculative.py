"""Self-speculative sampling that takes back between its passes, as ReMDM does.

A pass has left j of N tokens generated, and the next one is to end at e = j + W(j) of them at most.
Every generated token is taken back with probability

    σ = min(η, (1 - e/N) / (j/N)),

that of ReMDM's cap for α_t = j/N and α_s = e/N; the next pass drafts and verifies from what is
left up to e, so that what was taken back is made up for. The order is drawn anew over all masked
positions before every pass. After K passes nothing is taken back: the row comes to its end.

What happens to the law: which tokens go depends on j alone, so every pass still reveals draws from
the target given its order, its window and *what is known then*. But a token that stands was drawn
given others that may have gone since: p(x) is no product along any order, and no likelihood is
offered. Were the targets conditionals of one joint law, taking back and drawing again would be a
Gibbs step that keeps it, but for what j, through the rejections, knows of the tokens. Rules that
read tokens (ReMDM's conf) would bias the choice too, and are not here. Source: ReMDM 2503.00307;
its combination with verification is this project's.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.interfaces import Trace
from selfspec.model import SSMD
from selfspec.noise import Purpose, uniform
from selfspec.ops import inverse_order
from selfspec.orders import Order
from selfspec.sampling.base import State
from selfspec.sampling.speculative import SpeculativeSampler
from selfspec.schedules import USUAL_ROUNDS, Window
from selfspec.selection import DraftWindow

__all__ = ["RemaskedSpeculativeSampler"]


@dataclass
class RemaskedState(State):
    """Knows where the coming pass is to end."""

    goal: Tensor
    """(B,) int64 first place behind its window, whatever was taken back."""

    @property
    def window(self) -> Tensor:
        """(B,) int64: up to the goal."""
        return self.goal - self.revealed


class RemaskedSpeculativeSampler(SpeculativeSampler):
    """Drafts, verifies and takes back; see the module.

    Args:
        model: an `SSMD` with a head.
        order: the rule for σ; uniform by default.
        window: W, of counts alone; `LinearWindow(0.045)` by default.
        rounds: R ≥ 1, the most head passes per trunk pass.
        eta: η in [0, 1], the largest σ.
        passes: K ≥ 0, after how many of them tokens are taken back.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: a setting out of range, a model without head, or a window that reads drafts.
    """

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        window: Window | None = None,
        rounds: int = USUAL_ROUNDS,
        eta: float = 0.02,
        passes: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, order, window, rounds, temperature, top_p)
        if isinstance(self.window, DraftWindow):
            raise ValueError(f"`window` must be one of counts alone, "
                             f"got {type(self.window).__name__}")  # fmt: skip
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` must be in [0, 1], got {eta}")
        whole("passes", passes, least=0)
        self.eta, self.passes = eta, passes

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> RemaskedState:
        """As `Sampler.start`."""
        state = super().start(tokens, seeds, pad)
        return RemaskedState(**vars(state), goal=state.revealed + state.window)

    def arrange(self, state: State, hidden: Tensor) -> Tensor:
        """What was taken back may come anywhere among the masked, also in a fixed order."""
        if self.order.fixed:
            state.reorder(self.order)
        return super().arrange(state, hidden)

    def step(self, state: State, trace: Trace | None) -> None:
        """A pass of `SpeculativeSampler`; then tokens are taken back."""
        super().step(state, trace)
        assert isinstance(state, RemaskedState)
        generated = state.revealed - state.observed
        width = state.windows.gather(1, generated.unsqueeze(1)).squeeze(1)
        state.goal = state.revealed + width
        sigma = ((state.end - state.goal) / generated).clamp(max=self.eta)
        sigma = torch.where(state.passes < self.passes, sigma, 0.0).unsqueeze(1)
        positions = torch.arange(state.order.shape[1], device=sigma.device)
        coin = uniform(state.seeds, Purpose.REMASK, state.passes, 0, positions.expand_as(state.pad))
        gone = self.take_back(state, coin < sigma)
        if trace is not None:
            for row, index in enumerate(state.index.tolist()):
                positions = gone[row].nonzero().flatten().tolist()
                trace[index][-1] = replace(trace[index][-1], remasked=positions)

    def take_back(self, state: State, wanted: Tensor) -> Tensor:
        """Mask the generated positions among those `wanted` (B, L); returns them, (B, L) bool."""
        place = inverse_order(state.order)
        known = (place >= state.observed.unsqueeze(1)) & (place < state.revealed.unsqueeze(1))
        gone = known & wanted
        state.tokens = state.tokens.masked_fill(gone, self.model.mask_id)
        behind = state.revealed.unsqueeze(1) - 0.5
        state.order = torch.where(gone, behind, place.double()).argsort(dim=1, stable=True)
        state.revealed = state.revealed - gone.sum(1)
        return gone
