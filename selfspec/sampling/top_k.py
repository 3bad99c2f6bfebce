"""Top-k: the surest positions, a fixed number a pass.

    U = the k masked positions of largest score,     x_U ~ p_U,

with the score one of confidence max p, margin p₁ - p₂ and negative entropy, and the counts of a
schedule in K steps (linear: |M| split evenly). With `alg_temperature` the positions are drawn,
without replacement, in proportion to exp(score / temperature). Sources: LLaDA 2502.09992
(confidence, which it combines with arg-maxed tokens; here they are drawn), Dream 2508.15487 (all
three, positions drawn).
"""

from selfspec.model import SSMD
from selfspec.sampling.fixed_count import FixedCountSampler
from selfspec.schedules import LinearSchedule, Schedule
from selfspec.selection import Confidence, Score, ScoreOrder

__all__ = ["TopKSampler"]


class TopKSampler(FixedCountSampler):
    """The surest positions first; see the module.

    Args:
        model: an `SSMD`.
        score: `Confidence()` (the default), `Margin()` or `Entropy()` of `selection`.
        steps: K ≥ 1.
        schedule: how the number of masked tokens falls; linear by default.
        alg_temperature: of the draw of positions; 0 takes the best.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: `steps` below 1 or `alg_temperature` below 0.
    """

    def __init__(
        self,
        model: SSMD,
        score: Score | None = None,
        steps: int = 16,
        schedule: Schedule | None = None,
        alg_temperature: float = 0.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        schedule = schedule if schedule is not None else LinearSchedule()
        order = ScoreOrder(score if score is not None else Confidence(), alg_temperature)
        super().__init__(model, order, schedule, steps, temperature, top_p)
