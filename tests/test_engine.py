"""The engine draws what the samplers draw: number by number, and therefore in law."""

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import processes
import pytest
import torch
from conftest import make_toy
from reference import BINARY, HINTED, INFILL, PLAIN, RESPACED, SPACED, UNIFORM, Puzzle, p_value
from test_sampling import LISTED, ORDERED, OTHERS, ROWS, likelihood_law, stacked
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from selfspec import inputs
from selfspec.engine import Engine, Variant, flight, intake, shared, unsupported
from selfspec.engine import engine as host
from selfspec.engine.flight import pass_bounds
from selfspec.engine.graphs import copied
from selfspec.engine.law import CHUNK, SMALL, SPAN, draw_of, law_of, residual_draw
from selfspec.engine.state import Pool
from selfspec.engine.step import OVERHEAD, cheapest_blocks
from selfspec.engine.transfer import Sent, to_device
from selfspec.generation import generate
from selfspec.interfaces import Samples
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead
from selfspec.nn.transformer import Trunk
from selfspec.noise import row_seeds
from selfspec.ops import draw, log_probs, take
from selfspec.orders import Order, RespacedOrder
from selfspec.sampling import (
    AncestralSampler,
    AnyOrderSampler,
    FixedCountSampler,
    PlainSampler,
    RemaskedSpeculativeSampler,
    Sampler,
    SpeculativeSampler,
)
from selfspec.sampling.remasked import Remasked, RemaskedState
from selfspec.schedules import (
    ConstantWindow,
    CosineSchedule,
    CosineWindow,
    ScheduleWindow,
    UnboundedWindow,
    Window,
)
from selfspec.selection import CellOrder, Margin, ScoreOrder, SpanOrder
from selfspec.verification import residual

FIELDS = ("tokens", "trunk_passes", "head_passes", "drafted", "accepted")
MASK = 3
RUN = ("speculative", "speculative, cosine", "fixed count", "ancestral", "any order", "optimal",
       "speculative, optimal", "plain, remasked", "speculative, remasked")  # fmt: skip
OWN_ORDER = ("dilated", "speculative, dilated", "top-k", "top-k, drawn")
MAKERS: dict[str, Callable[[SSMD, Order], Sampler]] = {
    **{name: ORDERED[name] for name in RUN},
    "more rounds": lambda m, o: SpeculativeSampler(m, o, UnboundedWindow(), rounds=6),
    "temperature": lambda m, o: SpeculativeSampler(m, o, CosineWindow(0.5), 3, temperature=0.6),
    "nucleus": lambda m, o: SpeculativeSampler(m, o, UnboundedWindow(), 2, 1.5, top_p=0.8),
    "plain nucleus": lambda m, o: FixedCountSampler(m, o, steps=2, top_p=0.7),
    "window of one": lambda m, o: SpeculativeSampler(m, o, ConstantWindow(1)),
    # Of an order of their own.
    **{name: lambda m, o, name=name: OTHERS[name](m) for name in OWN_ORDER},
}


RULES: dict[str, Order] = {
    "uniform": UNIFORM,
    "spaced": SPACED,
    "respaced": RESPACED,
    "cells": CellOrder(),
    "scores": ScoreOrder(Margin(), temperature=0.5),
    "spans": SpanOrder(),
}


def same(ours, theirs) -> bool:
    return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in FIELDS)


@pytest.mark.parametrize("order", RULES.values(), ids=RULES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_engine_draws_what_the_sampler_draws(ternary: SSMD, make: Callable, order: Order):
    sampler, (tokens, pad) = make(ternary, order), stacked(ROWS * 8)
    theirs = sampler.sample(tokens, 5, pad)
    for slots, waiting in ((64, 1), (7, 3), (1, 64)):
        ours = Engine(ternary, slots, waiting=waiting).sample(sampler, tokens, 5, pad)
        assert same(ours, theirs)


class Narrow(RemaskedSpeculativeSampler):
    """Reveals one token a pass from the second on, however many are to be made up for."""

    def start(self, tokens: Tensor, seeds: Tensor, pad: Tensor) -> RemaskedState:
        state = super().start(tokens, seeds, pad)
        return replace(state, most=torch.ones_like(state.most))


def test_what_a_pass_cannot_make_up_for_is_left_to_the_next(ternary: SSMD):
    sampler, (tokens, pad) = Narrow(ternary, RESPACED, 2, 2, 1.0, 3), stacked(ROWS * 8)
    theirs = sampler.sample(tokens, 5, pad, trace=True)
    assert same(Engine(ternary, 7).sample(sampler, tokens, 5, pad), theirs)
    assert theirs.trace is not None
    assert any(done.remasked for passes in theirs.trace for done in passes)
    first = {len(passes[0].positions) for passes in theirs.trace if passes}
    assert first == {1, 2}
    assert {len(done.positions) for passes in theirs.trace for done in passes[1:]} == {1}


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


@pytest.mark.parametrize(
    ("rule", "plan", "rounds"),
    [(CellOrder(), processes.in_cells, 1),
     (ScoreOrder(), processes.scored("Confidence"), 2),
     (SpanOrder(), processes.spans, 0)],
    ids=["cells", "scores", "spans"],
)  # fmt: skip
def test_orders_that_read_float32_drafts_have_their_law(
    rugged: SSMD, rule: Order, plan: processes.PlanOf, rounds: int
):
    single, window = copy.deepcopy(rugged).float(), ConstantWindow(2)
    sampler = PlainSampler(single, rule, window)
    if rounds:
        sampler = SpeculativeSampler(single, rule, window, rounds)
    most = window.table(len(HINTED.masked)).tolist()
    law = processes.verified_law(rugged, HINTED, plan, most, rounds)
    assert p_value(engine_counts(sampler, HINTED), law) > 1e-3


def requests(engine: Engine, model: SSMD) -> dict[int, tuple[Sampler, torch.Tensor, int]]:
    """Every kind of request, in one engine: number → (sampler, row, seed)."""
    made = {}
    for k, (make, puzzle) in enumerate(zip(list(MAKERS.values()) * 2, ROWS * 3)):  # noqa: B905
        sampler = make(model, list(RULES.values())[k % len(RULES)])
        row = puzzle.tokens[~puzzle.pad][None]
        (number,) = engine.submit(sampler, row, seed := row_seeds(k, 1))
        made[number] = (sampler, row, int(seed))
    return made


def drain(engine: Engine) -> dict[int, list[int]]:
    """Finished rows by number, without pads."""
    return {
        number: row[~pad].tolist()
        for rows in engine.results()
        for number, row, pad in zip(rows.index.tolist(), rows.tokens, rows.pad)  # noqa: B905
    }


def alone(sampler: Sampler, row: torch.Tensor, seed: int) -> list[int]:
    return sampler.sample(row, torch.tensor([seed])).tokens[0].tolist()


@pytest.mark.parametrize(("slots", "waiting"), [(1, 1), (3, 2), (100, 1)])
def test_slots_serve_requests_of_every_kind(ternary: SSMD, slots: int, waiting: int):
    engine = Engine(ternary, slots, waiting=waiting)
    made = requests(engine, ternary)
    found = drain(engine)
    assert found == {number: alone(*request) for number, request in made.items()}
    assert drain(engine) == {}
    again = requests(engine, ternary)
    assert list(drain(engine).values()) or again


class Tilted(RespacedOrder):
    """A rule with a tensor, which has no truth."""

    def __init__(self, tilt: list[float]):
        vars(self)["tilt"] = torch.tensor(tilt)

    def keys(self, masked, window, u, u_row):
        return (u + vars(self)["tilt"]) / 2


def test_rules_that_cannot_be_compared_are_different(ternary: SSMD):
    tokens, engine = torch.full((20, 6), 3), Engine(ternary, 4)
    for tilt in ([0.9, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.9]):
        sampler = SpeculativeSampler(ternary, Tilted(tilt), ConstantWindow(2), 1)
        assert same(engine.sample(sampler, tokens, 0), sampler.sample(tokens, 0))


def test_what_is_submitted_meanwhile_is_run_too(ternary: SSMD):
    engine, sampler = Engine(ternary, 2), AnyOrderSampler(ternary)
    engine.submit(sampler, torch.full((3, 6), MASK))
    numbers = []
    for rows in engine.results():
        numbers += rows.index.tolist()
        if len(numbers) <= 3:
            engine.submit(sampler, torch.full((2, 4), MASK))
    assert sorted(numbers) == list(range(len(numbers)))
    assert len(numbers) > 5


def test_further_rows_are_asked_for_when_few_wait(ternary: SSMD, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("selfspec.engine.engine.PORTION", 2)
    engine, sampler = Engine(ternary, 2, waiting=1), AnyOrderSampler(ternary)
    tokens, waited, add = torch.full((9, 6), MASK), [], engine._intake.add

    def counted(*rows: Any) -> range:
        waited.append(engine.waiting)
        return add(*rows)

    monkeypatch.setattr(engine._intake, "add", counted)
    assert same(engine.sample(sampler, tokens, 3), sampler.sample(tokens, 3))
    assert len(waited) == 5
    assert max(waited) < 2
    assert engine.idle


def test_the_pool_is_on_the_stream_of_the_passes_and_the_caller_on_his_own(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    streams, found = ["caller"], {}

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        streams.append("engine")
        yield
        streams.pop()

    def made(*arguments: Any) -> Pool:
        found["pool"] = streams[-1]
        return Pool(*arguments)

    monkeypatch.setattr("selfspec.engine.engine.on", on)
    monkeypatch.setattr("selfspec.engine.engine.Pool", made)
    monkeypatch.setattr(Pool, "clear", lambda pool: found.update(clear=streams[-1]))
    engine = Engine(ternary, 2)
    monkeypatch.undo()
    monkeypatch.setattr("selfspec.engine.engine.on", on)

    def more() -> Iterator[range]:
        found["more"] = streams[-1]
        yield engine.submit(AnyOrderSampler(ternary), torch.full((2, 6), MASK))

    assert sum(len(rows.index) for rows in engine.results(more())) == 2
    assert found == {"pool": "engine", "clear": "engine", "more": "caller"}


@pytest.mark.parametrize(("rows", "alone"), [(3, True), (4, False)])
def test_passes_that_are_surely_needed_are_launched_where_nothing_else_comes(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch, rows: int, alone: bool
):
    asked = []

    def bounds(rows: Any) -> tuple[int, float]:
        asked.append(rows)
        return pass_bounds(rows)

    monkeypatch.setattr("selfspec.engine.engine.PORTION", 1)
    monkeypatch.setattr("selfspec.engine.flight.pass_bounds", bounds)
    sampler, tokens = FixedCountSampler(ternary, steps=3), torch.full((rows, 6), MASK)
    assert same(Engine(ternary, 3).sample(sampler, tokens, 1), sampler.sample(tokens, 1))
    assert bool(asked) is alone


def test_a_bad_row_of_a_later_portion_is_found_before_the_first_pass(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("selfspec.engine.engine.PORTION", 2)
    engine, tokens = Engine(ternary, 2), torch.full((5, 6), MASK)
    tokens[4, 0] = 77
    with pytest.raises(ValueError, match="got 77"):
        engine.sample(AnyOrderSampler(ternary), tokens)
    assert engine.idle


def test_rows_are_checked_once(ternary: SSMD, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("selfspec.engine.engine.PORTION", 2)
    tokens, seen = torch.full((5, 6), MASK), []
    check = inputs.check_tokens
    monkeypatch.setattr(inputs, "check_tokens", lambda *a, **k: (seen.append(a[1]), check(*a, **k)))
    Engine(ternary, 2).sample(AnyOrderSampler(ternary), tokens)
    assert [rows.tolist() for rows in seen] == [tokens.tolist()]


def test_rows_that_share_their_memory_reach_a_gpu(monkeypatch: pytest.MonkeyPatch):
    row = torch.tensor([[1, 2, MASK]])

    def pinned(x: torch.Tensor) -> torch.Tensor:
        return x.new_empty_strided(x.shape, x.stride()).copy_(x)  # what PyTorch does

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *_, **__: x)
    assert to_device(row.expand(4, -1), torch.device("cuda")).tolist() == row.tolist() * 4


VARIANT = Variant(width=6, rounds=3, padded=True, nucleus=True)


def test_a_row_is_the_same_bit_for_bit_whatever_its_neighbours_are(ternary: SSMD):
    single = copy.deepcopy(ternary).float()
    sampler = SpeculativeSampler(single, window=UnboundedWindow(), rounds=3)
    others = [SpeculativeSampler(single, window=ConstantWindow(2), rounds=1, top_p=0.5),
              FixedCountSampler(single, steps=2, temperature=2.0)]  # fmt: skip

    def hidden_states(neighbours: list[Sampler], place: int) -> list[torch.Tensor]:
        """What the model computes for our row, pass after pass."""
        engine, seen = Engine(single, 4, waiting=4, variant=VARIANT), []
        for k in range(place):
            engine.submit(neighbours[k % 2], torch.full((1, 6 - k), MASK), k + 7)
        (ours,) = engine.submit(sampler, torch.full((1, 6), MASK), 1)
        for k in range(3):
            engine.submit(neighbours[k % 2], torch.full((1, 3 + k), MASK), k)
        encode = single.encode

        def spied(tokens: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
            states = encode(tokens, pad)
            holders = engine.pool.rows.index[engine.pool.slots] == ours
            holders &= engine.pool.slots != engine.pool.idle
            seen.extend(states[holders])
            return states

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.steps.model, "encode", spied)
            seen.append(torch.tensor(drain(engine)[ours]))
        return seen

    first = hidden_states(others, 0)
    for neighbours, place in ((others[::-1], 0), (others, 2), (others, 3)):
        again = hidden_states(neighbours, place)
        assert len(again) == len(first)
        assert all(torch.equal(a, b) for a, b in zip(first, again))  # noqa: B905


def test_a_cancelled_request_leaves_the_others_alone(ternary: SSMD):
    engine, sampler = Engine(ternary, 2, waiting=4), AnyOrderSampler(ternary)
    rows, seeds = torch.full((10, 6), MASK), row_seeds(0, 10)
    engine.submit(sampler, rows, seeds)
    engine.cancel(8)  # waits on the host
    stream = engine.results()
    first = next(stream)
    assert first.index.tolist() == [0, 1]
    assert engine.pool.rows.index[engine.pool.slots].tolist() == [2, 3]
    engine.cancel(3)  # in the middle of its run
    engine.cancel(4)  # waits on the device
    found = {n: row for part in stream for n, row in zip(part.index.tolist(), part.tokens)}  # noqa: B905
    assert found.keys() == {2, 5, 6, 7, 9}
    expected = sampler.sample(rows, seeds).tokens
    assert all(torch.equal(row, expected[n]) for n, row in found.items())
    assert drain(engine) == {}


def test_a_request_cancelled_on_the_host_costs_no_more_than_a_pass(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    calls, encode = [], SSMD.encode
    monkeypatch.setattr(SSMD, "encode", lambda *x: calls.append(x[1].shape) or encode(*x))
    engine = Engine(ternary, 1, waiting=1)
    engine.submit(AnyOrderSampler(ternary), torch.full((4, 6), MASK))
    engine.cancel(2)
    engine.cancel(3)
    assert drain(engine).keys() == {0, 1}
    assert len(calls) <= 6 + 6 + 2


def test_only_what_was_submitted_is_cancelled(ternary: SSMD):
    engine, sampler, row = Engine(ternary, 1), AnyOrderSampler(ternary), torch.full((1, 6), MASK)
    for number, message in ((0, "one of 0 requests, got 0"), (-1, "at least 0, got -1")):
        with pytest.raises(ValueError, match=f"`number` must be {message}"):
            engine.cancel(number)
    engine.submit(sampler, row)
    assert drain(engine).keys() == {0}


def test_a_bad_request_leaves_the_others_alone(ternary: SSMD, binary: SSMD):
    engine, sampler = Engine(ternary, 2, length=4), AnyOrderSampler(ternary)
    row = torch.full((1, 4), MASK)
    engine.submit(sampler, row, 3)
    for bad, tokens, message in (
        (sampler, torch.full((1, 5), MASK), "`tokens` may be at most 4 long, got 5"),
        (sampler, row + 1, "`tokens` must be in 0..2"),
        (sampler, row[0], r"`tokens` must be \(B, L\)"),
        (AnyOrderSampler(binary), row, "`sampler` must have the engine's model"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(bad, tokens)
    assert drain(engine) == {0: alone(sampler, row, int(row_seeds(3, 1)))}


def test_a_request_beyond_the_fixed_variant_is_named(ternary: SSMD):
    engine = Engine(ternary, 2, variant=Variant(width=2))
    engine.submit(AnyOrderSampler(ternary), torch.full((1, 6), MASK))
    with pytest.raises(ValueError, match="`sampler` must need no more than"):
        engine.submit(SpeculativeSampler(ternary), torch.full((1, 6), MASK))


def test_out_of_memory_halves_the_slots_and_harms_no_row(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    sampler = SpeculativeSampler(ternary, RESPACED, ConstantWindow(2), rounds=1)
    tokens, encode, calls = torch.full((20, 6), MASK), SSMD.encode, []

    def small(model: SSMD, tokens: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(len(tokens))
        if len(tokens) > 3 and len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(model, tokens, pad)

    expected = sampler.sample(tokens, 4)
    engine = Engine(ternary, 13, waiting=2)
    monkeypatch.setattr(SSMD, "encode", small)
    with caplog.at_level(logging.WARNING, "selfspec.engine"):
        assert same(engine.sample(sampler, tokens, 4), expected)
    assert engine.slots == 3
    assert calls[:4] == [13, 13, 13, 6]
    assert "out of memory with 13 slots: going on with 6" in caplog.text


@pytest.mark.parametrize(
    ("module", "name"), [(intake, "prepare"), (flight, "packed"), (host, "as_samples")]
)
@pytest.mark.parametrize("first", [True, False])
def test_out_of_memory_beside_the_passes_harms_no_row(
    first: bool, module: Any, name: str, ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    sampler = SpeculativeSampler(ternary, RESPACED, ConstantWindow(2), rounds=1)
    tokens, calls = torch.full((30, 6), MASK), []
    engine, work = Engine(ternary, 13, waiting=2), getattr(module, name)

    def small(*given: object) -> object:
        calls.append(given)
        if engine.slots > 3 and (first or len(calls) > 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*given)

    expected = sampler.sample(tokens, 4)
    monkeypatch.setattr(module, name, small)
    for _ in range(2):
        assert same(engine.sample(sampler, tokens, 4), expected)
    assert engine.slots == 3


def test_out_of_memory_with_an_idle_engine_leaves_it_slots(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    sampler, tokens = AnyOrderSampler(ternary), torch.full((5, 6), MASK)
    engine, expected = Engine(ternary, 8), sampler.sample(tokens, 4)
    assert same(engine.sample(sampler, tokens, 4), expected)
    engine._flight._halve(torch.OutOfMemoryError())  # though a CPU has given up those without rows
    assert engine.slots == 4
    assert same(engine.sample(sampler, tokens, 4), expected)


def test_rows_that_cannot_be_laid_out_with_one_slot_are_an_error(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    def none(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine, sampler, row = Engine(ternary, 4), AnyOrderSampler(ternary), torch.full((1, 6), MASK)
    engine.submit(sampler, row, 3)
    with monkeypatch.context() as patch:
        patch.setattr(intake, "prepare", none)
        with pytest.raises(torch.OutOfMemoryError):
            engine.submit(sampler, row)
    assert drain(engine) == {0: alone(sampler, row, int(row_seeds(3, 1)))}


def test_out_of_memory_with_one_slot_is_an_error(ternary: SSMD, monkeypatch: pytest.MonkeyPatch):
    def none(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SSMD, "encode", none)
    with pytest.raises(torch.OutOfMemoryError):
        Engine(ternary, 2).sample(AnyOrderSampler(ternary), torch.full((2, 6), MASK))


def test_an_engine_made_in_inference_mode_serves_outside_it_too(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    sampler, tokens, encode = SpeculativeSampler(ternary), torch.full((9, 6), MASK), SSMD.encode

    def small(model: SSMD, tokens: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(model, tokens, pad)

    expected = sampler.sample(tokens, 4)
    with torch.inference_mode():
        engine = Engine(ternary, 6)
        monkeypatch.setattr(SSMD, "encode", small)
        assert same(engine.sample(sampler, tokens, 4), expected)
    assert same(engine.sample(sampler, tokens, 4), expected)


def test_engines_are_kept_as_long_as_the_weights_are_known_to_be_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(SSMD, "device", torch.device("cuda"))
    for name in ("Engine", "Shared"):
        monkeypatch.setattr(shared, name, lambda *_, **__: SimpleNamespace(idle=True))
    monkeypatch.setattr(shared, "_engines", OrderedDict())
    model = make_toy()
    first = shared.engine_for(model, 5, 6)
    assert shared.engine_for(model, 8, 6) is first
    assert shared.engine_for(model, 9, 6) is not first
    assert shared.engine_for(model, 8, 6, bfloat16=True) is first  # as by default there
    assert shared.engine_for(model, 8, 6, bfloat16=False) is not first
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert shared.engine_for(model, 5, 6) is not first
    assert len(shared._engines) == 1, "those of the old weights are dropped"
    model.register_buffer("forbidden", torch.zeros(1))
    assert len({id(shared.engine_for(model, 5, 6)) for _ in range(2)}) == 1
    buffered = shared.engine_for(model, 5, 6)
    model.get_buffer("forbidden").fill_(1)
    assert shared.engine_for(model, 5, 6) is not buffered
    with torch.inference_mode():
        model = make_toy()
    assert shared.engine_for(model, 5, 6) is not shared.engine_for(model, 5, 6)


def test_threads_that_share_an_engine_draw_one_after_another(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    both, met, made, draw_ = threading.Barrier(2), [], set(), Engine.sample

    def observed(engine: Engine, *given: Any) -> Samples:
        made.add(engine)
        with suppress(threading.BrokenBarrierError):
            met.append(both.wait(timeout=0.5))  # idle meanwhile, as it was when it was asked for
        return draw_(engine, *given)

    expected = [generate(ternary, 4, seed=seed, engine="reference") for seed in range(4)]
    monkeypatch.setattr(shared, "KEPT_ON", "cpu")
    monkeypatch.setattr(shared, "_engines", OrderedDict())
    monkeypatch.setattr(Engine, "sample", observed)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda seed: generate(ternary, 4, seed=seed), range(4)))
    assert all(map(same, found, expected))
    assert len(made) == 1
    assert not met


def test_without_a_compiler_passes_run_as_they_are(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from torch._dynamo.exc import TorchDynamoException

    def broken(function: Callable, **_: object) -> Callable:
        def call(*_: object) -> None:
            raise TorchDynamoException("no C++ compiler here\nat all")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    sampler, tokens = SpeculativeSampler(ternary), torch.full((5, 6), MASK)
    engine = Engine(ternary, 3, compile=True)
    assert same(engine.sample(sampler, tokens, 1), sampler.sample(tokens, 1))
    assert engine.steps.reason == "no compiling: no C++ compiler here"
    assert caplog.text.count("the engine is slower than it could be") == 1


TRITON = "at 2:4:\n    b = c + a\n        ^\nValueError('c is too large')\n"
WORKER = (
    "An exception occurred in a subprocess:\n\nName=fused\nTraceback (most recent call last):\n"
)


class Outer(RuntimeError):
    """As the compiler wraps an error."""

    def __init__(self, inner: Exception):
        super().__init__(f"{type(inner).__name__}: {inner}\n\nSet VERBOSE=1 for more.\n")
        self.inner_exception = inner


SAID = [
    (RuntimeError("\nCUDA error: no\nPerhaps elsewhere."), "CUDA error: no"),
    (RuntimeError(), "RuntimeError"),
    (Outer(KeyError("g++")), "KeyError: 'g++'"),
    (RuntimeError(TRITON), "ValueError('c is too large')"),
    (Outer(RuntimeError(TRITON)), "ValueError('c is too large')"),
    (Outer(Outer(RuntimeError(WORKER + TRITON))), "ValueError('c is too large')"),
]


@pytest.mark.parametrize(("error", "said"), SAID)
def test_the_reason_is_what_the_innermost_error_says(ternary: SSMD, error: Exception, said: str):
    steps = Engine(ternary, 3).steps
    steps._give_up("compiling", error)
    assert steps.reason == f"no compiling: {said}"


# Blocks of a window.


@pytest.fixture(params=[1, 2, 4])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Windows are judged by blocks of so many places."""

    def blocks(places: int, rounds: int, *_: int) -> tuple[int, int]:
        size = min(request.param, places)
        return size, (places + rounds * (size - 1)) // size

    monkeypatch.setattr("selfspec.engine.step.cheapest_blocks", blocks)
    return request.param


@pytest.mark.parametrize("order", [UNIFORM, SPACED, RESPACED], ids=lambda o: type(o).__name__)
def test_windows_judged_by_blocks_are_those_of_the_sampler(rugged: SSMD, block: int, order: Order):
    tokens, pad = stacked(ROWS * 8)
    for make in MAKERS.values():
        sampler = make(rugged, order)
        theirs = sampler.sample(tokens, 5, pad)
        for slots, waiting in ((64, 1), (7, 3)):
            ours = Engine(rugged, slots, waiting=waiting).sample(sampler, tokens, 5, pad)
            assert same(ours, theirs)


def test_a_row_judged_by_blocks_is_the_same_whatever_its_neighbours_are(ternary: SSMD, block: int):
    for variant in (None, VARIANT):
        engine = Engine(ternary, 3, waiting=2, variant=variant)
        if variant is None:
            made = requests(engine, ternary)
            assert drain(engine) == {number: alone(*r) for number, r in made.items()}
        else:
            test_a_row_is_the_same_bit_for_bit_whatever_its_neighbours_are(ternary)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_windows_judged_by_blocks_have_the_law_of_the_likelihood(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch, rounds: int
):
    monkeypatch.setitem(OVERHEAD, "cpu", 0)
    law = likelihood_law(ternary, PLAIN, UNIFORM, UnboundedWindow(), rounds)
    sampler = SpeculativeSampler(ternary, UNIFORM, UnboundedWindow(), rounds)
    assert p_value(engine_counts(sampler, PLAIN), law) > 1e-3


def most_blocks(places: int, rounds: int, size: int) -> int:
    """By all ways to spread the places over rounds."""
    if not places or not rounds:
        return 0
    ways = range(1, places + 1)
    return max(-(-s // size) + most_blocks(places - s, rounds - 1, size) for s in ways)


def test_blocks_are_enough_for_every_row_and_no_more():
    found = set()
    for overhead in (0, 1, 10, 100):
        for places in range(1, 9):
            for rounds in (1, 2, 3, 4, 9):
                size, blocks = cheapest_blocks(places, rounds, 10, overhead)
                assert blocks == most_blocks(places, rounds, size)
                found.add(size)
    assert {1, 2, 3, 8} <= found


def test_the_cheapest_blocks():
    launched = OVERHEAD["cuda"]
    assert cheapest_blocks(135, 4, 64 * 27, launched)[1] == 4  # one a round
    assert cheapest_blocks(135, 4, 50257, launched)[1] == 4
    assert cheapest_blocks(60, 1, 64 * 50257, launched) == (60, 1)  # a round reads all places once
    size, blocks = cheapest_blocks(135, 4, 64 * 50257, launched)
    assert size * blocks < 200  # instead of 540


# No wasted work.


def test_places_behind_a_rejection_are_not_unembedded_where_that_is_dear(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(OVERHEAD, "cpu", 0)
    seen: list[torch.Size] = []
    unembed = type(ternary.trunk).unembed

    def spied(trunk, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return unembed(trunk, hidden)

    sampler, tokens = SpeculativeSampler(ternary, window=UnboundedWindow()), torch.full((1, 6), 3)
    monkeypatch.setattr(type(ternary.trunk), "unembed", spied)
    out = Engine(ternary, 1).sample(sampler, tokens)
    drafted = int(out.trunk_passes)
    assert len(seen) - drafted == int(out.drafted) - drafted  # the tie judges the first place


def test_a_pass_computes_what_the_window_needs(ternary: SSMD, monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Size] = []
    unembed = type(ternary.trunk).unembed

    def spied(trunk, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape)
        return unembed(trunk, hidden)

    monkeypatch.setattr(type(ternary.trunk), "unembed", spied)
    sampler = SpeculativeSampler(ternary, window=ConstantWindow(3), rounds=2)
    Engine(ternary, 5).sample(sampler, torch.full((5, 6), MASK))
    assert seen[0] == (5, 3, 8)
    assert {shape[1] for shape in seen} <= {1, 2, 3}
    seen.clear()
    Engine(ternary, 5).sample(AnyOrderSampler(ternary), torch.full((5, 6), MASK))
    assert seen == [(5, 1, 8)] * 6


@pytest.mark.parametrize("make", [MAKERS["fixed count"], MAKERS["more rounds"]])
def test_no_pass_is_launched_that_nobody_needs(
    ternary: SSMD, make: Callable, monkeypatch: pytest.MonkeyPatch
):
    calls, encode = [], SSMD.encode
    monkeypatch.setattr(SSMD, "encode", lambda *x: calls.append(x[1].shape) or encode(*x))
    out = Engine(ternary, 9).sample(make(ternary, UNIFORM), torch.full((9, 6), MASK))
    assert len(calls) == out.trunk_passes.max()


def test_a_window_of_one_needs_no_head_pass(ternary: SSMD, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(CausalHead, "add_residual")
    sampler = SpeculativeSampler(ternary, window=ConstantWindow(1))
    Engine(ternary, 5).sample(sampler, torch.full((5, 6), MASK))


def test_what_the_engine_cannot_run_has_a_reason(ternary: SSMD):
    class Own(AnyOrderSampler):
        def step(self, state, trace) -> None:
            raise NotImplementedError

    class Beneath(Remasked, Own):
        pass

    assert unsupported(AncestralSampler(ternary)) is None
    assert unsupported(Own(ternary)) == "Own has its own `step`"
    assert unsupported(Beneath(ternary)) == "Beneath has its own `step`"
    deep = make_toy(head_blocks=2)
    assert "the head has 2 blocks" in str(unsupported(SpeculativeSampler(deep)))
    assert unsupported(AnyOrderSampler(deep)) is None
    with pytest.raises(ValueError, match="`sampler` must be one that the engine runs"):
        Engine(ternary).submit(Own(ternary), torch.full((1, 6), MASK))


def test_it_runs_no_sampler_of_another_law(ternary: SSMD):
    ordered = [make(ternary, SPACED) for name, make in ORDERED.items() if name not in RUN]
    others = [make(ternary) for name, make in OTHERS.items() if name not in OWN_ORDER]
    for sampler in (*ordered, *others):
        assert unsupported(sampler) is not None, sampler


@pytest.mark.parametrize(
    ("options", "message"),
    [({"slots": 0}, "`slots` must be at least 1, got 0"),
     ({"waiting": 0}, "`waiting` must be at least 1, got 0"),
     ({"length": 7}, r"`length` must be in 1\.\.6, the model's, got 7")],
)  # fmt: skip
def test_bad_arguments_are_named(ternary: SSMD, options: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        Engine(ternary, **options)  # type: ignore[arg-type]


def test_four_passes_go_between_two_looks_while_more_rows_are_held_than_slots(
    monkeypatch: pytest.MonkeyPatch,
):
    model, tokens = make_toy(), torch.full((8, 6), 3)
    sampler, engine = FixedCountSampler(model, steps=6), Engine(model, 2, waiting=6)
    engine.submit(sampler, tokens, torch.arange(8))
    ours, launched = engine._flight, {True: set(), False: set()}
    launch = ours.launch

    def counted(more: bool) -> bool:
        crowded, before = len(ours._held) > engine.slots, engine.steps.passes
        done = launch(more)
        launched[crowded].add(engine.steps.passes - before)
        return done

    # As on a GPU, but for where tensors are.
    monkeypatch.setattr(ours, "device", torch.device("cuda"))
    monkeypatch.setattr("selfspec.engine.flight.to_device", lambda x, _: x)
    monkeypatch.setattr("selfspec.engine.flight.to_host", lambda x: Sent(x.clone(), None))
    monkeypatch.setattr(ours, "launch", counted)
    parts = sorted(engine.results(), key=lambda rows: int(rows.index[0]))
    assert torch.equal(torch.cat([rows.tokens for rows in parts]),
                       sampler.sample(tokens, torch.arange(8)).tokens)  # fmt: skip
    assert launched[True] == {4}
    assert launched[False] <= {0, 1}


# Laws that are never written out.


LARGE = [SMALL + 1, SMALL + CHUNK, SMALL + SPAN - 1, SMALL + 3 * SPAN]


def laws(size: int) -> torch.Tensor:
    """(15, size) weights, whole numbers: all their sums are exact."""
    torch.manual_seed(0)
    weights = torch.randint(1, 2**20, (15, size)).double()
    weights[0, 1::3] = 0
    weights[1, SPAN : 3 * SPAN] = 0  # chunks without mass
    weights[2, :SPAN] = weights[2, -1] = 0
    weights[3, : 2 * SPAN] = weights[3, 3 * SPAN :] = 0  # one chunk has it all
    weights[4, :-1] = 0  # and one token
    weights[5, 1:] = 0
    weights[6] *= torch.rand(size) < 0.01
    weights[7, SPAN - 1 :: SPAN] = 2**30  # the edges of chunks
    weights[8, ::SPAN] = 2**30
    weights[9, : size // 2] = 0
    weights[10, torch.arange(size) % SPAN > 100] = 0
    weights[11, torch.arange(size) % SPAN < 200] = 0
    weights[12, :600] = weights[12, 700:] = 0
    return weights


@pytest.mark.parametrize("size", LARGE)
def test_a_draw_by_chunks_is_the_draw_by_inversion_to_the_token(size: int):
    weights = laws(size)
    cdf, total = weights.cumsum(-1), weights.sum(-1)
    few = torch.randint(size, (20,)).tolist()
    at_edges = [cdf[:, k] / total + shift for k in few for shift in (-(2.0**-50), 0, 2.0**-50)]
    ends = [total * 0 + edge for edge in (2.0**-53, 2.0**-40, 1 - 2.0**-40, 1 - 2.0**-53)]
    for number in (*ends, *at_edges, *torch.rand(2000, 15, dtype=torch.float64)):
        u = number.clamp(2.0**-53, 1 - 2.0**-53)
        assert torch.equal(draw_of([weights], u), draw(weights, u))


def test_no_token_of_probability_zero_is_drawn_in_whatever_order_sums_are_taken(
    monkeypatch: pytest.MonkeyPatch,
):
    weights = laws(SMALL + 44).repeat(20, 1)
    weights *= torch.rand_like(weights)
    cumsum = torch.Tensor.cumsum

    def backwards(x: torch.Tensor, dim: int) -> torch.Tensor:
        sums = x.sum(dim, keepdim=True) - cumsum(x.flip(dim), dim).flip(dim) + x
        return sums * (1 - 2.0**-51) if x.shape[dim] == SPAN else sums  # of mass that is lost

    monkeypatch.setattr(torch.Tensor, "cumsum", backwards)
    assert (weights.cumsum(-1).diff() < 0).any()
    ends = [*range(SPAN - 1, SMALL, SPAN), SMALL + 43]
    for k in (0, 5, 100, 455, 456, *ends):
        for step in range(-4, 5):
            u = weights.cumsum(-1)[:, k] / weights.sum(-1) + step * 2.0**-53
            drawn = draw_of([weights], u.clamp(2.0**-53, 1 - 2.0**-53))
            assert (take(weights, drawn) > 0).all()


class Scans(TorchDispatchMode):
    """Notes the widths over which something is accumulated or sorted."""

    def __init__(self):
        super().__init__()
        self.widths: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("cumsum", "cumprod", "sort", "scan", "topk")):
            self.widths.add(args[0].shape[-1])
        return func(*args, **(kwargs or {}))


def test_a_draw_stays_in_the_vocabulary_where_weights_round_to_nothing():
    mass = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1e-17]).double()
    drawn = draw_of([torch.zeros(2000)], torch.tensor(0.5).double(), lambda x: 0 * x.double(), mass)
    assert drawn < 2000


def test_a_large_vocabulary_is_never_scanned_and_draws_are_those_of_the_sampler():
    model = make_toy(vocab=SMALL + 77)
    tokens = torch.full((16, 6), model.mask_id)
    for sampler in (SpeculativeSampler(model, window=UnboundedWindow(), rounds=5),
                    FixedCountSampler(model, steps=2, temperature=0.7)):  # fmt: skip
        expected = sampler.sample(tokens, 3)
        assert expected.acceptance < 1 or isinstance(sampler, FixedCountSampler)
        with Scans() as scans:
            assert same(Engine(model, 16).sample(sampler, tokens, 3), expected)
        assert SPAN in scans.widths
        assert max(scans.widths) < SMALL


@pytest.mark.parametrize("size", [5, SMALL + 1, 3 * SPAN + SMALL])
def test_draws_by_chunks_are_draws_by_inversion(size: int):
    torch.manual_seed(0)
    logits = torch.randn(4, 7, size) * 4
    logits[..., 1::3] = -torch.inf
    temperature = torch.tensor([0.5, 1.0, 1.0, 2.0], dtype=torch.float64)
    law = law_of(logits, temperature)
    expected = torch.stack([log_probs(row, float(t)) for row, t in zip(logits, temperature)])  # noqa: B905
    cdf = expected.exp().cumsum(-1)
    u = torch.rand(200, 4, 7, dtype=torch.float64)
    edges = torch.tensor([2.0**-53, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    u[:3] = edges[:, None, None]
    for numbers in u:
        tokens = law.draw(numbers)
        # Where they differ, the mass between them is rounding.
        between = (take(cdf, tokens) - take(cdf, draw(expected.exp(), numbers))).abs()
        assert between.max() < 1e-14
        assert bool((take(expected, tokens) > -torch.inf).all())
        torch.testing.assert_close(law.of(tokens), take(expected, tokens))
    column = torch.tensor([0, 6, 3, 3])
    one, picked = law.at(column), expected[torch.arange(4), column]
    torch.testing.assert_close(one.probs(one.logits).squeeze(1), picked.exp())
    torch.testing.assert_close(one.of(tokens[:, :1]), take(picked.unsqueeze(1), tokens[:, :1]))


def test_chunks_of_half_precision_logits_hardly_move_the_law():
    torch.manual_seed(0)
    logits = (torch.randn(4, 7, 50257) * 4).bfloat16()
    temperature = torch.tensor([0.5, 1.0, 1.0, 2.0], dtype=torch.float64)
    law, u = law_of(logits, temperature), torch.rand(4, 7, dtype=torch.float64)
    expected = (logits.double() / temperature[:, None, None]).log_softmax(-1)
    tokens, inverse = law.draw(u), draw(expected.exp(), u)
    torch.testing.assert_close(law.of(tokens), take(expected, tokens), rtol=0, atol=1e-6)
    cdf = expected.exp().cumsum(-1)
    assert (take(cdf, tokens) - take(cdf, inverse)).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_right_to_rounding_however_small(dtype: torch.dtype):
    torch.manual_seed(0)
    logits = (torch.randn(3, 5, 3000) * 8).to(dtype)
    logits[..., 7] = -20.0  # of weight 1e-25 or so: a tail that float32 noise would cut off
    logits[..., 8] = -torch.inf
    temperature = torch.tensor([0.7, 1.0, 1.3], dtype=torch.float64)
    law = law_of(logits, temperature)
    expected = (logits.double() / temperature[:, None, None]).log_softmax(-1)
    within = 1e-12 if dtype == torch.float64 else 2e-5
    weights = law.weights(logits)
    assert weights.dtype == torch.float64
    assert bool((weights[..., 8] == 0).all())
    shares = weights / law.log_z.exp().unsqueeze(-1)
    torch.testing.assert_close(shares, expected.exp(), rtol=within, atol=2.0**-149)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6, 1e-3, 0.01, 0.1, 10.0, 1e300])
@pytest.mark.parametrize("top_p", [None, 0.8])
def test_a_law_is_right_at_every_temperature(
    dtype: torch.dtype, temperature: float, top_p: float | None
):
    torch.manual_seed(0)
    logits = (torch.randn(3, 5, 50) * 8 + 20).to(dtype)
    logits[..., 8] = -torch.inf
    heat = torch.full((3,), temperature, dtype=torch.float64)
    law = law_of(logits, heat, None if top_p is None else torch.full_like(heat, top_p))
    expected = log_probs(logits, temperature, 1.0 if top_p is None else top_p)
    for token in (8, *range(5)):
        tokens = torch.full((3, 5), token)
        torch.testing.assert_close(law.of(tokens), expected[..., token], rtol=2e-6, atol=2e-6)
    best = logits.argmax(-1)
    torch.testing.assert_close(law.of(best), take(expected, best), rtol=2e-6, atol=2e-6)
    one = law.at(torch.ones(3).long())
    torch.testing.assert_close(
        one.of(best[:, 1:2]), take(expected, best)[:, 1:2], rtol=2e-6, atol=2e-6
    )
    probs = one.probs(one.logits).squeeze(1)
    torch.testing.assert_close(probs, expected[:, 1].exp(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [5e-324, 1e-3, 1.0, 1e300])
def test_a_large_law_is_right_where_chunks_are_impossible(
    size: int, dtype: torch.dtype, temperature: float
):
    torch.manual_seed(0)
    logits = (torch.randn(3, 2, size) * 8 + 20).to(dtype)
    logits[0, :, CHUNK : 3 * CHUNK] = logits[0, :, SMALL:] = -torch.inf
    logits[1, :, :-1] = -torch.inf
    logits[2, :, ::2] = -torch.inf
    heat = torch.full((3,), temperature, dtype=torch.float64)
    law, expected = law_of(logits, heat), log_probs(logits, temperature)
    for tokens in (logits.argmax(-1), torch.full((3, 2), CHUNK), torch.full((3, 2), size - 1)):
        torch.testing.assert_close(law.of(tokens), take(expected, tokens), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(law.probs(logits), expected.exp(), rtol=2e-5, atol=1e-30)
    for u in torch.rand(50, 3, 2, dtype=torch.float64):
        assert bool((take(expected, law.draw(u)) > -torch.inf).all())


@pytest.mark.parametrize("size", [5, *LARGE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_law_of_what_is_no_number_is_no_number(size: int, dtype: torch.dtype):
    logits = torch.randn(2, 6, size).to(dtype)
    logits[0, 0, 0] = logits[0, 1, -1] = torch.nan
    logits[0, 2, size // 2] = torch.inf
    logits[0, 3] = -torch.inf
    law = law_of(logits, torch.ones(2, dtype=torch.float64))
    assert law.log_z.isnan().tolist() == [[True] * 4 + [False] * 2, [False] * 6]
    same = law_of(torch.zeros(2, 6, size).to(dtype), torch.ones(2, dtype=torch.float64))
    u = torch.rand(2, 6, dtype=torch.float64)
    for drawn in (law.draw(u), residual_draw(law, same, u), residual_draw(same, law, u)):
        assert bool((drawn < size).all())  # a token all the same: others stand beside it


@pytest.mark.parametrize("size", [5, *LARGE])
def test_residuals_are_drawn_by_inversion(size: int):
    torch.manual_seed(0)
    p, q = (torch.randn(4, 3, size, dtype=torch.float64) * 3 for _ in range(2))
    q[1, :, 1::2] = -torch.inf
    q[2] = p[2]  # nothing is left
    heat = torch.tensor([0.5, 1.0, 1.3, 2.0], dtype=torch.float64)
    draft, target = law_of(p, heat), law_of(q, heat)
    scaled = (torch.log_softmax(x / heat[:, None, None], -1) for x in (p, q))
    weights = residual(*scaled)
    cdf = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    for u in torch.rand(300, 4, 3, dtype=torch.float64):
        tokens = residual_draw(draft, target, u)
        between = (take(cdf, tokens) - take(cdf, draw(weights, u))).abs()
        assert between.max() < 1e-13  # rounding
        assert bool((take(weights, tokens) > 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_residuals_of_exponentials_in_float32_are_near(dtype: torch.dtype):
    torch.manual_seed(0)
    p, q = ((torch.randn(2, 1, 50257) * 4).to(dtype) for _ in range(2))
    q[1] = -torch.inf
    q[1, :, 40000:] = p[1, :, 40000:] + 0.125
    heat = torch.tensor([0.7, 1.0], dtype=torch.float64)
    weights = residual(*((x.double() / heat[:, None, None]).log_softmax(-1) for x in (p, q)))
    cdf = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    for u in torch.rand(50, 2, 1, dtype=torch.float64):
        tokens = residual_draw(law_of(p, heat), law_of(q, heat), u)
        assert (take(cdf, tokens) - take(cdf, draw(weights, u))).abs().max() < 2e-6
        assert bool((take(q, tokens) > -torch.inf).all())


@pytest.mark.parametrize("vocab", [3, SMALL + 77])
@pytest.mark.parametrize("part", ["trunk.norm.weight", "head.norm.weight"])
def test_a_model_that_gives_no_numbers_is_noticed(part: str, vocab: int):
    model = make_toy(vocab=vocab)
    tokens = torch.full((3, 6), model.mask_id)
    with torch.no_grad():
        model.get_parameter(part)[0] = torch.nan
    samplers = [SpeculativeSampler(model, window=UnboundedWindow(), rounds=2)]
    samplers += [FixedCountSampler(model, steps=2)] if part.startswith("trunk") else []
    for sampler in samplers:
        with pytest.raises(ValueError, match="`model` must give logits that are numbers"):
            sampler.sample(tokens)
        engine = Engine(model, 2)
        with pytest.raises(ValueError, match="`model` must give logits that are numbers"):
            engine.sample(sampler, tokens)
        assert engine.idle


def test_a_low_temperature_rejects_no_draft_that_is_certain():
    model = make_toy().float()
    torch.nn.init.zeros_(model.head.project.weight)  # type: ignore[union-attr]
    sampler = SpeculativeSampler(model, window=UnboundedWindow(), rounds=1, temperature=1e-6)
    drawn = Engine(model, 64).sample(sampler, torch.full((500, 6), 3), 0)
    assert drawn.acceptance == 1


def test_the_nucleus_of_each_row_is_its_own():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 11, dtype=torch.float64)
    given = [(0.5, 0.3), (1.0, 1.0), (2.0, 0.9)]
    law = law_of(logits, *torch.tensor(given, dtype=torch.float64).T)
    for b, (temperature, top_p) in enumerate(given):
        expected = log_probs(logits[b], temperature, top_p)
        for token in range(11):
            found = law.of(torch.full((3, 5), token))[b]
            torch.testing.assert_close(found, expected[:, token])
    assert torch.equal(law.logits[1], logits[1])  # to the bit, whatever its neighbours ask for


def test_an_engine_that_was_interrupted_serves_again(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch
):
    """Also with Ctrl-C in the middle, and with more rows than were submitted by then."""
    sampler, tokens = SpeculativeSampler(ternary, window=ConstantWindow(2)), torch.full((9, 6), 3)
    engine = Engine(ternary, 2)
    monkeypatch.setattr(host, "PORTION", 4)
    launch, calls = engine._flight.launch, []

    def interrupted(more: bool) -> bool:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return launch(more)

    monkeypatch.setattr(engine._flight, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.sample(sampler, tokens, 5)
    assert engine.idle
    assert same(engine.sample(sampler, tokens, 5), sampler.sample(tokens, 5))


def test_rows_may_be_submitted_by_a_generator_that_yields_nothing(ternary: SSMD):
    sampler, engine = SpeculativeSampler(ternary), Engine(ternary, 1)

    def more() -> Iterator[None]:
        for seed in range(4):
            engine.submit(sampler, torch.full((1, 6), 3), seed)
            yield

    assert sum(len(rows.index) for rows in engine.results(more())) == 4


def test_a_rule_of_ones_own_need_not_be_hashable(ternary: SSMD):
    @dataclass
    class Mine:
        marks: list[int] = field(default_factory=list)
        fixed: ClassVar[bool] = False

        def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
            return (u + u_row) % 1

    sampler, tokens = SpeculativeSampler(ternary, Mine(), ConstantWindow(2)), torch.full((3, 6), 3)
    with pytest.raises(TypeError, match="unhashable"):
        hash(sampler.order)
    assert same(Engine(ternary, 2).sample(sampler, tokens, 1), sampler.sample(tokens, 1))


def test_an_embedding_that_is_tied_to_a_matrix_is_not_lowered():
    model = make_toy().float()
    trunk = model.trunk
    assert isinstance(trunk, Trunk)
    tied = nn.Linear(8, 4, bias=False)
    tied.weight = trunk.embedding.weight
    trunk.add_module("tied", tied)
    low = copied(model, bfloat16=True).trunk
    assert isinstance(low, Trunk)
    assert low.embedding.weight.dtype == torch.float32
    assert low.get_parameter("tied.weight").dtype == torch.bfloat16
    assert trunk.get_parameter("tied.weight") is trunk.embedding.weight
