"""Plain samplers that reveal a given number of tokens a pass.

`FixedCountSampler` follows a masking schedule in K steps: after step k, ⌊N · masked(k/K)⌋ places
are masked (MaskGIT 2202.04200, with places in σ order). `AnyOrderSampler` reveals one token a pass:
the law of the model as an any-order autoregressive model, p(x | σ) = Π_d p_d(d, x_σ(d)), which is
also that of the first-hitting sampler (Zheng et al. 2024, arXiv 2409.02908), whose event times do
not touch the tokens.
"""

from selfspec.interfaces import Trace
from selfspec.model import SSMD
from selfspec.orders import Order
from selfspec.sampling.base import Sampler, State
from selfspec.schedules import ConstantWindow, CosineSchedule, Schedule, ScheduleWindow

__all__ = ["AnyOrderSampler", "FixedCountSampler"]


class FixedCountSampler(Sampler):
    """Reveals the drafts of the whole window, unverified.

    `likelihood.log_likelihood` with its `window` and `rounds=0` is its law.

    Args:
        model: an `SSMD`, with or without a head.
        order: the rule for σ; uniform by default.
        schedule: how the number of masked tokens falls; cosine by default.
        steps: K ≥ 1; passes that would reveal nothing are left out.
        temperature, top_p: as in `Sampler`.
    """

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        schedule: Schedule | None = None,
        steps: int = 16,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, order, temperature, top_p)
        self.schedule = schedule if schedule is not None else CosineSchedule()
        self.steps = steps
        self.window = ScheduleWindow(self.schedule, steps)

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


class AnyOrderSampler(FixedCountSampler):
    """One token a pass; exact for the model. Arguments as in `Sampler`."""

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, order, temperature=temperature, top_p=top_p)
        self.window = ConstantWindow(1)
