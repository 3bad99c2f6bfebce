from collections.abc import Callable
from functools import partial
from inspect import signature
from itertools import product
from typing import Any

import numpy as np
import processes
import pytest
import torch
from conftest import make_toy
from reference import (
    BINARY,
    HINTED,
    INFILL,
    PADDED,
    PLAIN,
    RESPACED,
    SPACED,
    UNIFORM,
    Conditionals,
    ListedOrder,
    Puzzle,
    Sigma,
    ancestral_law,
    orders,
    paper_recursion,
    recursion,
    sampler_law,
)
from torch import Tensor

from selfspec.likelihood import (
    Scores,
    ancestral_chain,
    ancestral_log_likelihood,
    chain,
    draw_order,
    elbo,
    estimate_log_likelihood,
    exact,
    expected_passes,
    log_likelihood,
    one_pass_score,
    scores,
)
from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.orders import Order, RespacedOrder
from selfspec.sampling import EntropyBoundWindow, PlainSampler, SpeculativeSampler
from selfspec.schedules import (
    ConstantWindow,
    CosineSchedule,
    CosineWindow,
    LinearSchedule,
    LinearWindow,
    Schedule,
    UnboundedWindow,
    Window,
)
from selfspec.selection import CellOrder, ScoreOrder, SpanOrder

Toys = Callable[[int], SSMD]
WINDOWS = [ConstantWindow(3), CosineWindow(0.4), UnboundedWindow()]
SIGMAS = {PLAIN: (2, 0, 3, 1), INFILL: (4, 0, 3, 5, 1, 2), BINARY: (3, 1, 5, 0, 4, 2)}
SETTINGS = [(window, rounds) for window in WINDOWS for rounds in (0, 1, 2, 5)]


class Halting:
    """A third of the time nothing is revealed."""

    def masked(self, t: np.ndarray) -> np.ndarray:
        return np.interp(t, [0, 1 / 3, 2 / 3, 1], [1, 0.4, 0.4, 0])


def scored(model: SSMD, puzzle: Puzzle, sigma: Sigma) -> Scores:
    """Tables of all completions along one σ."""
    rows = puzzle.completions
    first = torch.full((len(rows),), len(puzzle.known))
    order, pad = (x.expand_as(rows) for x in (torch.tensor(sigma), puzzle.pad))
    return scores(model, rows, order, first, pad)


@pytest.fixture(scope="module")
def tables(toys: Toys) -> dict[Puzzle, Scores]:
    return {puzzle: scored(toys(puzzle.vocab), puzzle, s) for puzzle, s in SIGMAS.items()}


def total(logp: Tensor) -> float:
    return logp.exp().sum().item()


@pytest.mark.parametrize("rule", [UNIFORM, SPACED])
@pytest.mark.parametrize("puzzle", SIGMAS, ids=lambda p: p.text)
def test_probabilities_sum_to_one_for_every_order(toys: Toys, puzzle: Puzzle, rule: Order):
    given = puzzle.scored()
    rows = given.pop("tokens")
    for seed in range(4):
        seeds = row_seeds(seed, 1).expand(len(rows))
        order, first = draw_order(rule, rows, seeds, **given)
        table = scores(toys(puzzle.vocab), rows, order, first, given["pad"])
        for window, rounds in product(WINDOWS, range(6)):
            assert total(chain(table, window, rounds)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("window", "rounds"), SETTINGS)
@pytest.mark.parametrize("puzzle", SIGMAS, ids=lambda p: p.text)
def test_the_likelihood_is_the_law_of_the_process(
    toys: Toys, tables: dict[Puzzle, Scores], puzzle: Puzzle, window: Window, rounds: int
):
    if puzzle is BINARY and isinstance(window, UnboundedWindow):
        window = ConstantWindow(4)  # a pass over all six is too much to enumerate
    law = sampler_law(toys(puzzle.vocab), puzzle, ListedOrder(SIGMAS[puzzle]), window, rounds)
    if puzzle is INFILL:  # which averages over the orders of the observed tokens
        every = orders(ListedOrder(SIGMAS[puzzle]), puzzle)
        likelihoods = [chain(scored(toys(3), puzzle, s), window, rounds).exp() for s in every]
        found = torch.stack(likelihoods).mean(0)
    else:
        found = chain(tables[puzzle], window, rounds).exp()
    np.testing.assert_allclose(found.numpy(), law, rtol=1e-9)


@pytest.mark.parametrize(("window", "rounds"), [s for s in SETTINGS if s[1]])
@pytest.mark.parametrize("puzzle", [PLAIN, BINARY], ids=lambda p: p.text)
def test_the_recursion_is_that_of_the_text_in_probability_space(
    tables: dict[Puzzle, Scores], puzzle: Puzzle, window: Window, rounds: int
):
    table, sizes = tables[puzzle], window.table(len(puzzle.masked)).tolist()
    p, q = table.draft.exp().numpy(), table.target.exp().numpy()
    expected = [recursion(p[row], q[row], sizes, rounds) for row in range(len(p))]
    np.testing.assert_allclose(chain(table, window, rounds).exp(), expected, rtol=1e-10)


@pytest.mark.parametrize("puzzle", [PLAIN, BINARY], ids=lambda p: p.text)
def test_one_round_without_a_window_is_the_recursion_of_the_paper(
    tables: dict[Puzzle, Scores], puzzle: Puzzle
):
    p, q = (x.exp().numpy() for x in tables[puzzle][:2])
    expected = [paper_recursion(p[row], q[row]) for row in range(len(p))]
    found = chain(tables[puzzle], UnboundedWindow(), 1).exp()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("puzzle", SIGMAS, ids=lambda p: p.text)
def test_tables_hold_the_conditionals(tables: dict[Puzzle, Scores], toys: Toys, puzzle: Puzzle):
    sigma, first, end = SIGMAS[puzzle], len(puzzle.known), len(puzzle.text) - puzzle.pad.sum()
    law = Conditionals(toys(puzzle.vocab), puzzle, sigma)
    for row, x in enumerate(puzzle.completions[:, list(sigma)][:, first:end].tolist()):
        for i, d in product(range(len(x)), range(len(x))):
            for table, expected in zip(tables[puzzle][:2], (law.draft, law.target)):  # noqa: B905
                found = table[row, first + i, first + d].exp().item()
                value = expected[i][law.row(tuple(x)), d, x[d]] if d >= i else 0.0
                assert found == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("puzzle", SIGMAS, ids=lambda p: p.text)
def test_enough_rounds_without_a_window_are_one_pass(toys: Toys, puzzle: Puzzle):
    model, given, n = toys(puzzle.vocab), puzzle.scored(), len(puzzle.masked)
    seeds = row_seeds(3, 1).expand(len(puzzle.completions))
    one_pass = one_pass_score(model, **given, seeds=seeds)
    assert total(one_pass) == pytest.approx(1, abs=1e-9)
    for rounds, same in ((n, True), (n + 3, True), (1, False)):
        found = log_likelihood(model, **given, window=UnboundedWindow(), rounds=rounds, seeds=seeds)
        assert torch.allclose(found, one_pass, rtol=0, atol=1e-10) == same


def test_one_token_a_pass_is_the_chain_rule_of_the_trunk(ternary: SSMD):
    table = scored(ternary, PLAIN, SIGMAS[PLAIN])
    expected = table.draft.diagonal(dim1=1, dim2=2).sum(1)
    for rounds in (0, 1, 3):
        torch.testing.assert_close(chain(table, ConstantWindow(1), rounds), expected)


def test_a_head_that_agrees_is_plain_sampling(ternary: SSMD):
    plain = SSMD(ternary.trunk)
    table = scored(plain, PLAIN, SIGMAS[PLAIN])
    assert torch.equal(table.draft, table.target)
    for rounds in (1, 2):
        torch.testing.assert_close(
            chain(table, ConstantWindow(3), rounds), chain(table, ConstantWindow(3), 0)
        )


@pytest.mark.parametrize(
    "options", [{"temperature": 0.6}, {"top_p": 0.8}, {"temperature": 1.7, "top_p": 0.6}], ids=str
)
@pytest.mark.parametrize("rounds", [0, 2, "ancestral", "one pass"])
def test_temperature_and_nucleus_keep_the_sum(ternary: SSMD, options: dict[str, Any], rounds: Any):
    seeds = row_seeds(0, 1).expand(81)
    laws = {"ancestral": ancestral_log_likelihood, "one pass": one_pass_score}
    law = laws.get(rounds, partial(log_likelihood, window=UnboundedWindow(), rounds=rounds))
    plain, changed = (
        law(ternary, PLAIN.completions, seeds=seeds, **setting) for setting in ({}, options)
    )
    assert total(changed) == pytest.approx(1, abs=1e-9)
    assert changed.isneginf().any() == ("top_p" in options)
    assert (changed - plain).abs().max() > 0.1


@pytest.mark.parametrize("rule", [UNIFORM, SPACED])
def test_what_pads_hold_and_whether_there_are_any_does_not_count(ternary: SSMD, rule: Order):
    rows, setting = PLAIN.completions, {"order": rule, "seeds": 5}
    padded = torch.cat([rows, torch.tensor([[-100, 77]]).expand(81, -1)], 1)
    pad = (torch.arange(6) >= 4).expand_as(padded)
    passes: dict[str, Any] = {**setting, "window": ConstantWindow(3), "rounds": 2}
    calls: Any = {log_likelihood: passes, estimate_log_likelihood: passes, one_pass_score: setting}
    for score, given in calls.items():
        expected = score(ternary, rows, **given)
        torch.testing.assert_close(score(ternary, padded, pad=pad, **given), expected)


def test_a_row_does_not_depend_on_its_batch(ternary: SSMD):
    rows, seeds = PLAIN.completions, row_seeds(0, 81)
    whole = log_likelihood(ternary, rows, window=ConstantWindow(3), seeds=seeds, batch_size=7)
    some = log_likelihood(ternary, rows[30:40], window=ConstantWindow(3), seeds=seeds[30:40])
    torch.testing.assert_close(whole[30:40], some)


def test_given_tokens_cost_nothing(ternary: SSMD):
    rows, everything = PLAIN.completions, torch.ones(81, 4, dtype=torch.bool)
    given: Any
    for given in ({"observed": everything}, {"pad": everything}):
        zero = torch.zeros(81, dtype=torch.float64)
        assert torch.equal(log_likelihood(ternary, rows, **given), zero)
        assert torch.equal(one_pass_score(ternary, rows, **given), zero)
        estimate = estimate_log_likelihood(ternary, rows, RESPACED, UnboundedWindow(), 2, **given)
        assert torch.equal(estimate, zero)


def test_one_token_has_the_law_of_the_draft(ternary: SSMD):
    single = Puzzle("?")
    law = Conditionals(ternary, single, (0,)).draft[0][0, 0]
    found = log_likelihood(ternary, single.completions, rounds=3).exp()
    np.testing.assert_allclose(found, law, rtol=1e-12)


ESTIMATES = 400


@pytest.mark.parametrize(
    ("puzzle", "rule", "window", "rounds"),
    [(PLAIN, ListedOrder((2, 0, 3, 1)), ConstantWindow(3), 2),
     (PLAIN, ListedOrder((2, 0, 3, 1)), CosineWindow(0.4), 1),
     (PLAIN, ListedOrder((2, 0, 3, 1)), ConstantWindow(2), 0),
     (PLAIN, UNIFORM, ConstantWindow(3), 2),
     (PLAIN, RESPACED, ConstantWindow(3), 0),
     (INFILL, RESPACED, UnboundedWindow(), 1),
     (BINARY, RESPACED, ConstantWindow(3), 1)],
)  # fmt: skip
def test_the_estimate_is_unbiased(
    toys: Toys, puzzle: Puzzle, rule: Order, window: Window, rounds: int
):
    model = toys(puzzle.vocab)
    law = sampler_law(model, puzzle, rule, window, rounds)
    check_estimates(model, puzzle, rule, window, rounds, law)


@pytest.mark.parametrize(
    ("rule", "plan", "puzzle", "size", "rounds"),
    [(CellOrder(), processes.in_cells, HINTED, 2, 1),
     (CellOrder(), processes.in_cells, PADDED, 2, 0),
     (ScoreOrder(), processes.scored("Confidence"), HINTED, 3, 2)],
)  # fmt: skip
def test_the_estimate_reads_the_drafts_that_the_sampler_reads(
    rugged: SSMD, rule: Order, plan: processes.PlanOf, puzzle: Puzzle, size: int, rounds: int
):
    window = ConstantWindow(size)
    most = window.table(len(puzzle.masked)).tolist()
    law = processes.verified_law(rugged, puzzle, plan, most, rounds)
    check_estimates(rugged, puzzle, rule, window, rounds, law)


@pytest.mark.parametrize("order", [UNIFORM, RESPACED, CellOrder()], ids=lambda o: type(o).__name__)
def test_the_estimate_makes_one_trunk_pass_a_pass(
    ternary: SSMD, monkeypatch: pytest.MonkeyPatch, order: Order
):
    encode, calls = SSMD.encode, []
    monkeypatch.setattr(SSMD, "encode", lambda *given: calls.append(1) or encode(*given))
    estimate_log_likelihood(ternary, PLAIN.completions, order, ConstantWindow(2), 0)
    assert len(calls) == 2


def check_estimates(
    model: SSMD, puzzle: Puzzle, rule: Order, window: Window, rounds: int, law: np.ndarray
) -> None:
    """The estimates of all completions have these means, and their sum the mean 1."""
    given = {name: x.repeat(ESTIMATES, 1) for name, x in puzzle.scored().items()}
    estimates = estimate_log_likelihood(model, **given, order=rule, window=window, rounds=rounds)
    draws = estimates.exp().reshape(ESTIMATES, -1)

    def standard_errors(values: Tensor, expected: float | np.ndarray) -> np.ndarray:
        error = values.std(0).numpy() / ESTIMATES**0.5
        return np.abs(values.mean(0).numpy() - expected) / np.maximum(error, 1e-9)

    assert standard_errors(draws, law).max() < 4.5
    assert standard_errors(draws.sum(1), 1.0) < 4


class Noted(RespacedOrder):
    """Notes the numbers that it is given before every pass."""

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        vars(self).setdefault("given", []).append(torch.cat([u, u_row], 1))
        return super().keys(masked, window, u, u_row)


def test_the_estimate_draws_the_orders_of_the_sampler_anew_in_every_pass(ternary: SSMD):
    ours, theirs, window = Noted(), Noted(), ConstantWindow(1)
    estimate_log_likelihood(ternary, PLAIN.completions[:5], ours, window, rounds=1, seeds=3)
    SpeculativeSampler(ternary, theirs, window).sample(torch.full((5, 4), 3), seeds=3)
    given = torch.stack(vars(theirs)["given"])  # once a pass
    assert torch.equal(given, torch.stack(vars(ours)["given"]))
    assert len(given.unique()) == 4 * 5 * 5


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_p": 0.9}])
def test_for_a_fixed_order_the_estimate_varies_with_its_path_only(
    ternary: SSMD, options: dict[str, Any]
):
    settings = (ListedOrder((2, 0, 3, 1)), UnboundedWindow(), 4)
    expected = log_likelihood(ternary, PLAIN.completions, *settings, **options)
    estimate = estimate_log_likelihood(ternary, PLAIN.completions, *settings, **options)
    torch.testing.assert_close(estimate, expected)  # one pass, so one path


def test_the_elbo_is_a_mean_over_orders_with_its_standard_error(ternary: SSMD):
    x = PLAIN.completions[::9]
    bound = elbo(ternary, x, orders=5, seed=3, window=ConstantWindow(3), rounds=2)
    seeds = row_seeds(3, 5 * len(x)).view(len(x), 5).T
    draws = torch.stack(
        [log_likelihood(ternary, x, window=ConstantWindow(3), rounds=2, seeds=s) for s in seeds]
    )
    torch.testing.assert_close(bound.mean, draws.mean(0))
    torch.testing.assert_close(bound.standard_error, draws.std(0) / 5**0.5)


def test_the_elbo_estimates_the_mean_over_all_orders(ternary: SSMD):
    tables = [scored(ternary, PLAIN, sigma) for sigma in orders(UNIFORM, PLAIN)]
    every = torch.stack([chain(table, ConstantWindow(3), 2) for table in tables])
    bound = elbo(ternary, PLAIN.completions, orders=64, window=ConstantWindow(3), rounds=2)
    assert ((bound.mean - every.mean(0)).abs() / bound.standard_error).max() < 4.5
    assert (every.mean(0) < every.exp().mean(0).log()).all()


def test_bounds_of_neighbouring_seeds_share_no_order(ternary: SSMD, monkeypatch):
    drawn = []

    def noted(rule: Order, tokens: Tensor, seeds: Tensor, *masks: Tensor | None):
        drawn.extend(seeds.tolist())
        return draw_order(rule, tokens, seeds, *masks)

    monkeypatch.setattr(exact, "draw_order", noted)
    for seed in (0, 1):
        elbo(ternary, PLAIN.completions[:5], orders=3, seed=seed)
    assert len(set(drawn)) == 2 * 3 * 5


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), Halting()])
@pytest.mark.parametrize(("puzzle", "steps"), [(PLAIN, 1), (PLAIN, 3), (PLAIN, 6), (INFILL, 3)])
def test_the_ancestral_likelihood_is_the_law_of_the_reverse_process(
    ternary: SSMD, puzzle: Puzzle, schedule: Schedule, steps: int
):
    every = orders(UNIFORM, puzzle)
    found = sum(ancestral_chain(scored(ternary, puzzle, s), schedule, steps).exp() for s in every)
    law = ancestral_law(ternary, puzzle, schedule, steps)
    np.testing.assert_allclose(found / len(every), law, rtol=1e-9)


@pytest.mark.parametrize("puzzle", SIGMAS, ids=lambda p: p.text)
def test_ancestral_probabilities_sum_to_one_for_every_order(toys: Toys, puzzle: Puzzle):
    model, given = toys(puzzle.vocab), puzzle.scored()
    for seed, steps in product(range(3), (1, 4, 30)):
        seeds = row_seeds(seed, 1).expand(len(given["tokens"]))
        logp = ancestral_log_likelihood(model, **given, order=SPACED, steps=steps, seeds=seeds)
        assert total(logp) == pytest.approx(1, abs=1e-9)


def test_one_ancestral_step_draws_everything_at_once(ternary: SSMD):
    table = scored(ternary, PLAIN, SIGMAS[PLAIN])
    expected = chain(table, UnboundedWindow(), rounds=0)
    torch.testing.assert_close(ancestral_chain(table, CosineSchedule(), 1), expected)


def test_many_ancestral_steps_are_one_token_a_pass(ternary: SSMD):
    table = scored(ternary, PLAIN, SIGMAS[PLAIN])
    found = ancestral_chain(table, LinearSchedule(), 20_000)
    torch.testing.assert_close(found, chain(table, ConstantWindow(1), 0), rtol=0, atol=1e-3)


COMPLETE = torch.tensor([[0, 1, 2, 0]])


@pytest.mark.parametrize(
    ("score", "message"),
    [(lambda m: log_likelihood(m, COMPLETE, RESPACED),
      "`order` must be fixed in advance, got RespacedOrder.*`estimate_log_likelihood`"),
     (lambda m: one_pass_score(m, COMPLETE, RESPACED), "`order` must be fixed in advance"),
     (lambda m: log_likelihood(m, COMPLETE, rounds=-1), "`rounds` must be at least 0.* got -1"),
     (lambda m: estimate_log_likelihood(m, COMPLETE, UNIFORM, UnboundedWindow(), -1),
      "`rounds` must be at least 0.* got -1"),
     (lambda m: log_likelihood(SSMD(m.trunk), COMPLETE, rounds=1), "0 without a head, got 1"),
     (lambda m: estimate_log_likelihood(
         SSMD(m.trunk), COMPLETE, UNIFORM, UnboundedWindow(), 1), "0 without a head, got 1"),
     (lambda m: log_likelihood(m, COMPLETE, window=0), "`window` must be at least 1, got 0"),
     (lambda m: estimate_log_likelihood(m, COMPLETE, UNIFORM, 0, 1), "`window` must be at least 1"),
     (lambda m: log_likelihood(m, COMPLETE, rounds=1.5), "`rounds` must be a whole number, got 1"),  # type: ignore[arg-type]
     (lambda m: estimate_log_likelihood(m, COMPLETE, "cells", 2, 1),  # type: ignore[arg-type]
      "`order` must be a rule, such as .* got 'cells'"),
     (lambda m: estimate_log_likelihood(m, COMPLETE, CellOrder, 2, 1), "`order` must be a rule"),  # type: ignore[arg-type]
     (lambda m: elbo(m, COMPLETE, orders=1), "`orders` must be at least 2, got 1"),
     (lambda m: log_likelihood(m, COMPLETE, top_p=0.0), "`top_p` must be in"),
     (lambda m: log_likelihood(m, COMPLETE + 1), "`tokens` must be in 0..2, got 3"),
     (lambda m: estimate_log_likelihood(m, COMPLETE - 1, UNIFORM, UnboundedWindow(), 1),
      "`tokens` must be in 0..2, got -1"),
     (lambda m: one_pass_score(m, COMPLETE + 1), "`tokens` must be in 0..2, got 3"),
     (lambda m: log_likelihood(m, torch.zeros(1, 7, dtype=torch.int64)),
      "`tokens` may be at most 6 long, got 7"),
     (lambda m: log_likelihood(m, COMPLETE[0]), r"`tokens` must be \(B, L\) int64, got \(4,\)"),
     (lambda m: one_pass_score(m, COMPLETE.int()), "`tokens` must be .* int64, .* torch.int32"),
     (lambda m: log_likelihood(m, COMPLETE[:0]), r"`tokens` must not be empty, got shape \(0, 4"),
     (lambda m: log_likelihood(m, COMPLETE, pad=COMPLETE), "`pad` must be bool of the shape of"),
     (lambda m: estimate_log_likelihood(
         m, COMPLETE, UNIFORM, UnboundedWindow(), 1, observed=COMPLETE[:, :2] > 0),
      r"`observed` must be bool of the shape of `tokens`, \(1, 4\), got \(1, 2\)"),
     (lambda m: log_likelihood(m, COMPLETE, seeds=row_seeds(0, 3)), "`seeds` must have one int64"),
     (lambda m: log_likelihood(m, COMPLETE, seeds=1 << 64), "`seeds` must fit into 64 bits"),
     (lambda m: log_likelihood(m, COMPLETE, batch_size=0), "`batch_size` must be at least 1"),
     (lambda m: ancestral_log_likelihood(m, COMPLETE, RESPACED), "`order` must be fixed in"),
     (lambda m: ancestral_log_likelihood(m, COMPLETE, steps=0), "`steps` must be at least 1")],
)  # fmt: skip
def test_bad_arguments_are_named(ternary: SSMD, score, message: str):
    with pytest.raises(ValueError, match=message):
        score(ternary)


def test_a_model_without_head_can_be_scored_plain():
    model = make_toy(head_blocks=0)
    seeds = row_seeds(0, 1).expand(81)
    given = {"window": UnboundedWindow(), "rounds": 0, "seeds": seeds}
    logp = log_likelihood(model, PLAIN.completions, **given)
    assert total(logp) == pytest.approx(1, abs=1e-9)


def test_sampler_and_likelihood_have_the_same_law_by_default(ternary: SSMD):
    usual = SpeculativeSampler(ternary)
    settings = (usual.order, usual.window, usual.rounds)
    expected = log_likelihood(ternary, PLAIN.completions, *settings)
    assert torch.equal(log_likelihood(ternary, PLAIN.completions), expected)
    assert signature(log_likelihood).parameters["rounds"].default == usual.rounds
    for score in (log_likelihood, estimate_log_likelihood):
        constant = score(ternary, PLAIN.completions, UNIFORM, ConstantWindow(2), 1)
        assert torch.equal(score(ternary, PLAIN.completions, None, 2, 1), constant)


def test_rules_that_read_drafts_have_no_likelihood_here(ternary: SSMD):
    tokens, window = torch.zeros(1, 4, dtype=torch.int64), EntropyBoundWindow(1.0)
    with pytest.raises(ValueError, match=r"`window` must not .* got EntropyBoundWindow"):
        log_likelihood(ternary, tokens, window=window)
    with pytest.raises(ValueError, match="`window` must not read the drafts"):
        estimate_log_likelihood(ternary, tokens, UNIFORM, window, 1)
    with pytest.raises(ValueError, match="`order` must be fixed in advance, got SpanOrder"):
        log_likelihood(ternary, tokens, SpanOrder())


def test_the_expected_passes_are_those_of_the_samples(ternary: SSMD):
    order, draws = ListedOrder((3, 1, 5, 0, 4, 2)), 3000
    masked = torch.full((draws, 6), ternary.mask_id)
    for window, rounds in ((LinearWindow(0.5), 1), (UnboundedWindow(), 2), (ConstantWindow(4), 0)):
        sampler = (SpeculativeSampler(ternary, order, window, rounds) if rounds else
                   PlainSampler(ternary, order, window))  # fmt: skip
        out = sampler.sample(masked, 1)
        sigma, _ = draw_order(order, out.tokens)
        given = expected_passes(scores(ternary, out.tokens, sigma), window, rounds)
        # Given x the mean of the difference is 0, and so it is over samples x.
        error = out.trunk_passes - given
        assert abs(error.mean()) < 4 * max(1e-9, float(error.std())) / draws**0.5
        assert error.std() < out.trunk_passes.double().std() or not rounds
