"""MAUVE: how much the samples, as a cloud of points, lie where real texts lie.

Both sets of texts become features; all features together are cut into k clusters, and with p the
shares of the real texts in each and q those of the samples,

    r_w = w p + (1 - w) q,   C(p, q) = {(exp(-c KL(q ‖ r_w)), exp(-c KL(p ‖ r_w))) : 0 < w < 1},

MAUVE is the area under this curve from (0, 1) to (1, 0): 1 if p = q, towards 0 if they never meet.
Here c = 5, w takes 25 values, and k is a tenth of the smaller set. Features are normalised, and
turned to the axes that hold nine tenths of their variance. Source: Pillutla et al. 2021
(arXiv 2102.01454), whose shares are the plain ones; `smoothing` adds half a text to every cluster,
as Pillutla et al. 2023 (JMLR 24:356) recommend for few texts.

It depends on features, n and k: compare equal ones only, and quote it of held-out texts beside it.
The clusters are those of k-means, from several starts, by `scipy`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfspec.progress import tracked

__all__ = ["TextFeatures", "divergence_area", "mauve"]

SCALE, POINTS, VARIANCE, STARTS, TOLERANCE = 5.0, 25, 0.9, 5, 1e-4


def mauve(
    data: np.ndarray,
    samples: np.ndarray,
    clusters: int | None = None,
    smoothing: bool = False,
    seed: int = 0,
) -> float:
    """MAUVE of two sets of features.

    Args:
        data: (n, C) features of real texts.
        samples: (m, C) features of samples.
        clusters: k; a tenth of the smaller set, at least 2, by default.
        smoothing: add half a text to every cluster, on either side.
        seed: of the starts of k-means.

    Returns:
        A share in (0, 1].

    Raises:
        ValueError: other shapes, numbers that are not finite, `clusters` out of range, or `scipy`
            is not installed.
    """
    if data.ndim != 2 or samples.ndim != 2 or data.shape[1] != samples.shape[1]:
        raise ValueError(f"`data` and `samples` must be (n, C) and (m, C), got {data.shape} and "
                         f"{samples.shape}")  # fmt: skip
    fewest = min(len(data), len(samples))
    clusters = max(2, round(fewest / 10)) if clusters is None else clusters
    if not 2 <= clusters <= fewest:
        raise ValueError(f"`clusters` must be in 2..{fewest}, the smaller set, got {clusters}")
    features = np.concatenate([data, samples]).astype(np.float64)
    if not np.isfinite(features).all():
        raise ValueError("`data` and `samples` must be finite numbers, got others")
    labels = _labels(_turned(features), clusters, seed)
    p, q = (np.bincount(part, minlength=clusters) + 0.5 * smoothing
            for part in (labels[: len(data)], labels[len(data) :]))  # fmt: skip
    return divergence_area(p / p.sum(), q / q.sum())


def divergence_area(p: np.ndarray, q: np.ndarray) -> float:
    """The area under the curve of two discrete laws, (k,) each; see the module."""
    weights = np.linspace(1e-6, 1 - 1e-6, POINTS)
    mixed = weights[:, None] * p + (1 - weights[:, None]) * q
    x = np.concatenate([[1.0], np.exp(-SCALE * _kl(q, mixed)), [0.0]])
    y = np.concatenate([[0.0], np.exp(-SCALE * _kl(p, mixed)), [1.0]])
    return min(1.0, float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum() / 2))


def _kl(p: np.ndarray, mixed: np.ndarray) -> np.ndarray:
    """(W,) nats of KL(p ‖ mixed_w), which holds p."""
    held = p > 0
    return (p[held] * np.log(p[held] / mixed[:, held])).sum(1)


def _turned(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, less their mean, on the first axes that hold `VARIANCE` of the variance."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths > 0, lengths, 1)
    centred = unit - unit.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    share = np.cumsum(variances[::-1]) / max(variances.sum(), np.finfo(float).tiny)
    return centred @ axes[:, ::-1][:, : 1 + int(np.argmax(share >= VARIANCE))]


def _labels(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """(n,) the cluster of each point, by the tightest of several runs of k-means."""
    try:
        from scipy.cluster.vq import kmeans, vq  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("MAUVE needs `pip install selfspec[eval]`") from error
    generator = np.random.default_rng(seed)
    centres, _ = kmeans(points, clusters, STARTS, TOLERANCE, rng=generator)
    return vq(points, centres)[0]


class TextFeatures:
    """An encoder of the `transformers` library: texts to features.

    Of a causal model the features are the last token's, of others the mean over all tokens, from
    the last hidden states.

    Args:
        name: of a model on the Hub, or a folder.
        max_length: tokens kept of a text, at most as many as the model can read.
        device: of the model.

    Raises:
        ValueError: `transformers` is not installed. OSError: no such model.
    """

    def __init__(self, name: str, max_length: int = 256, device: torch.device | str = "cpu"):
        try:
            from transformers import (  # pyright: ignore[reportMissingImports]
                AutoModel,
                AutoTokenizer,
            )
        except ImportError as error:
            raise ValueError("encoders need `pip install selfspec[eval]`") from error
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.tokenizer.padding_side = "right"
        model: Any = AutoModel.from_pretrained(name, dtype=torch.float32)
        self.model = model.to(device).eval()
        kinds = " ".join(model.config.architectures or ())
        self.last = "CausalLM" in kinds or "LMHeadModel" in kinds
        most = getattr(model.config, "max_position_embeddings", None) or max_length
        self.max_length, self.device = min(max_length, most), device

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[str], batch_size: int = 64, progress: bool = False
    ) -> np.ndarray:
        """(n, C) float32 features of n texts."""
        rows = []
        for start in tracked(range(0, len(texts), batch_size), desc="features", progress=progress):
            batch = self.tokenizer(
                list(texts[start : start + batch_size]),
                truncation=True,
                max_length=self.max_length,
                padding=True,
                return_tensors="pt",
            ).to(self.device)
            real = batch["attention_mask"]
            states = self.model(input_ids=batch["input_ids"], attention_mask=real)[0]
            rows.append(self._pooled(states, real).cpu().numpy())
        return np.concatenate(rows)

    def _pooled(self, states: Tensor, real: Tensor) -> Tensor:
        """(B, L, C) states and (B, L) 1 at tokens → (B, C)."""
        count = real.sum(1, keepdim=True).clamp(min=1)
        if self.last:
            at = (count - 1).unsqueeze(-1).expand(-1, -1, states.shape[-1])
            return states.gather(1, at).squeeze(1)
        return (states * real.unsqueeze(-1)).sum(1) / count
