"""MAUVE: the area against its definition and a closed form, clusters against blobs, features."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import hubs
import numpy as np
import pytest
import torch

from selfspec.metrics import TextFeatures, divergence_area, mauve
from selfspec.metrics.mauve import _labels, _turned

RNG = np.random.default_rng(0)
LAWS = [RNG.dirichlet(np.full(6, 0.4), size=2) for _ in range(5)]


def slow_area(p: np.ndarray, q: np.ndarray, points: int = 25) -> float:
    """By the definition, with loops."""
    curve = [(1.0, 0.0)]
    for k in range(points):
        w = 1e-6 + (1 - 2e-6) * k / (points - 1)
        kl_q = kl_p = 0.0
        for a, b in zip(p, q, strict=True):
            r = w * a + (1 - w) * b
            kl_q += b * math.log(b / r) if b else 0
            kl_p += a * math.log(a / r) if a else 0
        curve.append((math.exp(-5 * kl_q), math.exp(-5 * kl_p)))
    curve.append((0.0, 1.0))
    return sum((x0 - x1) * (y0 + y1) / 2
               for (x0, y0), (x1, y1) in pairwise(curve))  # fmt: skip


@pytest.mark.parametrize("laws", LAWS)
def test_the_area_is_that_of_the_definition(laws: np.ndarray):
    p, q = laws
    assert divergence_area(p, q) == pytest.approx(slow_area(p, q), rel=1e-12)
    assert divergence_area(p, q) == pytest.approx(divergence_area(q, p), rel=1e-9)
    fine = slow_area(p, q, 4000)
    assert divergence_area(p, q) == pytest.approx(fine, rel=0.02, abs=1e-3)
    holes = np.where(p > np.median(p), p, 0)
    assert divergence_area(holes / holes.sum(), q) == pytest.approx(
        slow_area(holes / holes.sum(), q), rel=1e-12
    )


def test_laws_that_agree_and_laws_that_never_meet():
    p = LAWS[0][0]
    assert divergence_area(p, p) == pytest.approx(1)
    apart = divergence_area(np.array([0.3, 0.7, 0, 0]), np.array([0, 0, 0.5, 0.5]))
    beta = 5 * math.gamma(6) * math.gamma(5) / math.gamma(11)  # ∫ w^c d(1 - (1-w)^c), c = 5
    assert apart == pytest.approx(beta, rel=0.05)


def blobs(counts: list[int], seed: int) -> np.ndarray:
    """Texts of four kinds, far from each other."""
    generator = np.random.default_rng(seed)
    centres = np.eye(4, 12) * 10
    kinds = np.repeat(np.arange(4), counts)
    return centres[kinds] + 0.1 * generator.normal(size=(len(kinds), 12))


def test_blobs_become_clusters_and_their_shares_the_laws():
    data, samples = blobs([30, 20, 40, 10], 1), blobs([10, 60, 20, 30], 2)
    p, q = np.array([0.3, 0.2, 0.4, 0.1]), np.array([10, 60, 20, 30]) / 120
    assert mauve(data, samples, clusters=4) == pytest.approx(slow_area(p, q), rel=1e-9)
    smooth = [(np.array(x) + 0.5) / (sum(x) + 2) for x in ([30, 20, 40, 10], [10, 60, 20, 30])]
    expected = slow_area(smooth[0], smooth[1])
    assert mauve(data, samples, 4, smoothing=True) == pytest.approx(expected, rel=1e-9)
    assert mauve(7 * data, samples, 4) == pytest.approx(mauve(data, samples, 4))  # only directions


def test_clusters_are_those_of_k_means():
    points = np.random.default_rng(3).normal(size=(300, 5))
    labels = _labels(points, 12, seed=0)
    centres = np.stack([points[labels == k].mean(0) for k in range(12)])
    distances = ((points[:, None] - centres) ** 2).sum(-1)
    chosen = distances[np.arange(300), labels]
    assert (chosen <= distances.min(1) + 0.05).all()  # each is at the nearest mean, or nearly
    random = np.random.default_rng(0).integers(12, size=300)
    apart = np.stack([points[random == k].mean(0) for k in range(12)])[random]
    assert chosen.sum() < 0.6 * ((points - apart) ** 2).sum()
    assert (labels == _labels(points, 12, seed=0)).all()


def test_axes_hold_nine_tenths_of_the_variance():
    points = np.random.default_rng(4).normal(size=(200, 30)) * np.geomspace(1, 0.01, 30)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    values = np.linalg.svd(unit - unit.mean(0), compute_uv=False) ** 2
    needed = 1 + int((np.cumsum(values) / values.sum() < 0.9).sum())
    turned = _turned(points)
    assert turned.shape == (200, needed)
    np.testing.assert_allclose(np.sort((turned**2).sum(0))[::-1], values[:needed], rtol=1e-8)


def test_worse_samples_score_lower():
    data = np.random.default_rng(5).normal(size=(600, 8))
    other = np.random.default_rng(6).normal(size=(600, 8))
    scores = [mauve(data, other + shift) for shift in (0, 0.4, 1.0, 4.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.95
    assert scores[-1] < 0.05
    assert mauve(data, np.repeat(other[:10], 60, 0)) < 0.6  # a few texts, again and again


def test_what_is_refused():
    data = np.ones((30, 4))
    with pytest.raises(ValueError, match=r"`clusters` must be in 2\.\.30.*, got 31"):
        mauve(data, data, 31)
    with pytest.raises(ValueError, match=r"must be \(n, C\) and \(m, C\)"):
        mauve(data, np.ones((30, 5)))
    with pytest.raises(ValueError, match="must be finite numbers"):
        mauve(data, data * np.nan)


# Features


@pytest.fixture(params=["bert", "gpt2"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    model: Any = {"bert": hubs.bert, "gpt2": hubs.gpt2}[request.param]()
    model.save_pretrained(tmp_path)
    hubs.tokenizer().save_pretrained(tmp_path)
    return TextFeatures(str(tmp_path), max_length=9)


def test_features_of_a_text_depend_on_nothing_else(encoder: TextFeatures):
    texts = ["A C D E", "W Y", "A C D E F G H I K L M N", "A C"]
    together = encoder(texts)
    assert together.shape == (4, 32)
    alone = np.concatenate([encoder([text]) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder(texts, batch_size=3), together, rtol=1e-4, atol=1e-5)
    ids = torch.tensor([encoder.tokenizer("A C D E")["input_ids"]])
    with torch.no_grad():
        states = encoder.model(ids).last_hidden_state[0]
    expected = states[-1] if encoder.last else states.mean(0)
    np.testing.assert_allclose(together[0], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert encoder.last == ("GPT2" in type(encoder.model).__name__)


def test_an_encoder_that_is_not_there_is_named():
    with pytest.raises(OSError, match="nowhere"):
        TextFeatures("./nowhere")
