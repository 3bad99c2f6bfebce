"""Training on the windows of an order, against loops, enumeration and the samplers' own tables."""

from collections import Counter, defaultdict
from itertools import product
from math import log

import pytest
import torch
from conftest import make_toy
from reference import Sigma, van_der_corput
from scipy import stats
from torch import Tensor

from selfspec.model import SSMD
from selfspec.orders import Order, RespacedOrder, UniformOrder, VanDerCorputOrder
from selfspec.recipes import books27
from selfspec.schedules import ConstantWindow, CosineWindow, LinearWindow, Window
from selfspec.selection import CellOrder, ScoreOrder
from selfspec.train import Chance, Diffusion, OrderedDiffusion
from selfspec.train.ordered import most_passes

RULES = [UniformOrder(), VanDerCorputOrder(), RespacedOrder()]
WINDOWS = (LinearWindow(0.3), CosineWindow(0.2))


def drawn(
    objective: Diffusion,
    tokens: Tensor,
    seed: int = 0,
    pad: Tensor | None = None,
    **ranks: int,
) -> dict[str, Tensor]:
    return objective.draw(tokens, Chance(torch.Generator().manual_seed(seed), **ranks), pad)


def batch(rows: int, length: int = 6) -> Tensor:
    return torch.randint(3, (rows, length), generator=torch.Generator().manual_seed(1))


def test_orders_have_names_that_runs_can_be_known_by():
    for rule in (VanDerCorputOrder, CellOrder):
        known = repr(OrderedDiffusion(True, order=rule(), windows=WINDOWS))
        assert known == repr(OrderedDiffusion(True, order=rule(), windows=WINDOWS))
        assert f"order={rule.__name__}(" in known
        assert " at 0x" not in known


@pytest.mark.parametrize("rule", RULES)
def test_all_but_the_order_and_the_windows_is_drawn_as_without(rule: Order):
    tokens = batch(50)
    found, plain = drawn(OrderedDiffusion(order=rule), tokens), drawn(Diffusion(), tokens)
    assert found.keys() == plain.keys() | {"window"}
    assert torch.equal(found["revealed"], plain["revealed"])


@pytest.mark.parametrize("rule", RULES)
def test_windows_are_the_tables_of_the_sampler(rule: Order):
    """With observed tokens first and pads last, for each row's own number of tokens."""
    tokens, size = batch(400, 8), torch.arange(400) % 7 + 2
    pad = torch.arange(8) >= size.unsqueeze(1)
    found = drawn(OrderedDiffusion(order=rule, windows=WINDOWS, observed=(1,)), tokens, pad=pad)
    known = ((tokens == 1) & ~pad).sum(1)
    for row, (n, first) in enumerate(zip(size.tolist(), known.tolist(), strict=True)):
        sigma, i = found["order"][row].tolist(), int(found["revealed"][row])
        assert sorted(sigma) == list(range(8))
        assert all(tokens[row, p] == 1 for p in sigma[:first])
        assert sorted(sigma[n:]) == list(range(n, 8))
        options = [w.table(n - first)[i - first] if n > first else 1 for w in WINDOWS]
        assert int(found["window"][row]) in options
    assert len(set(found["window"].tolist())) > 2


def test_a_fixed_order_does_not_depend_on_how_much_is_revealed():
    found = drawn(OrderedDiffusion(order=VanDerCorputOrder()), batch(4000, 8))
    orders = [van_der_corput(tuple(range(8)), shift) for shift in range(8)]
    assert set(map(tuple, found["order"].tolist())) == set(orders)
    cells = torch.zeros(8, 8)
    for sigma, i in zip(found["order"].tolist(), found["revealed"].tolist(), strict=True):
        cells[orders.index(tuple(sigma)), i] += 1
    assert stats.chisquare(cells.flatten()).pvalue > 1e-3


Cell = tuple[frozenset[int], frozenset[int]]


def passes(masked: Sigma, counts: list[int]) -> dict[Cell, float]:
    """Of the re-spaced order and windows of two places, by enumeration: what is known after passes
    that reveal so many, and the window of the pass that follows."""
    law: dict[Cell, float] = defaultdict(float)

    def go(left: Sigma, rest: list[int], weight: float) -> None:
        for first, second in product(range(len(left)), range(2)):
            other = left[(first + len(left) // 2) % len(left)]  # every ⌊n/2⌋-th, from any
            pair = (left[first], other) if second else (other, left[first])
            share = weight / 2 / len(left)
            if rest:
                go(tuple(p for p in left if p not in pair[: rest[0]]), rest[1:], share)
            else:
                law[frozenset(masked) - frozenset(left), frozenset(pair)] += share

    go(masked, counts, 1.0)
    return law


@pytest.mark.parametrize(("revealed", "counts"), [(0, []), (2, [2]), (3, [2, 1]), (4, [2, 2])])
def test_a_rechosen_order_is_that_of_the_passes_before(revealed: int, counts: list[int]):
    objective = OrderedDiffusion(order=RespacedOrder(), windows=(ConstantWindow(2),))
    found = drawn(objective, batch(20_000, 8))
    sigmas = found["order"][found["revealed"] == revealed].tolist()
    cells = Counter((frozenset(s[:revealed]), frozenset(s[revealed : revealed + 2]))
                    for s in sigmas)  # fmt: skip
    law = passes(tuple(range(8)), counts)
    assert set(cells) <= set(law)
    assert sum(law.values()) == pytest.approx(1)
    expected = [share * len(sigmas) for share in law.values()]
    assert stats.chisquare([cells[cell] for cell in law], expected).pvalue > 1e-3


@pytest.mark.parametrize(("window", "passes"), [(ConstantWindow(2), 4), (LinearWindow(0.5), 2)])
def test_enough_passes_are_gone_through(window: Window, passes: int):
    assert most_passes((window,), 8) == passes
    assert most_passes((ConstantWindow(7), window), 8) == passes


@torch.no_grad()
def slow_loss(model: SSMD, weight: float, drawn: dict[str, Tensor]) -> float:
    """Of the head alone, one place at a time, in float64."""
    total = 0.0
    names = ("tokens", "order", "revealed", "window")
    for x, sigma, i, width in zip(*(drawn[name] for name in names), strict=True):
        begin, length = int(i), len(x)
        seen = x.clone()
        seen[sigma[begin:]] = model.mask_id
        hidden = model.encode(seen[None])
        q = model.target(hidden, x[None], sigma[None], i[None])[0].softmax(-1)
        nll = [-log(q[d, x[sigma[d]]].item()) for d in range(begin + 1, length)]
        near = nll[: int(width) - 1]
        total += sum(nll) / (length - begin) + weight * sum(near) / max(1, len(near))
    return total / len(drawn["tokens"])


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_is_its_formula_and_leaves_a_frozen_trunk_alone(rule: Order):
    model, objective = make_toy(), OrderedDiffusion(True, 2.0, order=rule, windows=WINDOWS)
    found = drawn(objective, batch(12))
    total, parts = objective.loss(model, **found)
    assert total.item() == pytest.approx(slow_loss(model, 2.0, found), rel=1e-6)
    assert set(parts) == {"draft", "target", "window"}
    total.backward()
    assert model.head is not None
    assert all(p.grad is None for p in model.trunk.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.head.parameters())


@torch.no_grad()
def surest(model: SSMD, x: Tensor, known: list[int], count: int, end: int) -> set[int]:
    """The masked positions that are likeliest to be what the trunk thinks they are."""
    seen = torch.full_like(x, model.mask_id)
    seen[known] = x[known]
    pad = torch.arange(len(x))[None] >= end
    p = model.draft(model.encode(seen[None], pad))[0].softmax(-1).amax(-1)
    left = [place for place in range(end) if place not in known]
    return set(sorted(left, key=lambda place: -float(p[place]))[:count])


def test_a_window_that_reads_drafts_is_chosen_by_the_trunk(
    rugged: SSMD, monkeypatch: pytest.MonkeyPatch
):
    objective = OrderedDiffusion(True, 2.0, order=ScoreOrder(), windows=WINDOWS, observed=(1,))
    tokens, end = batch(60, 5), torch.arange(60) % 4 + 2
    pad = torch.arange(5) >= end.unsqueeze(1)
    found = drawn(objective, tokens, pad=pad)
    before, given = found["order"].clone(), {}
    monkeypatch.setattr(Diffusion, "loss", lambda self, model, **drawn: given.update(drawn))
    objective.loss(rugged, **found)
    assert given.keys() == found.keys() - {"seeds"}
    for row, (i, n) in enumerate(zip(found["revealed"].tolist(), end.tolist(), strict=True)):
        sigma, width = given["order"][row].tolist(), int(found["window"][row])
        assert sigma[:i] + sigma[n:] == before[row, :i].tolist() + before[row, n:].tolist()
        expected = surest(rugged, tokens[row], sigma[:i], width, n)
        assert set(sigma[i : min(i + width, n)]) == expected


def test_the_loss_of_a_window_that_reads_drafts_is_its_formula(monkeypatch: pytest.MonkeyPatch):
    model, objective = make_toy(), OrderedDiffusion(True, 2.0, order=CellOrder(), windows=WINDOWS)
    found, given, loss = drawn(objective, batch(12)), {}, Diffusion.loss
    monkeypatch.setattr(
        Diffusion, "loss", lambda *args, **drawn: given.update(drawn) or loss(*args, **drawn)
    )
    total, parts = objective.loss(model, **found)
    assert total.item() == pytest.approx(slow_loss(model, 2.0, given), rel=1e-6)
    assert not torch.equal(given["order"], found["order"])
    assert set(parts) == {"draft", "target", "window"}


def test_ranks_draw_what_one_process_draws():
    objective, tokens = OrderedDiffusion(order=RespacedOrder()), batch(12)
    whole = drawn(objective, tokens)
    for rank in range(3):
        part = drawn(objective, tokens[rank::3], rank=rank, world=3)
        for name, value in part.items():
            assert torch.equal(value, whole[name][rank::3])


def test_every_place_weighs_the_same_wherever_passes_begin():
    """Uniform i, mean over the window: what the module's head says of windows of one size."""
    length, size = 60, 7
    revealed = torch.arange(length)
    places = torch.arange(length)
    reach = torch.from_numpy(ConstantWindow(size).table(length))
    inside = (places > revealed[:, None]) & (places < (revealed + reach)[:, None])
    weights = (inside.double() / inside.sum(1, keepdim=True).clamp(min=1)).sum(0)
    torch.testing.assert_close(
        weights[size : length - size], torch.ones(length - 2 * size).double()
    )


def test_the_recipe_trains_the_head_alone_on_a_spaced_order():
    recipe = books27.spaced(steps=3)
    assert recipe.needs_start
    assert isinstance(recipe.objective, OrderedDiffusion)
    assert recipe.objective.freeze_trunk
    assert isinstance(recipe.objective.order, VanDerCorputOrder)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`windows` must hold at least one window"):
        OrderedDiffusion(windows=())
