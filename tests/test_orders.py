from collections import Counter, defaultdict
from itertools import pairwise

import pytest
import torch
from reference import ListedOrder, Puzzle, orders, respaced, van_der_corput
from scipy import stats
from torch import Tensor

from selfspec.noise import row_seeds
from selfspec.orders import (
    Order,
    RespacedOrder,
    UniformOrder,
    VanDerCorputOrder,
    initial_order,
    rearranged,
)

RULES = [UniformOrder(), VanDerCorputOrder(), RespacedOrder()]
MIXED = Puzzle("?12?.??0.?")


def drawn(rule: Order, puzzle: Puzzle, rows: int, window: int = 2, seed: int = 0) -> Tensor:
    """(rows, L) σ of the first pass."""
    masked, pad = (puzzle.tokens == puzzle.vocab).repeat(rows, 1), puzzle.pad.repeat(rows, 1)
    seeds, none = row_seeds(seed, rows), torch.zeros(rows, dtype=torch.int64)
    order = initial_order(rule, masked, pad, seeds)
    if rule.fixed:
        return order
    end = (~pad).sum(1)
    return rearranged(rule, order, end - masked.sum(1), end, none + window, seeds, none)


def fair(cells: Counter, expected: int) -> bool:
    """Whether all of the expected number of cells occur, and equally often (χ²)."""
    values = list(cells.values())
    return len(values) == expected and (expected == 1 or stats.chisquare(values).pvalue > 1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_orders_are_permutations_with_observed_first_and_pads_last(rule: Order):
    sigma = drawn(rule, MIXED, 500)
    assert torch.equal(sigma.sort(1).values, torch.arange(10).expand(500, -1))
    assert torch.equal(sigma[:, :3].sort(1).values, torch.tensor([1, 2, 7]).expand(500, -1))
    assert torch.equal(sigma[:, 8:], torch.tensor([4, 8]).expand(500, -1))


@pytest.mark.parametrize("rule", RULES)
def test_observed_tokens_stand_in_uniform_order(rule: Order):
    assert fair(Counter(map(tuple, drawn(rule, MIXED, 6000)[:, :3].tolist())), 6)


@pytest.mark.parametrize(
    ("rule", "puzzle"),
    [(UniformOrder(), Puzzle("????")), (UniformOrder(), Puzzle("?0?.??")),
     (VanDerCorputOrder(), Puzzle("????????")), (VanDerCorputOrder(), Puzzle("??1.???")),
     (ListedOrder((2, 0, 3, 1)), Puzzle("????"))],
)  # fmt: skip
def test_every_order_of_a_fixed_rule_is_equally_likely(rule: Order, puzzle: Puzzle):
    found = Counter(map(tuple, drawn(rule, puzzle, 12_000).tolist()))
    assert set(found) == set(orders(rule, puzzle))
    assert fair(found, len(orders(rule, puzzle)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [5, 8])
def test_the_first_position_revealed_is_uniform(rule: Order, n: int):
    first = drawn(rule, Puzzle("?" * n), 10_000, window=3)[:, 0]
    assert fair(Counter(first.tolist()), n)


@pytest.mark.parametrize("n", [2, 8, 32])
def test_van_der_corput_puts_consecutive_places_into_different_cells(n: int):
    sigma = drawn(VanDerCorputOrder(), Puzzle("?" * n), 20)
    rotated = (sigma - sigma[:, :1]) % n  # the first to be revealed has rotated rank 0
    for j in range(1, n.bit_length()):
        cells = (rotated // (n >> j)).unfold(1, 2**j, 1)
        assert (cells.sort(-1).values == torch.arange(2**j)).all()


@pytest.mark.parametrize("n", [3, 5, 6, 11])
def test_van_der_corput_of_other_sizes_leaves_out_the_missing_ranks(n: int):
    size = 1 << (n - 1).bit_length()
    power_of_two = van_der_corput(tuple(range(size)), 0)
    for row in drawn(VanDerCorputOrder(), Puzzle("?" * n), 20).tolist():
        shift = -row[0] % n
        assert [(rank + shift) % n for rank in row] == [r for r in power_of_two if r < n]


@pytest.mark.parametrize(
    ("n", "window"), [(8, 2), (8, 3), (11, 4), (12, 12), (7, 1), (9, 5), (214, 43)]
)
def test_respaced_windows_keep_their_distance(n: int, window: int):
    sigma = drawn(RespacedOrder(), Puzzle("?" * n), 200, window)
    for row in sigma[:, :window].sort(1).values.tolist():
        gaps = [b - a for a, b in pairwise([*row, row[0] + n])]
        assert set(gaps) <= {n // window, -(-n // window)}


def test_respaced_orders_have_their_law():
    expected = defaultdict(float)
    for sigma, chance in respaced((0, 1, 2, 3), 2):
        expected[sigma] += chance
    found = Counter(map(tuple, drawn(RespacedOrder(), Puzzle("????"), 12_000).tolist()))
    assert set(found) == set(expected)
    counts, law = zip(*((found[sigma], 12_000 * p) for sigma, p in expected.items()))  # noqa: B905
    assert stats.chisquare(counts, law).pvalue > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_rearranging_keeps_what_is_revealed_and_pads(rule: Order):
    before = drawn(rule, MIXED, 200)
    revealed, end = torch.arange(200) % 4 + 4, torch.full((200,), 8)
    window, seeds = torch.ones_like(end), row_seeds(1, 200)
    after = rearranged(rule, before, revealed, end, window, seeds, torch.full((200,), 3))
    assert torch.equal(after.sort(1).values, torch.arange(10).expand(200, -1))
    kept = (torch.arange(10) < revealed[:, None]) | (torch.arange(10) >= 8)
    assert torch.equal(after[kept], before[kept])
    assert not torch.equal(after, before)


@pytest.mark.parametrize("rule", RULES)
def test_orders_of_different_passes_are_independent(rule: Order):
    before = drawn(rule, Puzzle("????"), 12_000)
    zero, seeds = torch.zeros(12_000, dtype=torch.int64), row_seeds(0, 12_000)
    passes = [rearranged(rule, before, zero, zero + 4, zero + 2, seeds, zero + k) for k in (1, 2)]
    firsts = [sigma[:, 0].tolist() for sigma in (before, *passes)]
    assert fair(Counter(zip(*firsts, strict=True)), 4**3)


def test_before_the_first_pass_rearranging_changes_nothing():
    rule, zero = RespacedOrder(), torch.zeros(50, dtype=torch.int64)
    sigma = drawn(rule, MIXED, 50)
    first, end = torch.full_like(zero, 3), torch.full_like(zero, 8)
    again = rearranged(rule, sigma, first, end, zero + 2, row_seeds(0, 50), zero)
    assert torch.equal(again, sigma)


@pytest.mark.parametrize("rule", RULES)
def test_appended_pads_do_not_move_an_order(rule: Order):
    short = drawn(rule, Puzzle("?1???"), 50)
    assert torch.equal(drawn(rule, Puzzle("?1???...."), 50)[:, :5], short)
