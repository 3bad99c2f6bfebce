import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_scorer
from reference import (
    BINARY,
    INFILL,
    PLAIN,
    RESPACED,
    SPACED,
    UNIFORM,
    Conditionals,
    ListedOrder,
    Puzzle,
    ancestral_law,
    counts,
    orders,
    p_value,
    sampler_law,
)
from torch import Tensor, nn

from selfspec import sampling
from selfspec.information import CutWindow
from selfspec.interfaces import Pass, Samples
from selfspec.likelihood import ancestral_chain, chain, draw_order, scores
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.noise import row_seeds
from selfspec.orders import Order
from selfspec.sampling import (
    AncestralSampler,
    AnyOrderSampler,
    AnyOrderVerifiedSampler,
    CapRemasking,
    ConfidenceDoubt,
    ConfidenceRemasking,
    ConfidenceSampler,
    DilatedOrder,
    DilatedSampler,
    DilatedWindow,
    DivergenceDoubt,
    DualDiffusionSampler,
    EntropyBoundSampler,
    EntropyBoundWindow,
    FactorSampler,
    FixedCountSampler,
    GuidedStarShapedSampler,
    KLASSSampler,
    LookaheadSampler,
    LoopRemasking,
    PathPlanningSampler,
    PlainSampler,
    PolicySampler,
    PUNTSampler,
    RemaskedPlainSampler,
    RemaskedSpeculativeSampler,
    ReMDMSampler,
    RescaleRemasking,
    Sampler,
    SelfVerifiedSampler,
    SpeculativeSampler,
    StaleCacheSampler,
    StarShapedSampler,
    ThresholdSampler,
    TopKSampler,
)
from selfspec.sampling.sets import RemaskingSampler, SetSampler
from selfspec.schedules import (
    ConstantWindow,
    CosineSchedule,
    CosineWindow,
    LinearSchedule,
    Schedule,
    ScheduleWindow,
    UnboundedWindow,
    Window,
)
from selfspec.selection import CellOrder, Entropy, Margin, SpanOrder

Toys = Callable[[int], SSMD]
Make = Callable[[SSMD, Order], Sampler]
LISTED = ListedOrder((3, 1, 5, 0, 4, 2))


def likelihood_law(
    model: SSMD, puzzle: Puzzle, rule: Order, window: Window, rounds: int, **options: float
) -> np.ndarray:
    """exp log p(x | σ), averaged over every σ of the rule."""
    rows = puzzle.completions
    first, pad = torch.full((len(rows),), len(puzzle.known)), puzzle.pad.expand_as(rows)
    every = [torch.tensor(sigma).expand_as(rows) for sigma in orders(rule, puzzle)]
    tables = (scores(model, rows, order, first, pad, **options) for order in every)  # type: ignore[arg-type]
    return torch.stack([chain(t, window, rounds).exp() for t in tables]).mean(0).numpy()


@pytest.mark.parametrize(
    ("puzzle", "rule", "window", "rounds"),
    [(PLAIN, UNIFORM, ConstantWindow(3), 1),
     (PLAIN, UNIFORM, ConstantWindow(3), 2),
     (PLAIN, UNIFORM, CosineWindow(0.4), 3),
     (PLAIN, UNIFORM, UnboundedWindow(), 2),
     (PLAIN, UNIFORM, UnboundedWindow(), 5),
     (PLAIN, SPACED, ConstantWindow(3), 2),
     (PLAIN, SPACED, UnboundedWindow(), 1),
     (INFILL, UNIFORM, ConstantWindow(3), 1),
     (INFILL, UNIFORM, ConstantWindow(2), 2),
     (INFILL, SPACED, UnboundedWindow(), 2),
     (BINARY, LISTED, ConstantWindow(3), 2),
     (BINARY, LISTED, CosineWindow(0.5), 1),
     (BINARY, SPACED, UnboundedWindow(), 3)],
)  # fmt: skip
def test_speculative_samples_have_the_law_of_the_likelihood(
    toys: Toys, puzzle: Puzzle, rule: Order, window: Window, rounds: int
):
    model = toys(puzzle.vocab)
    law = likelihood_law(model, puzzle, rule, window, rounds)
    sampler = SpeculativeSampler(model, rule, window, rounds)
    assert p_value(counts(sampler, puzzle), law) > 1e-3


@pytest.mark.parametrize(
    "options", [{"temperature": 0.6}, {"temperature": 1.5, "top_p": 0.8}], ids=str
)
@pytest.mark.parametrize("rounds", [0, 2])
def test_temperature_and_nucleus_act_on_the_sampler_as_on_the_likelihood(
    ternary: SSMD, options: dict[str, float], rounds: int
):
    window = ScheduleWindow(CosineSchedule(), 2)
    law = likelihood_law(ternary, PLAIN, UNIFORM, window, rounds, **options)
    if rounds:
        sampler = SpeculativeSampler(ternary, UNIFORM, window, rounds, **options)
    else:
        sampler = FixedCountSampler(ternary, UNIFORM, CosineSchedule(), steps=2, **options)
    drawn = counts(sampler, PLAIN)
    assert p_value(drawn, law) > 1e-3
    assert p_value(drawn, likelihood_law(ternary, PLAIN, UNIFORM, window, rounds)) < 1e-6


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()])
@pytest.mark.parametrize(("puzzle", "rule"), [(PLAIN, UNIFORM), (INFILL, UNIFORM), (PLAIN, SPACED)])
def test_fixed_count_samples_have_the_law_of_unverified_drafts(
    ternary: SSMD, puzzle: Puzzle, rule: Order, schedule: Schedule
):
    law = likelihood_law(ternary, puzzle, rule, ScheduleWindow(schedule, 2), rounds=0)
    assert p_value(counts(FixedCountSampler(ternary, rule, schedule, 2), puzzle), law) > 1e-3


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()])
@pytest.mark.parametrize(("puzzle", "steps"), [(PLAIN, 2), (PLAIN, 5), (INFILL, 3)])
def test_ancestral_samples_have_the_law_of_the_reverse_process(
    ternary: SSMD, puzzle: Puzzle, schedule: Schedule, steps: int
):
    law = ancestral_law(ternary, puzzle, schedule, steps)
    assert law.sum() == pytest.approx(1, abs=1e-9)
    sampler = AncestralSampler(ternary, schedule=schedule, steps=steps)
    assert p_value(counts(sampler, puzzle), law) > 1e-3


def test_ancestral_samples_of_a_spaced_order_have_their_likelihood(ternary: SSMD):
    rows = PLAIN.completions
    every = [torch.tensor(sigma).expand_as(rows) for sigma in orders(SPACED, PLAIN)]
    laws = [ancestral_chain(scores(ternary, rows, s), CosineSchedule(), 3).exp() for s in every]
    sampler = AncestralSampler(ternary, SPACED, CosineSchedule(), steps=3)
    assert p_value(counts(sampler, PLAIN), torch.stack(laws).mean(0).numpy()) > 1e-3


@pytest.mark.parametrize("puzzle", [PLAIN, INFILL], ids=lambda p: p.text)
def test_any_order_samples_have_the_any_order_law_of_the_trunk(ternary: SSMD, puzzle: Puzzle):
    law, every = np.zeros(len(puzzle.completions)), orders(UNIFORM, puzzle)
    for sigma in every:
        table = Conditionals(ternary, puzzle, sigma)
        along = sigma[table.first : table.first + table.length]
        for index, values in enumerate(puzzle.completions[:, list(along)].tolist()):
            steps = [table.draft[d][table.row(tuple(values)), d, t] for d, t in enumerate(values)]
            law[index] += np.prod(steps) / len(every)
    assert p_value(counts(AnyOrderSampler(ternary), puzzle), law) > 1e-3


@pytest.mark.parametrize(
    ("puzzle", "window", "rounds"),
    [(PLAIN, ConstantWindow(2), 1), (PLAIN, UnboundedWindow(), 2), (INFILL, ConstantWindow(2), 2),
     (BINARY, ConstantWindow(3), 1)],  # here the next pass needs another order
)  # fmt: skip
def test_samples_of_a_rechosen_order_have_the_law_over_ordered_sets(
    toys: Toys, puzzle: Puzzle, window: Window, rounds: int
):
    model = toys(puzzle.vocab)
    law = sampler_law(model, puzzle, RESPACED, window, rounds)
    assert law.sum() == pytest.approx(1, abs=1e-9)
    sampler = SpeculativeSampler(model, RESPACED, window, rounds)
    assert p_value(counts(sampler, puzzle), law) > 1e-3


def test_plain_samples_of_a_rechosen_order_have_the_law_over_ordered_sets(ternary: SSMD):
    law = sampler_law(ternary, PLAIN, RESPACED, ScheduleWindow(LinearSchedule(), 2), 0)
    sampler = FixedCountSampler(ternary, RESPACED, LinearSchedule(), 2)
    assert p_value(counts(sampler, PLAIN), law) > 1e-3


# The contract: every sampler, and with every order those that take one.

ORDERED: dict[str, Make] = {
    "speculative": lambda m, o: SpeculativeSampler(m, o, UnboundedWindow(), rounds=2),
    "speculative, cosine": lambda m, o: SpeculativeSampler(m, o, CosineWindow(0.3), rounds=1),
    "fixed count": lambda m, o: FixedCountSampler(m, o, CosineSchedule(), steps=4),
    "ancestral": lambda m, o: AncestralSampler(m, o, CosineSchedule(), steps=4),
    "any order": lambda m, o: AnyOrderSampler(m, o),
    "any order, verified": lambda m, o: AnyOrderVerifiedSampler(m, o, ConstantWindow(3)),
    "plain, remasked": lambda m, o: RemaskedPlainSampler(m, o, ConstantWindow(2), 0.5, 4),
    "speculative, remasked": lambda m, o: RemaskedSpeculativeSampler(
        m, o, ConstantWindow(2), 2, 0.5, 4
    ),
    "stale cache": lambda m, o: StaleCacheSampler(m, o, ConstantWindow(3)),
    "entropy bound": lambda m, o: EntropyBoundSampler(m, 0.8, o),
    "speculative, bounded": lambda m, o: SpeculativeSampler(m, o, EntropyBoundWindow(1.0), 2),
    "optimal": lambda m, o: PlainSampler(m, o, CutWindow((1, 3, 6))),
    "speculative, optimal": lambda m, o: SpeculativeSampler(m, o, CutWindow((1, 3, 6)), 2),
}
PREDICTOR = make_scorer(vocab_size=4)  # of one token more than the toy has
POLICY = make_scorer(seed=7, features=3)
OTHERS: dict[str, Callable[[SSMD], Sampler]] = {
    "top-k": lambda m: TopKSampler(m, Margin(), steps=3),
    "top-k, drawn": lambda m: TopKSampler(m, Entropy(), steps=3, alg_temperature=0.2),
    "threshold": lambda m: ThresholdSampler(m, 0.6),
    "factor": lambda m: FactorSampler(m, 1.3),
    "klass": lambda m: KLASSSampler(m, 0.4, 0.1, 1, 1),
    "dilated": lambda m: DilatedSampler(m, 4, 2),
    "speculative, dilated": lambda m: SpeculativeSampler(m, DilatedOrder(4), DilatedWindow(4), 2),
    "confidence": lambda m: ConfidenceSampler(m, 4),
    "remdm cap": lambda m: ReMDMSampler(m, CapRemasking(0.3), 6),
    "remdm rescale": lambda m: ReMDMSampler(m, RescaleRemasking(0.5), 6),
    "remdm conf": lambda m: ReMDMSampler(m, ConfidenceRemasking(), 6),
    "remdm loop": lambda m: ReMDMSampler(m, LoopRemasking(0.3), 9),
    "star-shaped": lambda m: StarShapedSampler(m, 6, 0.8),
    "star-shaped, guided": lambda m: GuidedStarShapedSampler(m, PREDICTOR, 6, 0.8),
    "policy": lambda m: PolicySampler(m, POLICY),
    "path planning": lambda m: PathPlanningSampler(m, 6, 1.5),
    "lookahead": lambda m: LookaheadSampler(m, 3),
    "punt": lambda m: PUNTSampler(m, 0.02),
    "dual diffusion": lambda m: DualDiffusionSampler(m, DivergenceDoubt(0.1), 3),
    "dual diffusion, unlikely": lambda m: DualDiffusionSampler(m, ConfidenceDoubt(0.4), 5, SPACED),
    "self-verified": lambda m: SelfVerifiedSampler(m, 3),
}
# The most trunk passes for n tokens; n where nothing is said.
BOUNDS: dict[str, Callable[[int], float]] = {
    "any order, verified": lambda n: 3 * n,
    "plain, remasked": lambda n: -(-n // 2),
    "speculative, remasked": lambda n: n + 4,
    "stale cache": lambda n: n * (3 + 4 / max(n, 3)),
    "remdm cap": lambda n: 6,
    "remdm rescale": lambda n: 6,
    "remdm conf": lambda n: 6,
    "remdm loop": lambda n: 9,
    "star-shaped": lambda n: 6,
    "star-shaped, guided": lambda n: 6 * 1.5,  # both are as wide as the trunk, of two blocks
    "policy": lambda n: 1.5 * n,
    "path planning": lambda n: 6,
    "lookahead": lambda n: 1 + 2 * (min(n, 3) - 1),
    "punt": lambda n: n * (1 + np.ceil(np.log2(n))),
    "self-verified": lambda n: 3 * n,
    "dual diffusion": lambda n: n + 1 + 3 * 3 - 2,  # a last one judges the last draft
    "dual diffusion, unlikely": lambda n: n + 1 + 3 * 5 - 2,
}
TEXTS = ["??????", "1?.?2?", "??????", "012012", "?.??.?", "2222?1", "0....1", "?"]
ROWS = [Puzzle(text) for text in TEXTS]
ORDERS = [UNIFORM, SPACED, RESPACED]


def stacked(rows: list[Puzzle]) -> tuple[Tensor, Tensor]:
    """Tokens and pads (B, 6); a shorter row is filled up with pads."""
    whole = [Puzzle(row.text.ljust(6, ".")) for row in rows]
    return torch.stack([r.tokens for r in whole]), torch.stack([r.pad for r in whole])


CONTRACT = [(name, order) for name in ORDERED for order in ORDERS]
CONTRACT += [("speculative, cosine", CellOrder()), ("speculative", SpanOrder())]
CONTRACT += [(name, UNIFORM) for name in OTHERS]


@pytest.fixture(
    scope="module", params=CONTRACT, ids=lambda given: f"{given[0]}, {type(given[1]).__name__}"
)
def named(request: pytest.FixtureRequest, rugged: SSMD) -> tuple[str, Sampler]:
    """Of the rugged model: where scores tie up to rounding, a batch may choose another position."""
    name, order = request.param
    return name, ORDERED[name](rugged, order) if name in ORDERED else OTHERS[name](rugged)


@pytest.fixture(scope="module")
def sampler(named: tuple[str, Sampler]) -> Sampler:
    return named[1]


@pytest.fixture(scope="module")
def drawn(sampler: Sampler) -> tuple[Tensor, Tensor, Samples]:
    """Forty copies of the rows, with other seeds."""
    tokens, pad = stacked(ROWS * 40)
    return tokens, pad, sampler.sample(tokens, 1, pad, trace=True)


def test_the_contract_is_of_all_samplers(rugged: SSMD):
    made = [make(rugged) for make in OTHERS.values()]
    made += [make(rugged, UNIFORM) for make in ORDERED.values()]
    public = {name for name in sampling.__all__ if name.endswith("Sampler")}
    assert {type(sampler).__name__ for sampler in made} == public - {"Sampler"}


def test_contract_what_is_given_stays_and_the_rest_is_filled(
    sampler: Sampler, drawn: tuple[Tensor, Tensor, Samples]
):
    tokens, _, out = drawn
    masked = tokens == sampler.model.mask_id
    assert torch.equal(out.tokens[~masked], tokens[~masked])
    assert ((out.tokens[masked] >= 0) & (out.tokens[masked] < sampler.model.vocab_size)).all()
    assert out.trace is not None
    for row, passes in enumerate(out.trace):
        known: set[int] = set()
        for p in passes:
            revealed = {position for position, _ in p.revealed}
            assert not revealed & known
            assert known | revealed >= set(p.remasked)
            known = (known | revealed) - set(p.remasked)
        assert sorted(known) == masked[row].nonzero().flatten().tolist()


def replayed(p: Pass) -> tuple[list[tuple[int, int]], int, int]:
    """What the verdicts leave: (position, token) pairs; how many drafts were judged, and stand."""
    if not p.rounds:  # unverified, or a window of one
        return list(zip(p.positions, p.drafted)), len(p.positions), len(p.positions)  # noqa: B905
    stands, judged, accepted = dict(zip(p.positions, p.drafted)), [], 0  # noqa: B905
    for verdicts in p.rounds:
        judged += verdicts.accepted
        accepted += len(verdicts.accepted)
        if verdicts.rejected is not None:
            assert verdicts.redrawn is not None
            judged.append(verdicts.rejected)
            stands[verdicts.rejected] = verdicts.redrawn
    assert judged == p.positions[: len(judged)]
    return [(position, stands[position]) for position in judged], len(judged), accepted


def test_contract_the_account_is_that_of_the_trace(
    sampler: Sampler, drawn: tuple[Tensor, Tensor, Samples]
):
    tokens, _, out = drawn
    assert out.trace is not None
    for row, passes in enumerate(out.trace):
        replay, judged, accepted = tokens[row].clone(), 0, 0
        for p in passes:
            pairs, *tally = replayed(p)
            assert p.revealed == pairs
            waits = isinstance(sampler, DualDiffusionSampler) and p is passes[0]
            assert len(pairs) >= 1 or isinstance(sampler, RemaskingSampler) or waits
            if isinstance(sampler, SpeculativeSampler):  # only a window of one goes unverified
                assert (len(p.positions) > 1) <= len(p.rounds) <= sampler.rounds
            taken_back = len(p.remasked) if isinstance(sampler, SetSampler) else 0
            judged, accepted = judged + tally[0], accepted + tally[1] - taken_back
            for position, token in pairs:
                replay[position] = token
            replay[p.remasked] = sampler.model.mask_id
        assert torch.equal(replay, out.tokens[row])
        assert accepted == out.accepted[row]
        if isinstance(sampler, DualDiffusionSampler):  # a trace has what stands alone
            assert judged <= out.drafted[row]
        else:
            assert judged == out.drafted[row]
        trunks = sum(p.trunk_passes for p in passes)
        verified_by_head = isinstance(sampler, SpeculativeSampler) and sampler.needs_head
        heads = sum(len(p.rounds) for p in passes) if verified_by_head else 0
        assert trunks == pytest.approx(out.trunk_passes[row].item())
        assert heads == out.head_passes[row]
        assert out.nfe[row].item() == pytest.approx((2 * trunks + heads) / 3)


def test_contract_no_row_takes_more_passes_than_it_may(
    named: tuple[str, Sampler], drawn: tuple[Tensor, Tensor, Samples]
):
    tokens, _, out = drawn
    most = BOUNDS.get(named[0], lambda n: n)
    for passes, n in zip(out.trunk_passes.tolist(), (tokens == 3).sum(1).tolist(), strict=True):
        assert (passes > 0) == (n > 0)
        assert passes <= (most(n) if n else 0) + 1e-9


def test_contract_a_row_is_the_same_alone_and_in_any_batch(
    sampler: Sampler, drawn: tuple[Tensor, Tensor, Samples]
):
    tokens, pad, out = drawn
    seeds = row_seeds(1, len(tokens))
    shuffled = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    for rows in (shuffled, *torch.arange(16).split(1)):
        again = sampler.sample(tokens[rows], seeds[rows], pad[rows])
        for name in ("tokens", "trunk_passes", "head_passes", "drafted", "accepted"):
            assert torch.equal(getattr(again, name), getattr(out, name)[rows])


def test_contract_seeds_matter(sampler: Sampler, drawn: tuple[Tensor, Tensor, Samples]):
    tokens, pad, out = drawn
    again = sampler.sample(tokens, 2, pad).tokens
    assert torch.equal(again, out.tokens) == isinstance(sampler, SelfVerifiedSampler)  # is greedy


def test_contract_nothing_to_generate_costs_nothing(sampler: Sampler):
    tokens, pad = stacked([Puzzle("012012"), Puzzle("1..2"), Puzzle("......")])
    before = tokens.clone()
    out = sampler.sample(tokens, 0, pad, trace=True)
    assert torch.equal(out.tokens, before)
    assert out.trace == [[], [], []]
    assert out.nfe.tolist() == [0, 0, 0]
    assert np.isnan(out.acceptance)


def test_contract_the_input_is_not_written_to(sampler: Sampler):
    # All three are views that repeat one row, where writing would be an error.
    inputs = [x.expand(3, *x.shape[1:]) for x in (*stacked(ROWS[1:2]), row_seeds(0, 1))]
    before = [x.clone() for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.sample(inputs[0], inputs[2], inputs[1])
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))  # noqa: B905


def test_contract_appended_pads_change_nothing(sampler: Sampler):
    tokens, seeds = torch.full((50, 4), 3), row_seeds(4, 50)
    longer = torch.cat([tokens, torch.zeros(50, 2, dtype=torch.int64)], 1)
    pad = (torch.arange(6) >= 4).expand_as(longer)
    short, long = sampler.sample(tokens, seeds), sampler.sample(longer, seeds, pad)
    assert torch.equal(short.tokens, long.tokens[:, :4])
    assert torch.equal(short.nfe, long.nfe)


class ForbiddingTrunk(nn.Module):
    """The tokens of another trunk, and its mask as a token that is never drafted."""

    def __init__(self, trunk: Any):
        super().__init__()
        self.trunk, self.vocab_size, self.mask_id = trunk, trunk.vocab_size + 1, trunk.mask_id
        self.width, self.length, self.num_blocks = trunk.width, trunk.length, trunk.num_blocks
        self.embed, self.memories = trunk.embed, trunk.memories

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.trunk(*args, **kwargs)

    def unembed(self, hidden: Tensor) -> Tensor:
        return nn.functional.pad(self.trunk.unembed(hidden), (0, 1), value=-torch.inf)


@pytest.mark.parametrize("name", [*ORDERED, *OTHERS, "cells", "spans"])
def test_a_forbidden_token_changes_nothing(rugged: SSMD, name: str):
    """Where a logit is -inf, no statistic of the draft may become nan, and no draw may hit it."""
    rules = {"cells": CellOrder(), "spans": SpanOrder()}
    make = OTHERS.get(name) or (
        lambda m: ORDERED.get(name, ORDERED["speculative"])(m, rules.get(name, UNIFORM))
    )
    tokens, pad = stacked(ROWS * 20)
    expected = make(rugged).sample(tokens, 3, pad)
    out = make(SSMD(ForbiddingTrunk(rugged.trunk), rugged.head)).sample(tokens, 3, pad)
    assert torch.equal(out.tokens, expected.tokens)
    assert torch.equal(out.nfe, expected.nfe)


# What the samplers are to each other.


def test_a_window_of_one_needs_no_head_and_is_the_any_order_sampler(ternary: SSMD):
    masked, one = torch.full((300, 6), 3), SpeculativeSampler(ternary, window=ConstantWindow(1))
    verified, plain = one.sample(masked), AnyOrderSampler(ternary).sample(masked)
    assert torch.equal(verified.head_passes, torch.zeros(300, dtype=torch.int64))
    assert torch.equal(verified.trunk_passes, torch.full((300,), 6))
    assert torch.equal(verified.tokens, plain.tokens)


def test_a_fresh_head_accepts_everything(ternary: SSMD):
    model = SSMD(ternary.trunk, CausalHead(HeadConfig(heads=1), 8).double())
    masked, window = torch.full((300, 6), 3), ScheduleWindow(CosineSchedule(), 3)
    verified = SpeculativeSampler(model, window=window, rounds=1).sample(masked)
    plain = FixedCountSampler(model, schedule=CosineSchedule(), steps=3).sample(masked)
    assert verified.acceptance == plain.acceptance == 1
    assert torch.equal(verified.tokens, plain.tokens)


def test_without_a_head_a_pass_is_an_evaluation(ternary: SSMD):
    sampler = FixedCountSampler(SSMD(ternary.trunk), schedule=LinearSchedule(), steps=3)
    assert sampler.sample(torch.full((5, 6), 3)).nfe.tolist() == [3.0] * 5


def test_enough_rounds_without_a_window_take_one_trunk_pass(ternary: SSMD):
    sampler = SpeculativeSampler(ternary, window=UnboundedWindow(), rounds=5)
    out = sampler.sample(torch.full((300, 6), 3))
    assert (out.trunk_passes <= 2).all()
    whole = SpeculativeSampler(ternary, window=UnboundedWindow(), rounds=6)
    assert (whole.sample(torch.full((300, 6), 3)).trunk_passes == 1).all()


@pytest.mark.parametrize(("schedule", "steps"), [(CosineSchedule(), 4), (LinearSchedule(), 3)])
def test_ancestral_counts_are_binomial(ternary: SSMD, schedule: Schedule, steps: int):
    sampler = AncestralSampler(ternary, schedule=schedule, steps=steps)
    rows = torch.full((20_000, 6), 3)
    windows = sampler.start(rows, row_seeds(0, len(rows)), torch.zeros_like(rows).bool()).windows
    first = np.bincount(windows[:, 0], minlength=7)
    share = [1.0, *schedule.masked(np.arange(1, steps + 1) / steps)]
    law = np.zeros(7)
    for before, after in zip(share, share[1:]):  # noqa: B905, RUF007
        # No place is revealed before this step, and k of the six are revealed in it.
        chance = [1 - after / before, after / before]
        counts_ = [np.prod([6 - j for j in range(k)]) / np.prod(range(1, k + 1)) for k in range(7)]
        law += [before**6 * (k > 0) * c * chance[0] ** k * chance[1] ** (6 - k)
                for k, c in enumerate(counts_)]  # fmt: skip
    assert p_value(first, law) > 1e-3


def test_sampler_and_likelihood_draw_the_same_order(ternary: SSMD):
    tokens, pad = stacked(ROWS)
    masked, seeds = tokens == 3, row_seeds(3, len(tokens))
    for rule in (UNIFORM, SPACED):
        state = SpeculativeSampler(ternary, rule).start(tokens, seeds, pad)
        order, first = draw_order(rule, tokens, seeds, pad, observed=~(masked | pad))
        assert torch.equal(state.order, order)
        assert torch.equal(state.revealed, first)


def test_batches_of_one_run_are_one_run(ternary: SSMD):
    tokens, seeds = torch.full((10, 6), 3), row_seeds(0, 10)
    sampler = SpeculativeSampler(ternary, window=ConstantWindow(3))
    parts = [sampler.sample(tokens[:4], seeds[:4]), sampler.sample(tokens[4:], seeds[4:])]
    joined, whole = Samples.concatenate(parts), sampler.sample(tokens, 0, progress=True)
    assert torch.equal(joined.tokens, whole.tokens)
    assert torch.equal(joined.nfe, whole.nfe)
    assert len(joined) == 10


TOKENS = torch.full((2, 4), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda m: SpeculativeSampler(SSMD(m.trunk)), "`model` must have a causal head"),
     (lambda m: SpeculativeSampler(m, window=0), "`window` must be at least 1, got 0"),
     (lambda m: SpeculativeSampler(m, rounds=0), "`rounds` must be at least 1, got 0"),
     (lambda m: SpeculativeSampler(m, temperature=0.0), "`temperature` must be above 0 and finite"),
     (lambda m: FixedCountSampler(m, top_p=2.0), r"`top_p` must be in \(0, 1\], got 2.0"),
     (lambda m: FixedCountSampler(m, steps=0), "`steps` must be at least 1, got 0"),
     (lambda m: AncestralSampler(m, steps=0), "`steps` must be at least 1, got 0"),
     (lambda m: TopKSampler(m, steps=0), "`steps` must be at least 1, got 0"),
     (lambda m: TopKSampler(m, alg_temperature=-1.0), "`temperature` must be at least 0, got -1.0"),
     (lambda m: ThresholdSampler(m, 1.1), r"`tau` must be in \[0, 1\], got 1.1"),
     (lambda m: FactorSampler(m, 0), "`factor` must be above 0, got 0"),
     (lambda m: EntropyBoundSampler(m, -0.1), "`gamma` must be at least 0, got -0.1"),
     (lambda m: KLASSSampler(m, tau=2), r"`tau` must be in \[0, 1\], got 2"),
     (lambda m: KLASSSampler(m, epsilon=0), "`epsilon` must be above 0, got 0"),
     (lambda m: KLASSSampler(m, history=0), "`history` must be at least 1, got 0"),
     (lambda m: DilatedSampler(m, block=0), "`block` must be at least 1, got 0"),
     (lambda m: DilatedSampler(m, base=1), "`base` must be at least 2, got 1"),
     (lambda m: ConfidenceSampler(m, noise=-1), "`noise` must be at least 0, got -1"),
     (lambda m: ReMDMSampler(m, steps=0), "`steps` must be at least 1, got 0"),
     (lambda m: CapRemasking(2), r"`eta` must be in \[0, 1\], got 2"),
     (lambda m: LoopRemasking(on=0.1, off=0.2), "`on` and `off` must .* got 0.1 and 0.2"),
     (lambda m: LoopRemasking(alpha=1), r"`alpha` must be in \(0, 1\), got 1"),
     (lambda m: StarShapedSampler(m, on=-1), r"`on` must be in \[0, 1\], got -1"),
     (lambda m: GuidedStarShapedSampler(m, make_scorer(vocab_size=2)),
      "`predictor` must read the model's 3 tokens, got 2"),
     (lambda m: GuidedStarShapedSampler(m, PREDICTOR, 0), "`steps` must be at least 1, got 0"),
     (lambda m: PolicySampler(m, PREDICTOR), "`policy` must read 3 features, got 0"),
     (lambda m: PolicySampler(m, POLICY, 0), "`policy_temperature` must be above 0, got 0"),
     (lambda m: PathPlanningSampler(m, eta=-1), "`eta` must be at least 0, got -1"),
     (lambda m: LookaheadSampler(m, pool=0), "`pool` must be at least 1, got 0"),
     (lambda m: LookaheadSampler(m, weight_temperature=0), "`weight_temperature` must be above 0"),
     (lambda m: PUNTSampler(m, -1), "`epsilon` must be at least 0, got -1"),
     (lambda m: RemaskedSpeculativeSampler(m, eta=2), r"`eta` must be in \[0, 1\], got 2"),
     (lambda m: RemaskedSpeculativeSampler(m, passes=-1), "`passes` must be at least 0, got -1"),
     (lambda m: RemaskedSpeculativeSampler(m, window=EntropyBoundWindow()),
      "`window` must be one of counts alone, got EntropyBoundWindow"),
     (lambda m: SelfVerifiedSampler(m, 0), "`drafts` must be at least 1, got 0")],
)  # fmt: skip
def test_bad_settings_are_named(ternary: SSMD, make, message: str):
    with pytest.raises(ValueError, match=message):
        make(ternary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((TOKENS[0],), r"`tokens` must be \(B, L\) int64, got \(4,\)"),
     ((TOKENS.int(),), "`tokens` must be .* got .* torch.int32"),
     ((TOKENS + 1,), "`tokens` must be in 0..2 or the mask token 3, got 4"),
     ((TOKENS - 4,), "`tokens` must be in 0..2 or .* got -1"),
     ((TOKENS[:0],), r"`tokens` must not be empty, got shape \(0, 4\)"),
     ((torch.full((1, 7), 3),), "`tokens` may be at most 6 long, got 7"),
     ((TOKENS, row_seeds(0, 3)), r"`seeds` must have .* got \(3,\)"),
     ((TOKENS, 0, TOKENS[:1] > 3), "`pad` must be bool of the shape of `tokens`"),
     ((TOKENS, 0, TOKENS), "`pad` must be bool of the shape of `tokens`")],
)  # fmt: skip
def test_bad_arguments_are_named(ternary: SSMD, arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        AnyOrderSampler(ternary).sample(*arguments)


def test_text_that_is_not_known_is_named(ternary: SSMD):
    with pytest.raises(ValueError, match="`text` is not known"):
        list(AnyOrderSampler(ternary).sample(TOKENS))
