"""The accelerated samplers against their own definitions, by enumeration of all paths."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import RuggedTrunk, make_scorer, make_toy
from processes import Process, drafts_of, law
from reference import (
    HINTED,
    INFILL,
    PADDED,
    PLAIN,
    RESPACED,
    SPACED,
    UNIFORM,
    Puzzle,
    ancestral_law,
    counts,
    orders,
    p_value,
    sampler_law,
)
from torch import Tensor

from selfspec import selection
from selfspec.likelihood import chain, draw_order, scores
from selfspec.model import SSMD
from selfspec.noise import Purpose, row_seeds
from selfspec.sampling import (
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
    FactorWindow,
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
    dual_diffusion,
    klass,
    lookahead,
    punt,
    remdm,
)
from selfspec.sampling.base import Drafts, State
from selfspec.sampling.remasked import RemaskedState
from selfspec.sampling.sets import SetSampler
from selfspec.schedules import (
    ConstantWindow,
    CosineSchedule,
    LinearSchedule,
    UnboundedWindow,
    Window,
)
from selfspec.selection import (
    CellOrder,
    Confidence,
    DraftOrder,
    Entropy,
    Margin,
    ScoreOrder,
    SpanOrder,
    divergence,
)

DRAWS = 40_000


def agrees(sampler: Sampler, puzzle: Puzzle, expected: np.ndarray, draws: int = DRAWS) -> bool:
    """Whether the samples have a law (which is one)."""
    assert expected.sum() == pytest.approx(1, abs=1e-9)
    return p_value(counts(sampler, puzzle, draws), expected) > 1e-3


Make = Callable[[SSMD], Sampler]
Define = Callable[[Puzzle, processes.Drafts], Process]


def laws_differ(laws: list[np.ndarray], draws: int = DRAWS) -> bool:
    """Whether so many draws would tell each law from the others."""
    pairs = itertools.combinations(laws, 2)
    return bool(min(draws * np.nansum((a - b) ** 2 / (a + b)) for a, b in pairs) > 30)


def test_scores_tell_the_positions_apart(rugged: SSMD):
    for puzzle in (PLAIN, HINTED, PADDED):
        p = drafts_of(rugged, puzzle)(tuple(puzzle.tokens.tolist()))
        for score in processes.SCORES.values():
            assert np.diff(sorted(score(p[i]) for i in puzzle.masked)).min() > 1e-6


# What chooses a set from the drafts alone.

CHOSEN: dict[str, tuple[Make, Define]] = {
    "confidence": (
        lambda m: TopKSampler(m, Confidence(), steps=2),
        lambda z, d: processes.top_k(z, d, [2, 2], "Confidence"),
    ),
    "margin": (
        lambda m: TopKSampler(m, Margin(), steps=3),
        lambda z, d: processes.top_k(z, d, [2, 1, 1], "Margin"),
    ),
    "entropy": (
        lambda m: TopKSampler(m, Entropy(), steps=2),
        lambda z, d: processes.top_k(z, d, [2, 2], "Entropy"),
    ),
    "drawn by entropy": (
        lambda m: TopKSampler(m, Entropy(), steps=2, alg_temperature=0.1),
        lambda z, d: processes.top_k(z, d, [2, 2], "Entropy", 0.1),
    ),
    "threshold .58": (
        lambda m: ThresholdSampler(m, 0.58),
        lambda z, d: processes.choosing(z, d, processes.by_threshold(0.58)),
    ),
    "threshold .5": (
        lambda m: ThresholdSampler(m, 0.5),
        lambda z, d: processes.choosing(z, d, processes.by_threshold(0.5)),
    ),
    "factor 1": (
        lambda m: FactorSampler(m, 1),
        lambda z, d: processes.choosing(z, d, processes.by_factor(1)),
    ),
    "factor 1.8": (
        lambda m: FactorSampler(m, 1.8),
        lambda z, d: processes.choosing(z, d, processes.by_factor(1.8)),
    ),
    "entropy bound 0": (
        lambda m: EntropyBoundSampler(m, 0),
        lambda z, d: processes.choosing(z, d, processes.by_entropy(0)),
    ),
    "entropy bound .9": (
        lambda m: EntropyBoundSampler(m, 0.9),
        lambda z, d: processes.choosing(z, d, processes.by_entropy(0.9)),
    ),
    "klass": (
        lambda m: KLASSSampler(m, 0.45, 0.18, 1, 1),
        lambda z, d: processes.klass(z, d, 0.45, 0.18, 1, 1),
    ),
    "klass, two passes": (
        lambda m: KLASSSampler(m, 0.4, 0.15, 2, 1),
        lambda z, d: processes.klass(z, d, 0.4, 0.15, 2, 1),
    ),
    "klass, two at least": (
        lambda m: KLASSSampler(m, 0.5, 0.1, 1, 2),
        lambda z, d: processes.klass(z, d, 0.5, 0.1, 1, 2),
    ),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_samplers_that_choose_from_drafts_have_the_law_of_their_definition(rugged: SSMD, name: str):
    make, define = CHOSEN[name]
    assert agrees(make(rugged), HINTED, law(HINTED, define(HINTED, drafts_of(rugged, HINTED))))


@pytest.mark.parametrize("name", ["margin", "threshold .58", "entropy bound .9"])
def test_they_have_it_between_pads_and_observed_tokens(rugged: SSMD, name: str):
    make, define = CHOSEN[name]
    sampler = make(rugged)
    if isinstance(sampler, TopKSampler):
        define = lambda z, d: processes.top_k(z, d, [1, 1, 1], "Margin")  # noqa: E731
    assert agrees(sampler, PADDED, law(PADDED, define(PADDED, drafts_of(rugged, PADDED))))


def test_the_definitions_have_different_laws(rugged: SSMD):
    drafts = drafts_of(rugged, HINTED)
    assert laws_differ([law(HINTED, define(HINTED, drafts)) for _, define in CHOSEN.values()])


def test_an_entropy_bound_of_nothing_reveals_one_token_a_pass(rugged: SSMD):
    masked = torch.full((50, 6), 3)
    bound = EntropyBoundSampler(rugged, 0).sample(masked)
    one = TopKSampler(rugged, Entropy(), steps=6).sample(masked)
    assert torch.equal(bound.tokens, one.tokens)
    whole = EntropyBoundSampler(rugged, 1e9).sample(masked)
    assert (whole.trunk_passes == 1).all()


# What reads drawn tokens, takes back, or looks ahead.

STEPS = 5
LINEAR = [k / STEPS for k in range(STEPS + 1)]
SHARE = [1 - alpha for alpha in LINEAR]


def sigmas(rule: Callable[[float], float], alpha: list[float]) -> list[float]:
    """σ of each step from σmax."""
    return [rule(min(1, (1 - s) / t) if t else 1) for t, s in itertools.pairwise(alpha)]


CAP = sigmas(lambda most: min(0.4, most), LINEAR)
RESCALE = sigmas(lambda most: most, LINEAR)
ALL = sigmas(lambda most: most, LINEAR)
# Six steps, on from time 1/2 to 1/6: two plain, three at α = 0.8, the last up to 1.
LOOP = LoopRemasking(0.2, on=2 / 3, off=1 / 6, alpha=0.8)
LOOPED = [0, 0.4, 0.8, 0.8, 0.8, 0.8, 1]
LOOP_SIGMA = [0, 0, 0.2, 0.2, 0.2, 0]

PREDICTOR = make_scorer(vocab_size=3)
POLICY = make_scorer(seed=7, scale=2.0, features=3)


@torch.no_grad()
def predicted(row: processes.Row) -> np.ndarray:
    """The error predictor's log-odds in a row of PADDED."""
    return PREDICTOR(torch.tensor([row]).masked_fill(PADDED.pad, 0), PADDED.pad[None])[0].numpy()


@torch.no_grad()
def advised(features: np.ndarray) -> np.ndarray:
    """The policy's log-odds in a row of PADDED."""
    return POLICY(torch.from_numpy(features)[None], PADDED.pad[None])[0].numpy()


TAKEN: dict[str, tuple[Make, Define, int | None]] = {
    "confidence": (
        lambda m: ConfidenceSampler(m, 2, 0, LinearSchedule()),
        lambda z, d: processes.confidence(z, d, [2, 1], 2, 0),
        None,
    ),
    "confidence, noise": (
        lambda m: ConfidenceSampler(m, 3, 1.5, LinearSchedule()),
        lambda z, d: processes.confidence(z, d, [1, 1, 1], 3, 1.5),
        None,
    ),
    "confidence, idle steps": (
        lambda m: ConfidenceSampler(m, 6, 1.5, LinearSchedule()),
        lambda z, d: processes.confidence(z, d, [1, 0, 1, 0, 1, 0], 6, 1.5),
        None,
    ),
    "remdm cap": (
        lambda m: ReMDMSampler(m, CapRemasking(0.4), STEPS),
        lambda z, d: processes.remdm(z, d, LINEAR, CAP, False),
        STEPS,
    ),
    "remdm rescale": (
        lambda m: ReMDMSampler(m, RescaleRemasking(1), STEPS),
        lambda z, d: processes.remdm(z, d, LINEAR, RESCALE, False),
        STEPS,
    ),
    "remdm conf": (
        lambda m: ReMDMSampler(m, ConfidenceRemasking(), STEPS),
        lambda z, d: processes.remdm(z, d, LINEAR, ALL, True),
        STEPS,
    ),
    "remdm loop": (
        lambda m: ReMDMSampler(m, LOOP, 6),
        lambda z, d: processes.remdm(z, d, LOOPED, LOOP_SIGMA, False),
        6,
    ),
    "star-shaped": (
        lambda m: StarShapedSampler(m, STEPS, 1),
        lambda z, d: processes.star(z, d, SHARE, 1),
        STEPS,
    ),
    "star-shaped, late": (
        lambda m: StarShapedSampler(m, STEPS, 0.4),
        lambda z, d: processes.star(z, d, SHARE, 0.4),
        STEPS,
    ),
    "star-shaped, guided": (
        lambda m: GuidedStarShapedSampler(m, PREDICTOR, STEPS, 1),
        lambda z, d: processes.guided_star(z, d, predicted, SHARE, 1),
        STEPS,
    ),
    "star-shaped, guided late": (
        lambda m: GuidedStarShapedSampler(m, PREDICTOR, STEPS, 0.6),
        lambda z, d: processes.guided_star(z, d, predicted, SHARE, 0.6),
        STEPS,
    ),
    "policy": (
        lambda m: PolicySampler(m, POLICY),
        lambda z, d: processes.policy(z, d, advised),
        None,
    ),
    "policy, cooler": (
        lambda m: PolicySampler(m, POLICY, 0.3),
        lambda z, d: processes.policy(z, d, lambda x: advised(x) / 0.3),
        None,
    ),
    "path planning": (
        lambda m: PathPlanningSampler(m, STEPS),
        lambda z, d: processes.path_planning(z, d, STEPS, 1),
        STEPS,
    ),
    "path planning, eager": (
        lambda m: PathPlanningSampler(m, STEPS, 2.5),
        lambda z, d: processes.path_planning(z, d, STEPS, 2.5),
        STEPS,
    ),
    "lookahead": (
        lambda m: LookaheadSampler(m, 3, 2, weight_temperature=0.1),
        lambda z, d: processes.lookahead(z, d, [1, 1, 1], 2, 0.1),
        None,
    ),
    "lookahead, all": (
        lambda m: LookaheadSampler(m, 2, 3, weight_temperature=0.3),
        lambda z, d: processes.lookahead(z, d, [2, 1], 3, 0.3),
        None,
    ),
    "punt .03": (
        lambda m: PUNTSampler(m, 0.03),
        lambda z, d: processes.punt(z, d, 0.03),
        None,
    ),
    "punt .15": (
        lambda m: PUNTSampler(m, 0.15),
        lambda z, d: processes.punt(z, d, 0.15),
        None,
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_samplers_of_sets_have_the_law_of_their_definition(rugged: SSMD, name: str):
    make, define, steps = TAKEN[name]
    expected = law(PADDED, define(PADDED, drafts_of(rugged, PADDED)), steps)
    assert agrees(make(rugged), PADDED, expected, 100_000)


def test_these_definitions_have_different_laws(rugged: SSMD):
    drafts = drafts_of(rugged, PADDED)
    laws = [law(PADDED, define(PADDED, drafts), steps) for _, define, steps in TAKEN.values()]
    assert laws_differ(laws, 100_000)


def test_bisection_tests_every_pair_of_four(rugged: SSMD):
    expected = law(HINTED, processes.punt(HINTED, drafts_of(rugged, HINTED), 0.05))
    assert agrees(PUNTSampler(rugged, 0.05), HINTED, expected)


def test_without_remasking_both_are_ancestral(ternary: SSMD):
    expected = ancestral_law(ternary, PLAIN, CosineSchedule(), 3)
    for sampler in (
        ReMDMSampler(ternary, CapRemasking(0), 3, CosineSchedule()),
        StarShapedSampler(ternary, 3, 0, CosineSchedule()),
    ):
        assert agrees(sampler, PLAIN, expected)


def test_masking_afresh_is_remasking_with_the_share_to_come(rugged: SSMD):
    drafts = drafts_of(rugged, PADDED)
    afresh = law(PADDED, processes.star(PADDED, drafts, SHARE, 1), STEPS)
    remasked = law(PADDED, processes.remdm(PADDED, drafts, LINEAR, SHARE[1:], False), STEPS)
    np.testing.assert_allclose(afresh, remasked, atol=1e-12)


@pytest.mark.parametrize("drafts", [1, 2, 8])
def test_self_verification_gives_the_greedy_result(rugged: SSMD, binary: SSMD, drafts: int):
    for model, texts in (
        (rugged, ["??????", "?0???2", "1?.??", "?", "2????1"]),
        (binary, ["0?????", "01????", "?1??0?"]),
    ):
        for text in texts:
            puzzle = Puzzle(text, model.vocab_size)
            greedy = processes.greedy(puzzle, drafts_of(model, puzzle))
            tokens, pad = puzzle.tokens[None], puzzle.pad[None]
            out = SelfVerifiedSampler(model, drafts).sample(tokens, 0, pad)
            assert tuple(out.tokens[0].tolist()) == greedy
            n = len(puzzle.masked)
            assert (n if drafts == 1 else 1) <= out.trunk_passes[0] <= n * drafts


# What claims a law given σ.


@pytest.mark.parametrize("puzzle", [PLAIN, INFILL], ids=lambda p: p.text)
@pytest.mark.parametrize("window", [ConstantWindow(3), UnboundedWindow()], ids=lambda w: str(w))
@pytest.mark.parametrize("kind", [AnyOrderVerifiedSampler, StaleCacheSampler])
def test_any_order_verification_has_the_any_order_law(
    ternary: SSMD, kind: type[AnyOrderVerifiedSampler], puzzle: Puzzle, window: Window
):
    expected = sampler_law(ternary, puzzle, UNIFORM, ConstantWindow(1), 0)
    assert agrees(kind(ternary, window=window), puzzle, expected)
    verified = kind(ternary, UNIFORM, ConstantWindow(1))
    masked = torch.full((50, 6), 3)
    assert torch.equal(
        verified.sample(masked).tokens, AnyOrderSampler(ternary).sample(masked).tokens
    )


def test_stale_drafts_know_the_drafts_before_them(ternary: SSMD):
    masked = torch.full((2000, 6), 3)
    blind = AnyOrderVerifiedSampler(ternary, window=UnboundedWindow()).sample(masked)
    stale = StaleCacheSampler(ternary, window=UnboundedWindow()).sample(masked)
    assert stale.acceptance > blind.acceptance + 0.05
    # With one block nothing but the new token is stale, and that is computed.
    shallow = StaleCacheSampler(make_toy(blocks=1), window=UnboundedWindow()).sample(masked)
    assert shallow.acceptance == 1
    np.testing.assert_allclose(shallow.nfe, (6 + 5 * 2 / 6) / 2)  # one of two blocks


def test_a_trunk_that_keeps_nothing_is_refused(rugged: SSMD, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(type(rugged.trunk), "memories")
    with pytest.raises(ValueError, match="`model` must have a trunk that keeps keys and values"):
        StaleCacheSampler(rugged)


DOUBTS = {
    "moved": (DivergenceDoubt(0.1), processes.moved(0.1), 3),
    "moved, two": (DivergenceDoubt(0.05), processes.moved(0.05), 2),
    "unlikely": (ConfidenceDoubt(0.4), processes.unlikely(0.4), 3),
    "none": (DivergenceDoubt(np.inf), processes.moved(np.inf), 3),
}


def dual_law(model: SSMD, name: str) -> np.ndarray:
    _, weigh, size = DOUBTS[name]
    drafts = drafts_of(model, PADDED)
    return law(PADDED, processes.dual_diffusion(model, PADDED, drafts, weigh, size))


@pytest.mark.parametrize("kind", ["rugged", "deep"])
@pytest.mark.parametrize("name", DOUBTS)
def test_drafts_judged_in_one_pass_have_the_law_of_their_definition(
    rugged: SSMD, kind: str, name: str
):
    model = rugged if kind == "rugged" else make_toy(blocks=3)
    doubt, _, size = DOUBTS[name]
    assert agrees(DualDiffusionSampler(model, doubt, size), PADDED, dual_law(model, name))


def test_what_is_taken_back_and_what_is_stale_matter():
    deep = make_toy(blocks=3)
    exact = sampler_law(deep, PADDED, UNIFORM, ConstantWindow(1), 0)
    assert laws_differ([exact, *(dual_law(deep, name) for name in DOUBTS)])


def test_one_draft_a_pass_or_no_staleness_and_no_doubt_is_the_any_order_law():
    deep, shallow, masked = make_toy(blocks=3), make_toy(blocks=1), torch.full((300, 6), 3)
    one = DualDiffusionSampler(deep, ConfidenceDoubt(1.0), 1, SPACED).sample(masked)
    plain = AnyOrderSampler(deep, SPACED).sample(masked)
    assert torch.equal(one.tokens, plain.tokens)  # the only draft always stands
    expected = sampler_law(shallow, PADDED, UNIFORM, ConstantWindow(1), 0)
    assert agrees(DualDiffusionSampler(shallow, DivergenceDoubt(np.inf)), PADDED, expected)


def test_the_account_of_drafts_judged_in_one_pass(ternary: SSMD):
    masked = torch.full((4, 6), 3)
    out = DualDiffusionSampler(ternary, DivergenceDoubt(np.inf), 4).sample(masked)
    assert out.trunk_passes.tolist() == pytest.approx([3 + (4 + 2 * 3) / 6 + (2 + 2) / 6] * 4)
    slow = DualDiffusionSampler(ternary, DivergenceDoubt(0), 4).sample(masked)
    assert slow.trunk_passes.min() > 6  # hardly more than one of four stands


def test_settings_of_dual_diffusion_are_checked(rugged: SSMD, monkeypatch: pytest.MonkeyPatch):
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: DivergenceDoubt(-0.1), "`epsilon` must be at least 0, got -0.1"),
        (lambda: DivergenceDoubt(np.nan), "`epsilon` must be at least 0, got nan"),
        (lambda: ConfidenceDoubt(1.5), r"`tau` must be in \[0, 1\], got 1.5"),
        (lambda: DualDiffusionSampler(rugged, drafts=0), "`drafts` must be at least 1, got 0"),
        (lambda: DualDiffusionSampler(rugged, order=RESPACED), "`order` must be fixed in advance"),
    ]
    for make, message in bad:
        with pytest.raises(ValueError, match=message):
            make()
    monkeypatch.delattr(type(rugged.trunk), "memories")
    with pytest.raises(ValueError, match="`model` must have a trunk that keeps keys and values"):
        DualDiffusionSampler(rugged)


@pytest.mark.parametrize(
    ("block", "base", "rounds"),
    [(4, 2, 0), (2, 2, 0), (3, 3, 0), (64, 3, 0), (4, 2, 1), (2, 2, 2), (64, 4, 2)],
)
def test_dilated_samples_have_their_exact_likelihood(
    ternary: SSMD, block: int, base: int, rounds: int
):
    order, window = DilatedOrder(block, base), DilatedWindow(block, base)
    rows, expected = PLAIN.completions, np.zeros(81)
    seeds = row_seeds(0, 200)
    sigmas_ = {
        tuple(sigma.tolist()) for sigma in draw_order(order, rows[:1].expand(200, -1), seeds)[0]
    }
    passes = [set(chunk) for chunk in dilated(4, block, base)]
    for sigma in sigmas_:  # all orders within each pass
        left = list(sigma)
        for chunk in passes:
            assert {left.pop(0) for _ in range(len(chunk))} == chunk
        table = scores(ternary, rows, torch.tensor(sigma).expand_as(rows))
        expected += chain(table, window, rounds).exp().numpy() / len(sigmas_)
    verified = SpeculativeSampler(ternary, order, window, max(rounds, 1))
    assert agrees(verified if rounds else DilatedSampler(ternary, block, base), PLAIN, expected)


def dilated(n: int, block: int, base: int) -> list[list[int]]:
    """The positions of each pass."""
    passes = []
    for begin in range(0, n, block):
        left = list(range(begin, min(n, begin + block)))
        size = stride = len(left)
        while left:
            stride = max(1, stride // base)
            passes.append([i for i in left if (i - begin) % stride == 0])
            left = [i for i in left if i not in passes[-1]]
        assert size
    return passes


ORDERS: dict[str, tuple[DraftOrder, processes.PlanOf]] = {
    "confidence": (ScoreOrder(Confidence()), processes.scored("Confidence")),
    "entropy": (ScoreOrder(Entropy()), processes.scored("Entropy")),
    "cells": (CellOrder(), processes.in_cells),
    "spans": (SpanOrder(), processes.spans),
}


@pytest.mark.parametrize(
    ("order", "puzzle", "size", "rounds"),
    [("confidence", PADDED, 2, 1),
     ("entropy", HINTED, 3, 2),
     ("cells", HINTED, 2, 1),
     ("cells", PADDED, 2, 0),
     ("spans", HINTED, 2, 1),
     ("spans", HINTED, 3, 2),
     ("spans", PADDED, 2, 0)],
)  # fmt: skip
def test_verified_samples_of_an_order_from_drafts_have_their_law(
    rugged: SSMD, order: str, puzzle: Puzzle, size: int, rounds: int
):
    rule, plan = ORDERS[order]
    window = ConstantWindow(size)
    most = window.table(len(puzzle.masked)).tolist()
    expected = processes.verified_law(rugged, puzzle, plan, most, rounds)
    if rounds:
        sampler = SpeculativeSampler(rugged, rule, window, rounds)
    else:
        sampler = PlainSampler(rugged, rule, window)
    assert agrees(sampler, puzzle, expected)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_verified_samples_of_a_window_bounded_by_entropy_have_their_law(rugged: SSMD, rounds: int):
    most = ConstantWindow(3)
    window = EntropyBoundWindow(1.0, most)
    table = most.table(3).tolist()
    expected = processes.verified_law(
        rugged, PADDED, processes.scored("Entropy"), table, rounds, 1.0
    )
    kind = SpeculativeSampler if rounds else PlainSampler
    knobs = {"rounds": rounds} if rounds else {}
    sampler = kind(rugged, ScoreOrder(Entropy()), window, **knobs)
    assert agrees(sampler, PADDED, expected)


def test_an_entropy_bound_goes_with_a_spaced_order(rugged: SSMD):
    """σ is fixed there, but the count is not: the law runs over σ and the drafts' entropies."""
    window = EntropyBoundWindow(1.0)

    expected = np.zeros(27)
    for sigma in orders(SPACED, PADDED):
        plan = rest_of(sigma)
        part = processes.verified_law(rugged, PADDED, plan, [3, 2, 1], 1, 1.0)
        expected += part / len(orders(SPACED, PADDED))
    assert agrees(SpeculativeSampler(rugged, SPACED, window, 1), PADDED, expected)


def rest_of(sigma: tuple[int, ...]) -> processes.PlanOf:
    """σ is known: what is left of it."""
    return lambda p, masked, width: [(tuple(i for i in sigma if i in masked), 1.0)]


@dataclass(frozen=True)
class ListedWindow:
    """Given windows, for one number of tokens."""

    sizes: tuple[int, ...]

    def table(self, n: int) -> np.ndarray:
        return np.array(self.sizes[:n])


REMASKED = {
    "two at first": ((2, 1, 1, 1), 1, 1.0, 2),
    "half": ((3, 2, 1, 1), 1, 0.5, 3),
    "two rounds": ((1, 2, 1, 1), 2, 0.7, 1),
    "unverified": ((2, 1, 1, 1), 0, 0.6, 2),
}


@pytest.mark.parametrize("name", REMASKED)
def test_remasking_between_passes_has_the_law_of_its_definition(rugged: SSMD, name: str):
    sizes, rounds, eta, passes = REMASKED[name]
    expected = processes.remasked_law(rugged, HINTED, sizes, rounds, eta, passes)
    window = ListedWindow(sizes)
    sampler = (
        RemaskedSpeculativeSampler(rugged, UNIFORM, window, rounds, eta, passes)
        if rounds
        else RemaskedPlainSampler(rugged, UNIFORM, window, eta, passes)
    )
    assert agrees(sampler, HINTED, expected)
    kept = processes.remasked_law(rugged, HINTED, sizes, rounds, 0, 0)
    np.testing.assert_allclose(kept, sampler_law(rugged, HINTED, UNIFORM, sampler.window, rounds))
    assert laws_differ([expected, kept])


# Mutants: each fault, one at a time, and the test above that sees it.


def coins_and_tokens_share_their_noise(patch: pytest.MonkeyPatch) -> None:
    own = SetSampler.noise
    patch.setattr(SetSampler, "noise", lambda self, s, purpose, r=0: own(self, s, Purpose.DRAFT, r))


def positions_are_drawn_with_the_noise_of_tokens(patch: pytest.MonkeyPatch) -> None:
    own = SetSampler.noise

    def noise(self: SetSampler, state: State, purpose: Purpose, round_index: int = 0) -> Tensor:
        return own(self, state, Purpose.DRAFT if purpose == Purpose.SELECT else purpose, 0)

    patch.setattr(SetSampler, "noise", noise)


def remasking_is_not_made_up_for(patch: pytest.MonkeyPatch) -> None:
    largest = remdm.ReMDMSampler.move

    def move(self: ReMDMSampler, state: State):
        outcome = largest(self, state)
        sigma = self.sigma
        self.sigma = np.zeros_like(sigma)
        plain = largest(self, state)
        self.sigma = sigma
        return plain._replace(remasked=outcome.remasked)

    patch.setattr(ReMDMSampler, "move", move)


def entropies_are_bounded_without_the_largest(patch: pytest.MonkeyPatch) -> None:
    def sizes(self: EntropyBoundWindow, logp: Tensor, inside: Tensor) -> Tensor:
        fits = selection.entropy(logp).cumsum(1) <= self.gamma
        return (inside & fits).sum(1).clamp(min=1)

    patch.setattr(EntropyBoundWindow, "sizes", sizes)


def all_are_taken_when_only_the_last_fails(patch: pytest.MonkeyPatch) -> None:
    def sizes(self: FactorWindow, logp: Tensor, inside: Tensor) -> Tensor:
        n = torch.arange(1, logp.shape[1] + 1)
        fails = inside & ((n + 1) * (1 - Confidence()(logp)) >= self.factor)
        first = torch.where(fails, n - 1, 99).amin(1)
        left = inside.sum(1)
        return torch.where((first >= left - 1), left, first).clamp(min=1)

    patch.setattr(FactorWindow, "sizes", sizes)


def divergence_is_reversed(patch: pytest.MonkeyPatch) -> None:
    for module in (klass, punt, dual_diffusion):
        patch.setattr(module, "divergence", lambda logp, other: divergence(other, logp))


def the_least_sure_future_wins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lookahead, "entropy", lambda logp: -selection.entropy(logp))


def prefixes_lack_the_drafts(patch: pytest.MonkeyPatch) -> None:
    target = AnyOrderVerifiedSampler.target

    def blind(self, state, drafts, rows, decided) -> Tensor:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Drafts, "written", lambda self, tokens, upto=None: tokens)
            return target(self, state, drafts, rows, decided)

    patch.setattr(AnyOrderVerifiedSampler, "target", blind)


def drafts_are_said_to_be_fresh(patch: pytest.MonkeyPatch) -> None:
    drafted = StaleCacheSampler.draw_drafts

    def mislabelled(self: StaleCacheSampler, state: State) -> Drafts:
        drafts = drafted(self, state)
        drafts.logp = self.log_probs(self.model.draft(drafts.hidden, drafts.positions))
        return drafts

    patch.setattr(StaleCacheSampler, "draw_drafts", mislabelled)


def what_is_taken_back_stays_in_the_memories(patch: pytest.MonkeyPatch) -> None:
    draft, forward = DualDiffusionSampler.draft, RuggedTrunk.forward

    def blind(self, state: Any, known: Tensor, memories: object) -> None:
        seen = iter([torch.where(state.waiting, state.guess, known)])

        def stale(trunk, tokens, pad=None, memories=None, at: Any = None) -> Tensor:
            for whole in seen:  # the first call alone
                tokens = whole.gather(1, at)
            return forward(trunk, tokens, pad, memories, at)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(RuggedTrunk, "forward", stale)
            draft(self, state, known, memories)

    patch.setattr(DualDiffusionSampler, "draft", blind)


def all_that_is_doubted_is_taken_back_but_the_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        dual_diffusion, "largest", lambda score, among, count: among & (among.cumsum(1) <= 1)
    )


def what_is_taken_back_comes_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RemaskedSpeculativeSampler, "arrange", SpeculativeSampler.arrange)


def remasking_is_not_made_up_for_by_the_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RemaskedState, "window", State.window)


def a_span_starts_one_too_late(patch: pytest.MonkeyPatch) -> None:
    keys = SpanOrder.draft_keys
    patch.setattr(
        SpanOrder,
        "draft_keys",
        lambda self, logp, masked, *rest: keys(self, logp.roll(1, 1), masked, *rest),
    )


def chosen(name: str) -> Callable[[SSMD, SSMD], None]:
    return lambda rugged, _: test_samplers_that_choose_from_drafts_have_the_law_of_their_definition(
        rugged, name
    )


def judged(name: str) -> Callable[[SSMD, SSMD], None]:
    return lambda rugged, _: test_drafts_judged_in_one_pass_have_the_law_of_their_definition(
        rugged, "rugged", name
    )


def taken(name: str) -> Callable[[SSMD, SSMD], None]:
    return lambda rugged, _: test_samplers_of_sets_have_the_law_of_their_definition(rugged, name)


def remasked(name: str) -> Callable[[SSMD, SSMD], None]:
    return lambda rugged, _: test_remasking_between_passes_has_the_law_of_its_definition(
        rugged, name
    )


def ordered(name: str, puzzle: Puzzle, size: int) -> Callable[[SSMD, SSMD], None]:
    return lambda rugged, _: test_verified_samples_of_an_order_from_drafts_have_their_law(
        rugged, name, puzzle, size, 1
    )


PAIRS = [
    (coins_and_tokens_share_their_noise, taken("remdm cap")),
    (coins_and_tokens_share_their_noise, taken("star-shaped, late")),
    (positions_are_drawn_with_the_noise_of_tokens, taken("confidence, noise")),
    (positions_are_drawn_with_the_noise_of_tokens, taken("lookahead")),
    (remasking_is_not_made_up_for, taken("remdm loop")),
    (entropies_are_bounded_without_the_largest, chosen("entropy bound .9")),
    (all_are_taken_when_only_the_last_fails, chosen("factor 1.8")),
    (divergence_is_reversed, chosen("klass")),
    (divergence_is_reversed, taken("punt .15")),
    (the_least_sure_future_wins, taken("lookahead")),
    (
        prefixes_lack_the_drafts,
        lambda _, ternary: test_any_order_verification_has_the_any_order_law(
            ternary, AnyOrderVerifiedSampler, PLAIN, ConstantWindow(3)
        ),
    ),
    (
        drafts_are_said_to_be_fresh,
        lambda _, ternary: test_any_order_verification_has_the_any_order_law(
            ternary, StaleCacheSampler, PLAIN, UnboundedWindow()
        ),
    ),
    (divergence_is_reversed, judged("moved")),
    (what_is_taken_back_stays_in_the_memories, judged("moved")),
    (all_that_is_doubted_is_taken_back_but_the_first, judged("unlikely")),
    (positions_are_drawn_with_the_noise_of_tokens, taken("star-shaped, guided")),
    (positions_are_drawn_with_the_noise_of_tokens, taken("policy")),
    (what_is_taken_back_comes_first, remasked("two at first")),
    (remasking_is_not_made_up_for_by_the_window, remasked("two at first")),
    (a_span_starts_one_too_late, ordered("spans", HINTED, 2)),
]


@pytest.mark.parametrize(("mutate", "test"), PAIRS)
def test_a_mutant_fails_where_the_original_passes(
    rugged: SSMD, ternary: SSMD, monkeypatch: pytest.MonkeyPatch, mutate: Callable, test: Callable
):
    """The original is what the tests above have passed."""
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        test(rugged, ternary)
