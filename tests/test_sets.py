"""Samplers of sets, step by step: what a law over whole texts hardly shows."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import RuggedTrunk, make_rugged, make_scorer
from processes import drafts_of
from reference import UNIFORM, Puzzle
from torch import Tensor

from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.orders import UniformOrder
from selfspec.sampling import (
    CapRemasking,
    ConfidenceRemasking,
    DilatedWindow,
    DivergenceDoubt,
    DualDiffusionSampler,
    GuidedStarShapedSampler,
    KLASSSampler,
    LoopRemasking,
    PathPlanningSampler,
    PUNTSampler,
    RemaskedSpeculativeSampler,
    ReMDMSampler,
    RescaleRemasking,
    Sampler,
    SelfVerifiedSampler,
    SpeculativeSampler,
    StarShapedSampler,
)
from selfspec.sampling.remdm import ReMDMState
from selfspec.schedules import ConstantWindow, CosineSchedule
from selfspec.selection import ranks

ROWS = 4000
MASKED = Puzzle("??????")


def blank(rows: int = ROWS) -> Tensor:
    return MASKED.tokens.expand(rows, -1)


def masked_after(sampler: Sampler, steps: int) -> np.ndarray:
    """The mean number of masked positions after each step."""
    trace = sampler.sample(blank(), 0, trace=True).trace
    assert trace is not None
    left = np.full((ROWS, steps), 6.0)
    for row, passes in enumerate(trace):
        for k, p in enumerate(passes):
            left[row, k:] += len(p.remasked) - len(p.revealed)
    return left.mean(0)


@pytest.mark.parametrize(
    ("make", "alphas"),
    [(lambda m: ReMDMSampler(m, CapRemasking(0.3), 6), np.arange(1, 7) / 6),
     (lambda m: ReMDMSampler(m, RescaleRemasking(0.6), 6), np.arange(1, 7) / 6),
     (lambda m: ReMDMSampler(m, CapRemasking(0.2), 4, CosineSchedule()),
      1 - np.cos(np.pi / 2 * np.arange(1, 5) / 4)),
     (lambda m: ReMDMSampler(m, LoopRemasking(0.3, on=2 / 3, off=1 / 6, alpha=0.8), 6),
      np.array([0.4, 0.8, 0.8, 0.8, 0.8, 1])),
     (lambda m: StarShapedSampler(m, 6, 0.5), np.arange(1, 7) / 6),
     (lambda m: StarShapedSampler(m, 6, 1), np.arange(1, 7) / 6),
     (lambda m: StarShapedSampler(m, 6, 0), np.arange(1, 7) / 6)],
)  # fmt: skip
def test_as_much_is_masked_after_each_step_as_the_schedule_says(
    rugged: SSMD, make: Callable[[SSMD], Sampler], alphas: np.ndarray
):
    """Whatever is taken back: remasking keeps the marginals."""
    left = masked_after(make(rugged), len(alphas))
    error = 6 * np.sqrt(alphas * (1 - alphas) / (6 * ROWS))
    assert (np.abs(left - 6 * (1 - alphas)) <= 4.5 * error + 1e-9).all()


def test_path_planning_masks_the_counts_of_its_schedule(rugged: SSMD):
    assert masked_after(PathPlanningSampler(rugged, 4), 4).tolist() == [4, 3, 1, 0]


@pytest.mark.parametrize("rule", [ConfidenceRemasking(0.8), RescaleRemasking(0.8)])
def test_the_unsure_are_taken_back_more_often(rugged: SSMD, rule: Any):
    """At one step, from tokens with known p when revealed."""
    sampler, step = ReMDMSampler(rugged, rule, 5), 3
    tokens = torch.tensor([0, 1, 2, 0, 3, 3]).repeat(20_000, 1)
    state = sampler.start(tokens.clone(), row_seeds(0, len(tokens)), torch.zeros_like(tokens) > 0)
    assert isinstance(state, ReMDMState)
    psi = torch.tensor([0.1, 0.5, 0.9])
    state.given[:, 1:] = False
    state.confidence[:, 1:4] = psi.double()
    state.passes = torch.full_like(state.passes, step)
    outcome = sampler.move(state)
    most = (1 - 0.8) / 0.6
    share = (-psi).exp() / (-psi).exp().sum() if rule.by_confidence else torch.ones(3)
    expected = 0.8 * most * share.double()
    assert outcome.remasked is not None
    found = outcome.remasked.double().mean(0)
    assert not found[[0, 4, 5]].any()
    assert ((found[1:4] - expected).abs() < 4.5 * (expected * (1 - expected) / 20_000).sqrt()).all()
    # The memory is of what is revealed now, and of nothing else.
    fresh, kept = outcome.revealed[:, 4], ~outcome.revealed[:, 4]
    p = torch.from_numpy(drafts_of(rugged, MASKED)(tuple(tokens[0].tolist()))[4])
    assert torch.allclose(state.confidence[fresh, 4], p[outcome.tokens[fresh, 4]])
    assert not state.confidence[kept, 4].any()
    assert (state.confidence[:, 1] == psi[0].double()).all()


def test_klass_takes_what_was_stable_in_each_of_its_last_passes():
    """U of every pass, from the texts that the passes before it saw."""
    model, tau, epsilon, history = make_rugged(3, 4), 0.4, 0.15, 2
    drafts = drafts_of(model, MASKED)
    trace = KLASSSampler(model, tau, epsilon, history).sample(blank(200), 0, trace=True).trace
    assert trace is not None
    unsteady = 0
    for passes in trace:
        row, past = tuple(MASKED.tokens.tolist()), []
        for p in passes:
            past.append(drafts(row))
            calm = [
                [processes.kl(b[i], a[i]) < epsilon for a, b in pairwise(past)] for i in range(6)
            ]
            left = [i for i in range(6) if row[i] == 3]
            sure = [i for i in left if max(past[-1][i]) > tau]
            chosen = [i for i in sure if len(past) > history and all(calm[i][-history:])]
            unsteady += sum(i not in chosen and sum(calm[i]) >= history for i in sure)
            expected = chosen or processes.best_first(past[-1], left)[:1]
            assert sorted(p.positions) == sorted(expected)
            row = processes.filled(row, *zip(*p.revealed, strict=True))
    assert unsteady > 20  # calm often enough, but not in a row


@pytest.mark.parametrize("drafts", [2, 3, 6])
def test_self_verification_of_many_models(drafts: int):
    """Its result is the greedy one; every row pays for all that it drafted."""
    for seed in range(40):
        model = make_rugged(3, seed)
        out = SelfVerifiedSampler(model, drafts).sample(blank(1), 0, trace=True)
        assert tuple(out.tokens[0].tolist()) == processes.greedy(MASKED, drafts_of(model, MASKED))
        assert out.trace is not None
        left = 6
        for p in out.trace[0]:
            assert p.trunk_passes == min(drafts, left)
            left -= len(p.revealed)


def test_guidance_masks_in_proportion_to_the_odds(rugged: SSMD, monkeypatch: pytest.MonkeyPatch):
    """Two of three at the first step, one after another without replacement by exp(g)."""
    odds, rows = [0.0, 1.0, 2.0], 20_000
    sampler = GuidedStarShapedSampler(rugged, make_scorer(vocab_size=3), 3, 1)
    monkeypatch.setattr(sampler, "predictor", lambda whole, pad: torch.tensor([odds]))
    trace = sampler.sample(torch.full((rows, 3), 3), 0, trace=True).trace
    assert trace is not None
    found = Counter(position for passes in trace for position, _ in passes[0].revealed)
    weights = dict(enumerate(np.exp(odds)))
    expected = np.zeros(3)  # how often each stands
    for chance, hidden in processes.without_replacement(weights, 2):
        expected[[i for i in range(3) if i not in hidden]] += chance
    error = np.sqrt(expected * (1 - expected) / rows)
    assert (np.abs([found[i] / rows for i in range(3)] - expected) < 4.5 * error).all()


def test_the_predictor_is_paid_for(rugged: SSMD):
    predictor = make_scorer(vocab_size=3)
    out = GuidedStarShapedSampler(rugged, predictor, 4, 0.8).sample(blank(50))
    cost = predictor.share(rugged.trunk.width, rugged.num_trunk_blocks)  # type: ignore[arg-type]
    assert cost == 0.5
    paid = out.trunk_passes - 3 * cost  # in three of the four steps
    assert torch.equal(paid, paid.round())


def test_after_its_passes_nothing_is_taken_back(rugged: SSMD):
    sampler = RemaskedSpeculativeSampler(rugged, UNIFORM, ConstantWindow(1), 1, 0.5, 3)
    trace = sampler.sample(blank(300), 0, trace=True).trace
    assert trace is not None
    taken = [sum(bool(p.remasked) for p in passes) for passes in zip(*trace, strict=False)]
    assert taken[1] > 20
    assert taken[2] > 20
    assert not any(p.remasked for passes in trace for p in passes[3:])


def test_nothing_moves_where_nothing_depends(rugged: SSMD, monkeypatch: pytest.MonkeyPatch):
    """PUNT with ε = 0 drops what moves, and nothing does: all in one step."""
    forward = RuggedTrunk.forward
    monkeypatch.setattr(
        RuggedTrunk,
        "forward",
        lambda self, tokens, *rest: forward(self, torch.zeros_like(tokens), *rest),
    )
    trace = PUNTSampler(rugged, 0).sample(blank(20), 0, trace=True).trace
    assert trace is not None
    assert [len(passes) for passes in trace] == [1] * 20


def test_a_draft_that_moved_infinitely_still_stands_if_no_other_moved_less(rugged: SSMD):
    """Outside the nucleus p is 0, and KL infinite."""
    sampler = DualDiffusionSampler(rugged, DivergenceDoubt(0), 3, top_p=0.3)
    out = sampler.sample(blank(200), 0, trace=True)
    assert (out.tokens < 3).all()
    assert out.trace is not None
    assert all(p.revealed for passes in out.trace for p in passes[1:])


@pytest.mark.parametrize(
    ("n", "block", "base", "sizes"),
    [(4, 64, 3, [4]), (10, 8, 2, [2, 2, 4, 2]), (9, 9, 3, [3, 6]), (5, 64, 2, [3, 2])],
)
def test_the_passes_of_a_dilated_schedule(n: int, block: int, base: int, sizes: list[int]):
    table, counts, i = DilatedWindow(block, base).table(n), [], 0
    while i < n:
        counts.append(int(table[i]))
        i += counts[-1]
    assert counts == sizes


@pytest.mark.parametrize("eta", [0, 1, 2])
def test_what_falls_out_of_the_nucleus_leaves_no_mask_behind_a_prompt(rugged: SSMD, eta: float):
    """Its score is -inf, which is not to be that of what may not be chosen."""
    tokens = blank(200).clone()
    tokens[:, :2] = 0
    out = PathPlanningSampler(rugged, 3, eta, top_p=0.4).sample(tokens, 0)
    assert (out.tokens < 3).all()
    score = torch.tensor([[0.0, -torch.inf, -1.0, torch.nan]], dtype=torch.float64)
    among = torch.tensor([[False, True, True, True]])
    assert ranks(score, among).tolist() == [[3, 1, 0, 2]]


def test_what_is_masked_again_does_not_stand(rugged: SSMD):
    out = ReMDMSampler(rugged, CapRemasking(0.5), 6).sample(blank(50), 0)
    assert (out.accepted == 6).all()
    assert (out.drafted > 6).any()
    dual = DualDiffusionSampler(rugged, DivergenceDoubt(0), 3).sample(blank(50), 0)
    assert (dual.accepted == 6).all()
    assert (dual.drafted > 6).any()


class Beyond(UniformOrder):
    """A rule that breaks the bounds of its keys."""

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        return torch.arange(masked.shape[1], dtype=torch.float64).expand_as(u)


def test_a_rule_whose_keys_are_out_of_bounds_is_noticed(rugged: SSMD):
    tokens, pad = blank(3), torch.zeros(3, 6, dtype=torch.bool)
    pad[:, 0] = True
    sampler = SpeculativeSampler(rugged, Beyond())
    with pytest.raises(ValueError, match=r"`order` keys in \[0, 1\), got a position that stays"):
        sampler.sample(tokens, 0, pad)
