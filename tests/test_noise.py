import numpy as np
import pytest
import torch
from scipy import stats
from torch.fx.experimental.proxy_tensor import make_fx

from selfspec.noise import Purpose, row_seeds, streams, uniform

GOLDEN, BITS = 0x9E3779B97F4A7C15, 2**64
COUNTERS = ["seed", "row", "purpose", "pass_index", "round_index", "place"]


def numbers(
    seed: int = 0,
    row: int = 0,
    purpose: int = 2,
    pass_index: int = 0,
    round_index: int = 0,
    place: int = 0,
    count: int = 20_000,
) -> np.ndarray:
    """Numbers that differ in the place, 1000 apart, from the counters given."""
    seeds = row_seeds(seed, row + 1)[row:]
    places = torch.arange(count)[None] * 1000 + place
    return uniform(seeds, Purpose(purpose), pass_index, round_index, places)[0].numpy()


def splitmix(x: int) -> int:
    """The finaliser of SplitMix64 in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % BITS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % BITS
    return x ^ (x >> 31)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1])
def test_numbers_are_the_documented_hash(seed: int):
    state = seed % BITS
    for counter in (5, Purpose.ACCEPT, 3, 2, 17):  # row, purpose, pass, round, place
        state = splitmix((state * GOLDEN + splitmix((counter + GOLDEN) % BITS)) % BITS)
    u = uniform(row_seeds(seed, 6)[5:], Purpose.ACCEPT, 3, 2, torch.tensor([[17]]))
    assert u.item() == ((state >> 12) + 0.5) / 2**52


def test_numbers_are_uniform_float64_of_52_bits():
    u = numbers(count=200_000)
    assert u.dtype == np.float64
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    grid = u * 2**52 - 0.5
    assert (grid == np.floor(grid)).all()
    low_bits = np.bincount(grid.astype(np.int64) % 64)
    assert stats.chisquare(low_bits).pvalue > 1e-3


@pytest.mark.parametrize("counter", COUNTERS)
def test_numbers_of_neighbouring_counters_are_independent(counter: str):
    u, v = (numbers(**{counter: value}) for value in (2, 3))
    cells = np.histogram2d(u, v, bins=8, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-3


def test_numbers_of_neighbouring_rows_are_uniform():
    seeds = row_seeds(0, 50_000)
    assert len(seeds.unique()) == len(seeds)
    u = uniform(seeds, Purpose.DRAFT, 0, 0, torch.zeros(len(seeds), 1, dtype=torch.int64))
    assert stats.kstest(u[:, 0].numpy(), "uniform").pvalue > 1e-3


def test_counters_do_not_stand_for_each_other():
    drawn = [numbers(pass_index=a, round_index=b, place=c, count=1)[0]
             for a in range(6) for b in range(6) for c in range(6)]  # fmt: skip
    assert len(set(drawn)) == 6**3


def test_a_number_depends_on_its_own_counters_only():
    seeds, passes = row_seeds(0, 5), torch.arange(5)
    places = torch.arange(12).reshape(1, 12).expand(5, -1)
    whole = uniform(seeds, Purpose.DRAFT, passes, 1, places)
    assert torch.equal(row_seeds(0, 5), row_seeds(0, 9)[:5])
    for row in (0, 3):
        part = uniform(seeds[row : row + 1], Purpose.DRAFT, row, 1, places[:1, 4:7])
        assert torch.equal(whole[row : row + 1, 4:7], part)


COMPUTED = ("add", "sub", "rsub", "mul")
"""What a compiler does to an index, and has an index again."""
VIEWS = ("unsqueeze", "expand", "slice")


def test_no_index_is_added_to_more_than_32_bits():
    # Compiled for a GPU, `arange + golden` is an index of 32 bits plus a constant: Triton refuses.
    def every(seeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = torch.arange(-1, 9).expand(len(seeds), -1)
        return (
            streams(seeds, Purpose.ACCEPT, seeds, rounds=4),
            uniform(seeds, Purpose.ORDER, seeds, 0, places),
        )

    indices, seen = set(), 0
    for node in make_fx(every)(row_seeds(0, 3)).graph.nodes:
        name = str(node.target).removeprefix("aten.").split(".")[0]
        derived = name in COMPUTED + VIEWS and indices.issuperset(node.all_input_nodes)
        if name == "arange" or (derived and node.all_input_nodes):
            indices.add(node)
            seen += name == "arange"
            if name in COMPUTED:
                assert all(abs(x) < 2**31 for x in node.args if isinstance(x, int)), node
    assert seen == 2
