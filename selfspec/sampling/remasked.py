"""Sampling along an order that takes back between its passes, as ReMDM does.

A pass has left j of N tokens generated, and the next one is to end at e = j + W(j) of them at most.
Every generated token is taken back with probability

    σ = min(η, (1 - e/N) / (j/N)),

that of ReMDM's cap for α_t = j/N and α_s = e/N; the next pass drafts from what is left up to e, so
that what was taken back is made up for, but no more than max W + ⌈ηN + 4√(ηN)⌉ tokens, which is
hardly ever too few. The order is drawn anew over all masked positions before every pass. After K
passes nothing is taken back: the row comes to its end.

What happens to the law: which tokens go depends on j alone, so every pass still reveals draws from
the draft (or, verified, from the target), given its order, its window and *what is known then*. But
a token that stands was drawn given others that may have gone since: p(x) is no product along any
order, and no likelihood is offered. Were these laws conditionals of one joint law, taking back and
drawing again would be a Gibbs step that keeps it, but for what j, through the rejections, knows of
the tokens. Rules that read tokens (ReMDM's conf) would bias the choice too, and are not here.
Source: ReMDM 2503.00307; its combination with orders and verification is this project's.
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
from selfspec.sampling.base import Sampler, State
from selfspec.sampling.plain import PlainSampler
from selfspec.sampling.speculative import SpeculativeSampler
from selfspec.schedules import USUAL_ROUNDS, Window
from selfspec.selection import DraftWindow

__all__ = [
    "RemaskedPlainSampler",
    "Remasked",
    "RemaskedSpeculativeSampler",
    "RemaskedState",
    "take_back",
]

ETA = 0.05
PASSES = 64


@dataclass
class RemaskedState(State):
    """Knows where the window of the coming pass ends."""

    stop: Tensor
    """(B,) int64 first place behind it."""
    most: Tensor
    """(B,) int64 the widest window."""

    @property
    def window(self) -> Tensor:
        """(B,) int64: up to `stop`."""
        return self.stop - self.revealed


class Remasked(Sampler):
    """What both samplers share: their class stands before the one whose passes they take."""

    eta: float
    passes: int

    def remask(self, eta: float, passes: int) -> None:
        """Sets η and K.

        Raises:
            ValueError: one of them is out of range, or the window reads drafts.
        """
        if isinstance(self.window, DraftWindow):
            raise ValueError(f"`window` must be one of counts alone, "
                             f"got {type(self.window).__name__}")  # fmt: skip
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` must be in [0, 1], got {eta}")
        self.eta, self.passes = eta, whole("passes", passes, least=0)

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> RemaskedState:
        """As `Sampler.start`."""
        state = super().start(tokens, seeds, pad)
        taken = self.eta * (state.end - state.observed)
        most = state.windows.amax(1) + (taken + 4 * taken.sqrt()).ceil().long()
        return RemaskedState(**vars(state), stop=state.revealed + state.window, most=most)

    def arrange(self, state: State, hidden: Tensor) -> Tensor:
        """What was taken back may come anywhere among the masked, also in a fixed order."""
        if self.order.fixed:
            state.reorder(self.order)
        return super().arrange(state, hidden)

    def step(self, state: State, trace: Trace | None) -> None:
        """A pass; then tokens are taken back."""
        super().step(state, trace)  # type: ignore[safe-super]
        assert isinstance(state, RemaskedState)
        gone = take_back(state, self.eta, self.passes)
        state.tokens = state.tokens.masked_fill(gone, self.model.mask_id)
        if trace is not None:
            for row, index in enumerate(state.index.tolist()):
                positions = gone[row].nonzero().flatten().tolist()
                trace[index][-1] = replace(trace[index][-1], remasked=positions)


class RemaskedPlainSampler(Remasked, PlainSampler):
    """Drafts, reveals and takes back; see the module.

    Args:
        model: an `SSMD`, with or without a head.
        order: the rule for σ; uniform by default.
        window: W, of counts alone; `LinearWindow(0.045)` by default.
        eta: η in [0, 1], the largest σ.
        passes: K ≥ 0, after how many of them tokens are taken back.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: a setting out of range, or a window that reads drafts.
    """

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        window: Window | int | None = None,
        eta: float = ETA,
        passes: int = PASSES,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, order, window, temperature, top_p)
        self.remask(eta, passes)


class RemaskedSpeculativeSampler(Remasked, SpeculativeSampler):
    """Drafts, verifies and takes back; see the module.

    Args:
        model: an `SSMD` with a head.
        order, window: as in `RemaskedPlainSampler`.
        rounds: R ≥ 1, the most head passes per trunk pass.
        eta, passes, temperature, top_p: as in `RemaskedPlainSampler`.

    Raises:
        ValueError: a setting out of range, a model without head, or a window that reads drafts.
    """

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        window: Window | int | None = None,
        rounds: int = USUAL_ROUNDS,
        eta: float = ETA,
        passes: int = PASSES,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, order, window, rounds, temperature, top_p)
        self.remask(eta, passes)


def take_back(state: RemaskedState, eta: Tensor | float, passes: Tensor | int) -> Tensor:
    """Take tokens back between two passes; what goes stands behind what is known in σ.

    Args:
        state: of B rows, after a pass that is not yet counted in `passes`. Its order, its place in
            it and its window are set for the next one; its tokens are left to the caller.
        eta, passes: η and K, (B,) or of all rows.

    Returns:
        (B, L) bool: the positions to be masked.
    """
    generated = state.revealed - state.observed
    goal = state.revealed + state.windows.gather(1, generated.unsqueeze(1)).squeeze(1)
    sigma = torch.clamp((state.end - goal) / generated, max=eta)  # type: ignore[call-overload]
    sigma = torch.where(state.passes < passes, sigma, 0.0).unsqueeze(1)
    place = inverse_order(state.order)
    known = (place >= state.observed.unsqueeze(1)) & (place < state.revealed.unsqueeze(1))
    positions = torch.arange(place.shape[1], device=place.device).expand_as(place)
    coin = uniform(state.seeds, Purpose.REMASK, state.passes, 0, positions)
    gone = known & (coin < sigma)
    behind = state.revealed.unsqueeze(1) - 0.5
    state.order = torch.where(gone, behind, place.double()).argsort(dim=1, stable=True)
    state.revealed = state.revealed - gone.sum(1)
    state.stop = torch.minimum(goal, state.revealed + state.most)
    return gone
