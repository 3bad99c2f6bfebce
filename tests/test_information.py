"""The optimal schedule: against all cuts, against the likelihood that it claims to save."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PLAIN, UNIFORM, orders
from scipy.optimize import isotonic_regression

from selfspec.information import CutWindow, falling_fit, optimal_cuts, pass_losses, profile_losses
from selfspec.likelihood import chain, draft_nats, draw_order, information_profile, scores
from selfspec.model import SSMD
from selfspec.orders import RespacedOrder
from selfspec.schedules import ConstantWindow

NUMBERS = st.lists(st.floats(-5, 5), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(NUMBERS, st.integers(0, 2**31))
def test_the_falling_fit_is_isotonic_regression(values: list[float], seed: int):
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(values))
    expected = isotonic_regression(values, weights=weights, increasing=False).x
    np.testing.assert_allclose(falling_fit(np.array(values), weights), expected, atol=1e-9)


@pytest.mark.parametrize("steps", range(1, 9))
def test_the_cuts_are_the_best_of_all(steps: int):
    rng = np.random.default_rng(steps)
    for n in (1, 4, 7):
        nats = rng.uniform(0, 1, (n, n)).cumsum(0)[::-1]
        losses = pass_losses(nats)
        inner = combinations(range(1, n), min(steps, n) - 1)
        every: list[tuple[int, ...]] = [(*cuts, n) for cuts in inner]
        total = {c: sum(losses[s, t] for s, t in pairwise((0, *c))) for c in every}
        assert total[optimal_cuts(losses, steps)] == pytest.approx(min(total.values()))


def test_a_loss_is_what_the_formula_says():
    f, g = np.array([3.0, 2.0, 1.5, 0.5]), np.random.default_rng(0).uniform(size=(4, 4))
    by_profile, by_table = profile_losses(f), pass_losses(g)
    for s in range(5):
        for t in range(5):
            if t <= s:
                assert by_profile[s, t] == by_table[s, t] == np.inf
            else:
                assert by_profile[s, t] == pytest.approx((t - s) * f[s] - f[s:t].sum())
                expected = sum(g[s, d] - g[d, d] for d in range(s, t))
                assert by_table[s, t] == pytest.approx(expected)


def test_losses_are_what_plain_sampling_gives_away(ternary: SSMD):
    """Mean over all texts and orders of log p(x | σ), one token a pass against cuts."""
    rows, cuts = PLAIN.completions, (1, 3, 4)
    tables, nats = [], np.zeros((4, 4))
    for sigma in orders(UNIFORM, PLAIN):
        table = scores(ternary, rows, torch.tensor(sigma).expand_as(rows))
        tables.append(table)
        nats -= np.triu(np.where(np.isfinite(x := table.draft.mean(0).numpy()), x, 0)) / 24
    one, several = (
        np.mean([chain(table, window, 0).mean().item() for table in tables])
        for window in (ConstantWindow(1), CutWindow(cuts))
    )
    profile = nats.sum(1) / np.arange(4, 0, -1)
    for losses in (pass_losses(nats), profile_losses(profile)):
        assert sum(losses[s, t] for s, t in pairwise((0, *cuts))) == pytest.approx(one - several)


def test_what_is_measured_is_the_mean_of_the_scores(ternary: SSMD):
    rows = PLAIN.completions
    sigma, _ = draw_order(UNIFORM, rows, 5)
    draft = scores(ternary, rows, sigma).draft
    nats = draft_nats(ternary, rows, seeds=5)
    profile = information_profile(ternary, rows, seeds=5)
    raw = [-draft[:, i, i:].mean().item() for i in range(4)]
    for i in range(4):
        np.testing.assert_allclose(nats[i, i:], -draft[:, i, i:].mean(0))
        assert (nats[i, :i] == 0).all()
    np.testing.assert_allclose(profile, falling_fit(np.array(raw), np.array([4, 3, 2, 1])))
    assert (np.diff(profile) <= 0).all()
    with pytest.raises(ValueError, match="`order` must be fixed in advance"):
        draft_nats(ternary, rows, RespacedOrder())


def test_observed_tokens_are_known_and_no_places(ternary: SSMD):
    rows = PLAIN.completions
    observed = torch.zeros_like(rows, dtype=torch.bool)
    observed[:, 0], observed[::2, 3], observed[1::2, 1] = True, True, True
    nats = draft_nats(ternary, rows, seeds=5, observed=observed)
    sigma, first = draw_order(UNIFORM, rows, 5, observed=observed)
    assert first.tolist() == [2] * len(rows)
    assert observed.gather(1, sigma[:, :2]).all()
    draft = scores(ternary, rows, sigma, first).draft
    np.testing.assert_allclose(nats, -np.triu(draft.mean(0)[2:, 2:].nan_to_num(neginf=0)))
    assert len(information_profile(ternary, rows, 5, observed)) == 2
    observed[0, 1] = True
    with pytest.raises(ValueError, match=r"as many tokens in each row, got \[2, 3\]"):
        draft_nats(ternary, rows, observed=observed)


def test_a_window_reaches_the_next_cut_of_any_size():
    assert CutWindow((2, 5, 6)).table(6).tolist() == [2, 1, 3, 2, 1, 1]
    assert CutWindow((2, 5, 6)).table(12).tolist() == [4, 3, 2, 1, 6, 5, 4, 3, 2, 1, 2, 1]
    for n in range(1, 20):
        table = CutWindow((1, 9, 16)).table(n)
        assert ((table >= 1) & (table <= n - np.arange(n))).all()


@pytest.mark.parametrize("cuts", [(), (0, 3), (2, 2, 3), (3, 2)])
def test_bad_cuts_are_named(cuts: tuple[int, ...]):
    with pytest.raises(ValueError, match="`cuts` must rise from at least 1"):
        CutWindow(cuts)


def test_bad_steps_are_named():
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        optimal_cuts(profile_losses(np.ones(3)), 0)


def test_a_token_outside_the_nucleus_is_no_perfect_knowledge(ternary: SSMD):
    tokens = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    with pytest.raises(ValueError, match="`tokens` must be possible for every draft"):
        draft_nats(ternary, tokens, top_p=0.2)
