from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfspec.ops import draw, inverse_order, log_probs, outside, reorder, take, take_along

EDGES = [0, 1, 2**51 - 1, 2**51, 2**52 - 1]
bits = st.sampled_from(EDGES) | st.integers(0, 2**52 - 1)


def uniform_number(j: int) -> torch.Tensor:
    """The j-th of the numbers that `noise.uniform` may return."""
    return torch.tensor((j + 0.5) * 2.0**-52, dtype=torch.float64)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), bits)
def test_a_draw_inverts_the_distribution_function_exactly(weights: list[int], j: int):
    weights.insert(len(weights) // 2, 1024 - sum(weights))  # a dyadic law: no rounding at all
    cdf = np.cumsum(weights)
    u = Fraction(2 * j + 1, 2**53)
    expected = next(v for v, mass in enumerate(cdf.tolist()) if u * 1024 < mass)
    assert draw(torch.tensor(weights) / 1024, uniform_number(j)) == expected


@given(st.lists(st.sampled_from([0.0, 1e-300, 1e-17, 0.1, 1 / 3, 1.0, 7.0]), min_size=1), bits)
def test_a_token_of_probability_zero_is_never_drawn(weights: list[float], j: int):
    if any(weights):
        probs = torch.tensor(weights, dtype=torch.float64)
        assert probs[draw(probs, uniform_number(j))] > 0


def test_draws_keep_the_leading_shape():
    probs = torch.eye(5)[torch.arange(10).reshape(2, 5) % 5]
    u = torch.full((2, 5), 0.9, dtype=torch.float64)
    assert draw(probs, u).tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_raises_probabilities_to_its_inverse(temperature: float):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    expected = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    torch.testing.assert_close(log_probs(p.log(), temperature).exp(), expected)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_extreme_temperatures_leave_the_likeliest_or_all(temperature: float):
    logits = torch.tensor([30.0, -torch.inf, 29.0, 30.0], dtype=torch.float64)
    share = 1 / 2 if temperature < 1 else 1 / 3
    expected = torch.tensor([share, 0, 0 if temperature < 1 else share, share])
    torch.testing.assert_close(log_probs(logits, temperature).exp(), expected.double())


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, [0.1, 0.2, 0.4, 0.3]), (0.95, [0.1, 0.2, 0.4, 0.3]), (0.89, [0, 0.2, 0.4, 0.3]),
     (0.71, [0, 0.2, 0.4, 0.3]), (0.69, [0, 0, 0.4, 0.3]), (0.01, [0, 0, 1, 0])],
)  # fmt: skip
def test_the_nucleus_is_the_smallest_set_of_likeliest_tokens_of_that_mass(
    top_p: float, kept: list[float]
):
    logits = torch.tensor([0.1, 0.2, 0.4, 0.3], dtype=torch.float64).log() + 5
    expected = torch.tensor(kept, dtype=torch.float64)
    torch.testing.assert_close(log_probs(logits, top_p=top_p).exp(), expected / expected.sum())


def test_a_mass_that_is_reached_exactly_is_enough():
    logp = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64).log()
    limits = torch.tensor([[0.5], [0.75], [torch.inf]])
    kept = [[False, True, False], [True, True, False], [True, True, True]]
    assert (~outside(logp.expand(3, -1), limits)).tolist() == kept
    assert torch.equal(outside(logp, 0.5), outside(logp, limits[0]))


def test_the_nucleus_is_that_of_the_tempered_law():
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    assert log_probs(logits, 1.0, 0.6).isfinite().tolist() == [True, True, False]
    assert log_probs(logits, 0.1, 0.6).isfinite().tolist() == [True, False, False]
    assert log_probs(logits, 9.0, 0.7).isfinite().tolist() == [True, True, True]


def test_ties_at_the_edge_of_the_nucleus_go_to_the_smaller_token():
    kept = log_probs(torch.zeros(3, 64), top_p=0.5).isfinite()
    assert (kept == (torch.arange(64) < 32)).all()


def test_log_probabilities_are_float64_whatever_the_logits_are():
    logits = torch.randn(7, 1000, dtype=torch.bfloat16)
    logp = log_probs(logits)
    assert logp.dtype == torch.float64
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0, 1.0), "`temperature` must be above 0 and finite, got 0.0"),
     ((float("nan"), 1.0), "`temperature` must be above 0 and finite, got nan"),
     ((float("inf"), 1.0), "`temperature` must be above 0 and finite, got inf"),
     ((1.0, 0.0), r"`top_p` must be in \(0, 1\], got 0.0"),
     ((1.0, 1.1), r"`top_p` must be in \(0, 1\], got 1.1")],
)  # fmt: skip
def test_bad_temperature_or_nucleus_is_named(arguments: tuple[float, float], message: str):
    with pytest.raises(ValueError, match=message):
        log_probs(torch.zeros(3), *arguments)


def test_gathers_follow_the_order():
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    x = torch.arange(6).reshape(2, 3) * 10
    expected = torch.tensor([[20, 0, 10], [40, 50, 30]])
    assert torch.equal(take_along(x, order), expected)
    assert torch.equal(take_along(torch.stack([x, x + 1], -1), order)[..., 1], expected + 1)
    assert torch.equal(take_along(take_along(x, order), inverse_order(order)), x)
    assert torch.equal(take(x, torch.tensor([1, 2])), torch.tensor([10, 50]))


def test_a_gradient_goes_back_along_the_order():
    torch.manual_seed(0)
    order = torch.rand(3, 5).argsort(1)
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reorder(x, order), x)
    grad = torch.randn(3, 5, 2, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(f(x, order), x, grad)[0] for f in (reorder, take_along))
    assert torch.equal(ours, theirs)
    assert torch.equal(reorder(x[..., 0], order), take_along(x[..., 0], order))
