"""Plain samplers that reveal a given number of tokens a pass.

`FixedCountSampler` follows a masking schedule in K steps: after step k, ⌊N · masked(k/K)⌋ places
are masked (MaskGIT 2202.04200, with places in σ order). `AnyOrderSampler` reveals one token a pass:
the law of the model as an any-order autoregressive model, p(x | σ) = Π_d p_d(d, x_σ(d)), which is
also that of the first-hitting sampler (Zheng et al. 2024, arXiv 2409.02908), whose event times do
not touch the tokens.
"""

from selfspec.model import SSMD
from selfspec.orders import Order
from selfspec.sampling.plain import PlainSampler
from selfspec.schedules import ConstantWindow, CosineSchedule, Schedule, ScheduleWindow

__all__ = ["AnyOrderSampler", "FixedCountSampler"]


class FixedCountSampler(PlainSampler):
    """Reveals the counts of a masking schedule.

    For orders that are fixed in advance, `log_likelihood` with the same `window` and `rounds=0` is
    the exact log-probability of its samples.

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
        self.schedule = schedule if schedule is not None else CosineSchedule()
        self.steps = steps
        window = ScheduleWindow(self.schedule, steps)
        super().__init__(model, order, window, temperature, top_p)


class AnyOrderSampler(PlainSampler):
    """One token per pass: the model's own distribution. Arguments as in `Sampler`."""

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, order, ConstantWindow(1), temperature, top_p)
