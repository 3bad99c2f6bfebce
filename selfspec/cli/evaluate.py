"""`selfspec evaluate`: every metric over the same samples."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfspec.cli.common import Run, Sampling, load_judge, one_line, to_json, watched

if TYPE_CHECKING:
    import numpy as np

    from selfspec.data.loader import TokenStore
    from selfspec.interfaces import Samples
    from selfspec.model import SSMD
    from selfspec.sampling import Sampler

Metric = Literal[
    "judge", "hf-judge", "spelling", "words", "distinct", "entropy", "kl", "heldout", "cost"
]


def evaluate(
    checkpoint: str,
    /,
    sampling: Sampling,
    run: Run,
    metrics: tuple[Metric, ...] = ("judge", "spelling", "words", "distinct", "entropy", "cost"),
    num: int = 64,
    judge: str = "books27-judge",
    hf_judge: str = "gpt2",
    data: Path | None = None,
    heldout_blocks: int = 2,
    batch_size: int = 64,
) -> None:
    """Draw samples and measure them.

    Args:
        checkpoint: the name of a bundled checkpoint, or a folder.
        sampling: how to sample.
        run: where and from which seed.
        metrics: what to measure. judge and hf-judge: bits a token under an autoregressive model.
            spelling: share of known words. words: entropy of all words, nats. distinct: share of
            different word 4-grams. entropy: of a sample's tokens, nats. kl: from data to samples
            over character 4-grams, nats. heldout: bits a token of held-out text under the sampler,
            exact for orders fixed in advance. cost: NFE, passes and seconds.
        num: how many samples.
        judge: a checkpoint of an autoregressive model of the same tokens.
        hf_judge: a causal language model of the transformers library, by name or folder.
        data: a corpus written by `selfspec prepare`, for kl and heldout: its test split.
        heldout_blocks: how many sequences of held-out text.
        batch_size: samples drawn at once.
    """
    from selfspec import api

    model = api.load(checkpoint, run.where())
    sampler = sampling.sampler(model)
    store = test_split(data) if {"kl", "heldout"} & set(metrics) else None
    start = time.perf_counter()
    samples = api.generate(
        model, num, sampler=sampler, seed=run.seed, batch_size=batch_size, progress=watched()
    )
    seconds = time.perf_counter() - start
    task = Task(model, sampler, samples, seconds, judge, hf_judge, store, heldout_blocks, run)
    report = task.report(metrics)
    if run.json:
        return print(to_json(report))
    report["sampler"] = one_line(report["sampler"])
    for name, value in report.items():
        print(f"{name:15} {value:.4f}" if isinstance(value, float) else f"{name:15} {value}")


def test_split(data: Path | None) -> TokenStore:
    """The held-out text of a corpus."""
    from selfspec.data.corpus import open_corpus
    from selfspec.data.loader import TokenStore

    if data is None:
        raise ValueError("`data` must be a corpus for the metrics kl and heldout, got none")
    _, stores = open_corpus(data)
    if "test" not in stores:
        raise ValueError(f"`data` must have a split 'test', got {sorted(stores)} in {data}")
    if not isinstance(store := stores["test"], TokenStore):
        raise ValueError(f"`data` must be a corpus of text for kl and heldout, got {data}")
    return store


@dataclass
class Task:
    """What the metrics read."""

    model: SSMD
    sampler: Sampler
    samples: Samples
    seconds: float
    judge_name: str
    hf_judge_name: str
    store: TokenStore | None
    heldout_blocks: int
    run: Run

    def report(self, metrics: tuple[Metric, ...]) -> dict[str, Any]:
        """The settings, then every metric by name."""
        from selfspec.calibration import describe

        report: dict[str, Any] = {"sampler": describe(self.sampler), "n": len(self.samples)}
        for metric in metrics:
            value = getattr(self, metric.replace("-", "_"))()
            report |= value if isinstance(value, dict) else {metric: value}
        return report

    @cached_property
    def tokens(self) -> np.ndarray:
        """(n, L), masked at pads."""
        return self.samples.rows

    @cached_property
    def texts(self) -> list[str]:
        """The samples as text."""
        if self.samples.text is None:
            raise ValueError("`checkpoint` must have a tokenizer for metrics of text, got none")
        return self.samples.text

    def judge(self) -> dict[str, float]:
        """Bits a token under an autoregressive model of the same tokens; of subwords a character
        too.
        """
        from selfspec.metrics import judge_nll

        judge = load_judge(self.judge_name, self.model)
        found = judge_nll(self.samples.tokens, judge.log_probs, pad=self.samples.pad)
        report = {"judge": float(found.bits.mean())}
        characters, tokens = sum(map(len, self.samples.text or [])), int(found.tokens.sum())
        if characters not in (0, tokens):
            report["judge_per_character"] = found.mean / math.log(2) * tokens / characters
        return report

    def hf_judge(self) -> float:
        """Bits a token, of its own, under a Hugging Face model."""
        from selfspec.metrics import HuggingFaceJudge

        name = self.hf_judge_name
        try:
            judge = HuggingFaceJudge(name, device=self.model.device)
        except ImportError as error:
            raise ValueError("`hf_judge` needs `pip install selfspec[hf]`") from error
        except OSError as error:
            raise ValueError(f"`hf_judge` must be a causal language model, got {name!r}") from error
        return judge(self.texts).mean / math.log(2)

    def spelling(self) -> float:
        """Share of known words."""
        from selfspec.checkpoint import BUNDLED
        from selfspec.metrics import load_vocabulary, spelling_accuracy

        return spelling_accuracy(
            self.texts, load_vocabulary(BUNDLED / "books27" / "vocabulary.txt.xz")
        )

    def words(self) -> float:
        """Entropy of the words of all samples, nats."""
        from selfspec.metrics import word_entropy

        return word_entropy(self.texts)

    def distinct(self) -> float:
        """Share of different word 4-grams."""
        from selfspec.metrics import distinct_n

        return distinct_n(self.texts, 4)

    def entropy(self) -> float:
        """Of a sample's tokens, nats."""
        from selfspec.metrics import token_entropy

        return float(token_entropy(self.tokens).mean())

    def kl(self) -> float:
        """From data to samples over character 4-grams, nats."""
        from selfspec.metrics import ngram_counts, ngram_kl

        assert self.store is not None
        size = self.model.vocab_size
        return ngram_kl(ngram_counts(self.store.tokens, size), ngram_counts(self.tokens, size))

    def heldout(self) -> dict[str, Any]:
        """Bits a token of held-out text under the sampler; exact for orders fixed in advance."""
        import torch

        from selfspec.cli.score import measure

        assert self.store is not None
        blocks = self.store.blocks(self.model.length)[: self.heldout_blocks]
        tokens = torch.from_numpy(blocks.astype("int64")).flatten().to(self.model.device)
        score = measure(self.model, tokens, self.sampler, orders=2, seed=self.run.seed)
        names = {"heldout": "bits", "heldout_stderr": "stderr", "heldout_exact": "exact"}
        return {name: score[key] for name, key in names.items()}

    def cost(self) -> dict[str, float]:
        """NFE, passes, acceptance and seconds a sample."""
        from selfspec.cli.sample import account

        cost = account(self.samples, self.seconds / len(self.samples))
        return {name: value for name, value in cost.items() if name != "n"}
