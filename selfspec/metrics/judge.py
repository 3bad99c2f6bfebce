"""Likelihood of samples under a judge: an autoregressive model with no part in the training.

    NLL(x) = -(1/L) Σ_l log q(x_l | x_<l)        nats per token; divided by ln 2, bits per token.

A low value alone proves nothing: one good sample repeated scores well. Report the diversity of
`entropy` beside it.

There are two kinds of judge, and their numbers do not compare:

- `judge_nll` takes a judge of the *same tokens*, as a callable: (B, L) tokens → (B, L) nats,
  log q(x_l | x_<l) of every token, the first one included.
- `HuggingFaceJudge` takes *text*, as published figures on OpenWebText do (GPT-2): decode,
  re-tokenise, truncate, mean over all tokens. The first token of a text has no prediction.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

__all__ = ["HuggingFaceJudge", "Judge", "JudgeScores", "judge_nll"]

Judge = Callable[[Tensor], Tensor]
"""(B, L) int64 tokens → (B, L) log-probabilities in nats."""


@dataclass(frozen=True)
class JudgeScores:
    """What a judge says of n samples.

    Attributes:
        nats: (n,) float64, mean negative log-likelihood a token; nan for a sample without tokens.
        tokens: (n,) int64, how many tokens of each sample were scored.
    """

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def bits(self) -> np.ndarray:
        """(n,) mean bits a token."""
        return self.nats / math.log(2)

    @property
    def mean(self) -> float:
        """Nats a token over all tokens of all samples: long ones weigh more; nan without any."""
        scored = self.tokens > 0
        if not scored.any():
            return math.nan
        return float(np.average(self.nats[scored], weights=self.tokens[scored]))


@torch.no_grad()
def judge_nll(
    samples: Tensor,
    judge: Judge,
    batch_size: int = 64,
    pad: Tensor | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> JudgeScores:
    """Scores token sequences with a judge that reads the same tokens.

    Args:
        samples: (n, L) int64 tokens.
        judge: (B, L) tokens → (B, L) log-probabilities in nats.
        batch_size: B, sequences a call.
        pad: (n, L) bool, True at tokens that do not count, on the right; they may hold anything.
        device: where the judge wants its tokens; by default where they are.
        progress: show a bar.

    Returns:
        The mean nats of each sample over the tokens that are no pads, summed in float64.

    Raises:
        ValueError: `samples` is not (n, L) or has no row, or the judge returns another shape or
            a nan.
    """
    if samples.ndim != 2 or not len(samples):
        raise ValueError(f"`samples` must be (n, L), n at least 1, got {tuple(samples.shape)}")
    counted = torch.ones_like(samples, dtype=torch.bool) if pad is None else ~pad
    samples = samples.masked_fill(~counted, 0)
    totals = []
    for start in tqdm(range(0, len(samples), batch_size), desc="judge", disable=not progress):
        rows = slice(start, start + batch_size)
        logs = judge(samples[rows].long().to(device))
        if logs.shape != samples[rows].shape:
            raise ValueError(
                f"`judge` must return one number a token, {tuple(samples[rows].shape)}, "
                f"got {tuple(logs.shape)}"
            )
        logs = logs.cpu().double().masked_fill(~counted[rows].cpu(), 0.0)
        totals.append(-logs.sum(1))
    return _scores(totals, counted.sum(1).cpu())


class HuggingFaceJudge:
    """A causal language model of the `transformers` library as a judge of text.

    Args:
        name: of a model on the Hub, or a folder.
        max_length: tokens kept of a text, no more than the model can read.
        device: of the model.
        load: passed to both `from_pretrained` calls, for instance `gguf_file`.

    Raises:
        ImportError: `transformers` is not installed.
    """

    def __init__(
        self, name: str, max_length: int = 1024, device: torch.device | str = "cpu", **load: Any
    ) -> None:
        from transformers import (  # pyright: ignore[reportMissingImports]
            AutoModelForCausalLM,
            AutoTokenizer,
        )

        self.tokenizer = AutoTokenizer.from_pretrained(name, **load)
        model: Any = AutoModelForCausalLM.from_pretrained(name, **load)
        self.model = model.to(device).eval()
        self.max_length, self.device = max_length, device

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[str], batch_size: int = 16, progress: bool = False
    ) -> JudgeScores:
        """Scores texts: (n,) nats a token of this model's own tokenizer, the first not counted."""
        totals, counts = [], []
        for start in tqdm(range(0, len(texts), batch_size), desc="judge", disable=not progress):
            ids = [self._encode(text) for text in texts[start : start + batch_size]]
            lengths = torch.tensor([len(row) for row in ids])
            tokens = pad_sequence(ids, batch_first=True)
            # Pads stand on the right, where a causal model does not see them.
            real = torch.arange(tokens.shape[1]) < lengths[:, None]
            logits = self.model(
                tokens.to(self.device), attention_mask=real.long().to(self.device)
            ).logits
            nats = F.cross_entropy(
                logits[:, :-1].float().mT, tokens[:, 1:].to(self.device), reduction="none"
            )
            totals.append((nats.cpu().double() * real[:, 1:]).sum(1))
            counts.append(real[:, 1:].sum(1))
        return _scores(totals, torch.cat(counts))

    def _encode(self, text: str) -> Tensor:
        ids = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


def _scores(totals: list[Tensor], counts: Tensor) -> JudgeScores:
    total = torch.cat(totals)
    mean = torch.where(counts > 0, total / counts.clamp(min=1), torch.nan)
    if (broken := mean.isnan() & (counts > 0)).any():
        raise ValueError(f"`judge` must return numbers, got nan for {int(broken.sum())} samples")
    return JudgeScores(mean.numpy(), counts.numpy())
