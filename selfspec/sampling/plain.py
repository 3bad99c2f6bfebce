"""Plain sampling: forward, draw, reveal, and nothing is taken back.

    while a row has masked places:
        draft the next W places of σ from their p_ℓ, reveal all of them            (1 trunk pass)

Which positions a pass takes is the business of the order, how many that of the window; both may
read the draft distributions (see `selection`). Most published accelerated samplers are a pair of
such rules, and the same pair drives `SpeculativeSampler`, which verifies what is drafted.
"""

from selfspec.interfaces import Trace
from selfspec.model import SSMD
from selfspec.orders import Order
from selfspec.sampling.base import Sampler, State
from selfspec.schedules import Window, as_window

__all__ = ["PlainSampler"]


class PlainSampler(Sampler):
    """Reveals the drafts of the whole window, unverified.

    For an order that is fixed in advance and a window that reads no drafts, `log_likelihood` with
    this window and `rounds=0` is the exact log-probability of its samples.

    Args:
        model: an `SSMD`, with or without a head.
        order: the rule for σ; uniform by default.
        window: W, how many tokens a pass reveals, or a constant number of them;
            `LinearWindow(0.045)` by default.
        temperature, top_p: as in `Sampler`.
    """

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        window: Window | int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, order, temperature, top_p)
        self.window = as_window(window)

    def step(self, state: State, trace: Trace | None) -> None:
        """One trunk pass; every draft of the window stands."""
        drafts = self.draw_drafts(state)
        state.tokens = drafts.written(state.tokens)
        state.drafted = state.drafted + (drafts.stop - state.revealed)
        state.accepted = state.drafted.clone()
        state.revealed = drafts.stop
        if trace is not None:
            for row, index in enumerate(state.index.tolist()):
                trace[index].append(
                    drafts.trace(row, drafts.tokens[row], [], int(drafts.stop[row]))
                )
