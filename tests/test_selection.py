"""Windows that read drafts, on drafts made for the edges of their definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from selfspec.sampling import EntropyBoundWindow, FactorWindow, ThresholdWindow
from selfspec.selection import DraftWindow


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
