"""Rules that read drafts, on drafts made for the edges of their definitions."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfspec.orders import Order, RespacedOrder
from selfspec.sampling import EntropyBoundWindow, FactorWindow, ThresholdWindow
from selfspec.selection import (
    CellOrder,
    Confidence,
    DraftWindow,
    Entropy,
    ScoreOrder,
    SpanOrder,
    ranks,
)


def drafts(*confidences: float) -> Tensor:
    """(1, W, 4): places whose likeliest token has these probabilities, the rest shared evenly."""
    c = torch.tensor(confidences, dtype=torch.float64).unsqueeze(1)
    return torch.cat([c, ((1 - c) / 3).expand(-1, 3)], 1).log().unsqueeze(0)


@pytest.mark.parametrize(
    ("window", "confidences", "size"),
    [(ThresholdWindow(0.5), (0.5, 0.5, 0.4), 2),  # τ itself is sure enough
     (ThresholdWindow(0.5), (0.9, 0.4, 0.9), 1),  # along σ, not by rank
     (ThresholdWindow(0.5), (0.4, 0.9, 0.9), 1),
     (FactorWindow(1), (0.75, 0.75, 0.75), 2),  # (3 + 1)(1 - 0.75) is not below 1
     (FactorWindow(1), (0.9, 0.4, 0.9), 1),  # the least sure of the first n counts
     (FactorWindow(1.7), (0.75, 0.4, 0.75), 1),
     (FactorWindow(1), (0.4, 0.4, 0.4), 1),
     (EntropyBoundWindow(0), (0.4, 1.0, 1.0, 0.4), 3),  # what is certain costs nothing
     (EntropyBoundWindow(0), (1.0, 1.0, 1.0), 3)],
)  # fmt: skip
def test_windows_keep_to_the_edges_of_their_definitions(
    window: DraftWindow, confidences: tuple[float, ...], size: int
):
    logp = drafts(*confidences)
    inside = torch.ones(logp.shape[:2], dtype=torch.bool)
    assert window.sizes(logp, inside).tolist() == [size]
    inside[0, 1:] = False
    assert window.sizes(logp, inside).tolist() == [1]


def test_an_entropy_bound_is_met_by_the_sum_without_its_largest():
    logp = drafts(0.4, 0.7, 0.55)
    H = sorted(-(p * p.log()).sum().item() for p in logp[0].exp())
    inside = torch.ones(1, 3, dtype=torch.bool)
    for gamma, size in ((H[0] - 1e-9, 1), (H[0] + 1e-9, 2), (sum(H[:2]) - 1e-9, 2), (np.inf, 3)):
        assert EntropyBoundWindow(gamma).sizes(logp, inside).tolist() == [size]


def first_of_cells(rule: Order, masked: Tensor, window: Tensor, u: Tensor) -> Tensor:
    """(B, L) bool: the positions that come first, one a cell."""
    keys = rule.keys(masked, window, u, u[:, :1])
    place = keys.masked_fill(~masked, torch.inf).argsort(dim=1).argsort(dim=1)
    return place < window.unsqueeze(1)


def test_scores_that_differ_by_rounding_alone_are_ties():
    score = torch.tensor([[0.3, 0.3 + 1e-15, 0.1 + 0.2, 0.4]], dtype=torch.float64)
    assert ranks(score, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[1, 2, 3, 0]]
    least = torch.tensor([[torch.inf, torch.finfo(torch.float64).min, 0.0]], dtype=torch.float64)
    assert ranks(least, torch.tensor([[False, True, True]])).tolist() == [[2, 1, 0]]


def test_cells_of_positions_that_are_as_sure_but_for_rounding_are_evenly_spaced():
    chance = torch.Generator().manual_seed(0)
    masked = torch.rand(200, 40, generator=chance) < 0.6
    window = (torch.rand(200, generator=chance) * masked.sum(1)).long() + 1
    u = torch.rand(200, 40, generator=chance, dtype=torch.float64)
    rounding = 0.01 * torch.randn(200, 40, 27, generator=chance)  # as half precision errs
    cells = CellOrder().reading((torch.linspace(0, 3, 27) + rounding).log_softmax(-1))
    expected = first_of_cells(RespacedOrder(), masked, window, u)
    assert torch.equal(first_of_cells(cells, masked, window, u), expected)


def test_the_surest_of_a_cell_is_taken_where_one_is_surer():
    masked, window = torch.ones(1, 6, dtype=torch.bool), torch.tensor([2])
    u = torch.zeros(1, 6, dtype=torch.float64)  # no rotation: cells 0-2 and 3-5
    logp = drafts(0.4, 0.45, 0.4, 0.9, 0.4, 0.4)
    for score in (Entropy(), Confidence()):
        first = first_of_cells(CellOrder(score).reading(logp), masked, window, u)
        assert first[0].nonzero().flatten().tolist() == [1, 3]


@pytest.mark.parametrize("rule", [CellOrder, ScoreOrder, SpanOrder])
@pytest.mark.parametrize("score", [Entropy, "entropy", None])
def test_a_score_that_is_none_is_named(rule: Any, score: Any):
    with pytest.raises(ValueError, match="`score` must be one, such as"):
        rule(score)
