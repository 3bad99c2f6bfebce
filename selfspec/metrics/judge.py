"""Likelihood of samples under a judge: an autoregressive model with no part in the training.

    NLL(x) = -(1/L) Σ_l log q(x_l | x_<l)        nats per token; divided by ln 2, bits per token.

Models with other tokens compare by the character:

    bits per character(x) = NLL(x) · scored tokens / (ln 2 · scored characters).

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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from selfspec.causal_lm import load_causal_lm
from selfspec.progress import tracked

__all__ = ["HuggingFaceJudge", "Judge", "JudgeScores", "judge_nll"]

Judge = Callable[[Tensor], Tensor]
"""(B, L) int64 tokens → (B, L) log-probabilities in nats."""


@dataclass(frozen=True)
class JudgeScores:
    """What a judge says of n samples.

    Attributes:
        nats: (n,) float64, mean negative log-likelihood a token; nan for a sample without tokens.
        tokens: (n,) int64, how many tokens of each sample were scored.
        characters: (n,) int64, how many characters they stand for; None for judges of tokens.
    """

    nats: np.ndarray
    tokens: np.ndarray
    characters: np.ndarray | None = None

    @property
    def bits(self) -> np.ndarray:
        """(n,) mean bits a token."""
        return self.nats / math.log(2)

    @property
    def mean(self) -> float:
        """Nats a token over all tokens of all samples: long ones weigh more; nan without any."""
        return self._total / total if (total := int(self.tokens.sum())) else math.nan

    @property
    def bits_per_character(self) -> float:
        """Bits a character over all characters of all samples; nan without any.

        Raises:
            ValueError: the judge read tokens, not text.
        """
        if self.characters is None:
            raise ValueError("`characters` are not known: the judge read tokens, not text")
        total = int(self.characters.sum())
        return self._total / (math.log(2) * total) if total else math.nan

    @classmethod
    def concatenate(cls, parts: Sequence["JudgeScores"]) -> "JudgeScores":
        """The scores of several lots of samples by one judge."""
        columns = [(part.nats, part.tokens, part.characters) for part in parts]
        nats, tokens, characters = zip(*columns, strict=True)
        known = all(column is not None for column in characters)
        counts = np.concatenate(characters) if known else None
        return cls(np.concatenate(nats), np.concatenate(tokens), counts)

    @property
    def _total(self) -> float:
        scored = self.tokens > 0
        return float((self.nats[scored] * self.tokens[scored]).sum())


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
    for start in tracked(range(0, len(samples), batch_size), desc="judge", progress=progress):
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
        name: of a model on the Hub, a folder, or a `.gguf` file.
        max_length: tokens kept of a text, at most as many as the model can read.
        device: of the model.
        **load: for `load_causal_lm`, such as `dtype`, which is float32 by default.

    Raises:
        ValueError: `transformers` is not installed, or the tokenizer does not say where in a text
            a token stands.
        OSError: no such model.
    """

    def __init__(
        self, name: str, max_length: int = 1024, device: torch.device | str = "cpu", **load: Any
    ) -> None:
        model, self.tokenizer = load_causal_lm(name, **load)
        if not self.tokenizer.is_fast:
            raise ValueError(f"`name` must have a fast tokenizer, got {name!r} without")
        self.model = model.to(device)
        most = getattr(model.config, "max_position_embeddings", None) or max_length
        self.max_length, self.device = min(max_length, most), device

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[str], batch_size: int = 16, progress: bool = False
    ) -> JudgeScores:
        """Scores texts: (n,) nats a token of this model's own tokenizer, the first not counted.

        Nor are the characters of that token, or those behind the cut.
        """
        totals, counts, characters = [], [], []
        for start in tracked(range(0, len(texts), batch_size), desc="judge", progress=progress):
            encoded = [self._encode(text) for text in texts[start : start + batch_size]]
            ids = [row for row, _ in encoded]
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
            characters += [scored for _, scored in encoded]
        scores = _scores(totals, torch.cat(counts))
        return replace(scores, characters=np.array(characters, dtype=np.int64))

    def _encode(self, text: str) -> tuple[Tensor, int]:
        """The ids of a text, and how many of its characters the judge has to predict."""
        found = self.tokenizer(
            text, truncation=True, max_length=self.max_length, return_offsets_mapping=True
        )
        ends = [end for _, end in found["offset_mapping"]]
        ids = torch.tensor(found["input_ids"], dtype=torch.int64)
        return ids, max(ends) - ends[0] if ends else 0


def _scores(totals: list[Tensor], counts: Tensor) -> JudgeScores:
    total = torch.cat(totals)
    mean = torch.where(counts > 0, total / counts.clamp(min=1), torch.nan)
    if (broken := mean.isnan() & (counts > 0)).any():
        raise ValueError(f"`judge` must return numbers, got nan for {int(broken.sum())} samples")
    return JudgeScores(mean.numpy(), counts.numpy())
