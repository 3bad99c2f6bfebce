"""The engine draws what the samplers draw: number by number, and therefore in law."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import BINARY, INFILL, PLAIN, RESPACED, SPACED, UNIFORM, Puzzle, p_value
from test_sampling import LISTED, ROWS, SAMPLERS, likelihood_law, stacked

from selfspec.engine import Engine
from selfspec.model import SSMD
from selfspec.orders import Order
from selfspec.sampling import (
    FixedCountSampler,
    Sampler,
    SpeculativeSampler,
)
from selfspec.schedules import (
    ConstantWindow,
    CosineSchedule,
    CosineWindow,
    ScheduleWindow,
    UnboundedWindow,
    Window,
)

FIELDS = ("tokens", "trunk_passes", "head_passes", "drafted", "accepted")
MASK = 3
MAKERS: dict[str, Callable[[SSMD, Order], Sampler]] = {
    **SAMPLERS,
    "more rounds": lambda m, o: SpeculativeSampler(m, o, UnboundedWindow(), rounds=6),
    "temperature": lambda m, o: SpeculativeSampler(m, o, CosineWindow(0.5), 3, temperature=0.6),
    "nucleus": lambda m, o: SpeculativeSampler(m, o, UnboundedWindow(), 2, 1.5, top_p=0.8),
    "plain nucleus": lambda m, o: FixedCountSampler(m, o, steps=2, top_p=0.7),
    "window of one": lambda m, o: SpeculativeSampler(m, o, ConstantWindow(1)),
}


def same(ours, theirs) -> bool:
    return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in FIELDS)


@pytest.mark.parametrize("order", [UNIFORM, SPACED, RESPACED], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_engine_draws_what_the_sampler_draws(ternary: SSMD, make: Callable, order: Order):
    sampler, (tokens, pad) = make(ternary, order), stacked(ROWS * 8)
    theirs = sampler.sample(tokens, 5, pad)
    for slots, waiting in ((64, 1), (7, 3), (1, 64)):
        ours = Engine(ternary, slots, waiting=waiting).sample(sampler, tokens, 5, pad)
        assert same(ours, theirs)


def engine_counts(sampler: Sampler, puzzle: Puzzle, draws: int = 50_000) -> np.ndarray:
    engine = Engine(sampler.model, slots=10_000, length=len(puzzle.text))
    rows, pad = (x.repeat(draws, 1) for x in (puzzle.tokens, puzzle.pad))
    drawn = puzzle.index(engine.sample(sampler, rows, 0, pad).tokens)
    return np.bincount(drawn, minlength=puzzle.vocab ** len(puzzle.masked))


@pytest.mark.parametrize(
    ("puzzle", "rule", "window", "rounds"),
    [(PLAIN, UNIFORM, ConstantWindow(3), 2),
     (PLAIN, SPACED, UnboundedWindow(), 5),
     (INFILL, UNIFORM, ConstantWindow(3), 1),
     (BINARY, LISTED, CosineWindow(0.5), 3),
     (PLAIN, UNIFORM, ScheduleWindow(CosineSchedule(), 2), 0)],
)  # fmt: skip
def test_samples_of_the_engine_have_the_law_of_the_likelihood(
    toys: Callable[[int], SSMD], puzzle: Puzzle, rule: Order, window: Window, rounds: int
):
    model = toys(puzzle.vocab)
    law = likelihood_law(model, puzzle, rule, window, rounds)
    sampler = FixedCountSampler(model, rule, CosineSchedule(), 2)
    if rounds:
        sampler = SpeculativeSampler(model, rule, window, rounds)
    assert p_value(engine_counts(sampler, puzzle), law) > 1e-3
