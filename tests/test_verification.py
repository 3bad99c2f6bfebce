import numpy as np
import pytest
import torch
from reference import p_value
from torch import Tensor

from selfspec.noise import Purpose, row_seeds, uniform
from selfspec.ops import draw
from selfspec.verification import Verdict, accept_draft, residual

TARGET = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.0, 0.3]], dtype=torch.float64)
DRAFTS = {
    "equal": TARGET.tolist(),
    "sometimes": [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]],
    "narrower": [[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]],
    "disjoint": [[0.2, 0.8, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]],
}
DISJOINT = torch.tensor([[0.0, 0.0, 0.25, 0.75], [0.7, 0.0, 0.0, 0.3]], dtype=torch.float64)
ROWS = 50_000


def noise(purpose: Purpose, width: int = 2) -> Tensor:
    return uniform(row_seeds(0, ROWS), purpose, 0, 0, torch.arange(width).expand(ROWS, -1))


def verified(draft: Tensor, target: Tensor, open_: Tensor | None = None) -> tuple[Tensor, Verdict]:
    """Drafts for two places in every row, and the verdict on them."""
    p, q = (x.expand(ROWS, -1, -1) for x in (draft, target))
    tokens = draw(p, noise(Purpose.DRAFT))
    open_ = torch.ones_like(tokens, dtype=torch.bool) if open_ is None else open_
    u_accept, u_residual = noise(Purpose.ACCEPT), noise(Purpose.RESIDUAL, 1)[:, 0]
    return tokens, accept_draft(p.log(), q.log(), tokens, open_, u_accept, u_residual)


def frequencies(tokens: Tensor) -> np.ndarray:
    return np.bincount(tokens.numpy(), minlength=4)


@pytest.mark.parametrize("name", DRAFTS)
def test_what_stands_has_the_law_of_the_target_whatever_the_draft_is(name: str):
    draft = torch.tensor(DRAFTS[name], dtype=torch.float64)
    target = DISJOINT if name == "disjoint" else TARGET
    tokens, (rejected, first, redrawn) = verified(draft, target)
    assert torch.equal(rejected, first < 2)
    stands = tokens.clone()
    stands[rejected, first[rejected]] = redrawn[rejected]
    assert p_value(frequencies(stands[:, 0]), target[0].numpy()) > 1e-3
    second = first >= 1  # the place behind a rejection is not decided
    if name != "disjoint":
        assert p_value(frequencies(stands[second, 1]), target[1].numpy()) > 1e-3
    overlap = torch.minimum(draft, target)[0].sum().item()
    rate = (first >= 1).double().mean().item()
    assert rate == pytest.approx(overlap, abs=4 * (overlap * (1 - overlap) / ROWS) ** 0.5 + 1e-12)


def test_closed_places_are_never_rejected():
    disjoint = torch.tensor(DRAFTS["disjoint"], dtype=torch.float64)
    open_ = torch.tensor([[True, True], [False, True], [True, False], [False, False]])
    open_ = open_.repeat(ROWS // 4, 1)
    _, verdict = verified(disjoint, DISJOINT, open_)
    assert verdict.first.reshape(-1, 4).unique(dim=0).tolist() == [[0, 1, 0, 2]]
    assert torch.equal(verdict.rejected, open_.any(1))


def test_rows_do_not_depend_on_each_other():
    draft, target = torch.rand(2, 50, 3, 4, dtype=torch.float64).log_softmax(-1)
    tokens, open_ = torch.randint(4, (50, 3)), torch.rand(50, 3) < 0.8
    u, v = torch.rand(50, 3).double(), torch.rand(50).double()
    whole = accept_draft(draft, target, tokens, open_, u, v)
    part = accept_draft(*(x[20:30] for x in (draft, target, tokens, open_, u, v)))
    assert all(torch.equal(a[20:30], b) for a, b in zip(whole, part))  # noqa: B905


def test_the_residual_is_the_excess_of_the_target():
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(residual(p.log(), q.log()), expected)


@pytest.mark.parametrize("rounding", [0.0, 1e-16])
def test_a_residual_without_mass_is_the_target(rounding: float):
    q = TARGET.log()
    assert torch.equal(residual(q + rounding, q), q.exp())
