"""`selfspec evaluate`: every metric over the same samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfspec.checks import whole
from selfspec.cli.common import (
    Loading,
    Run,
    Sampling,
    check_tokens,
    first_rank,
    load_judge,
    one_line,
    to_json,
)

if TYPE_CHECKING:
    import numpy as np

    from selfspec.data.loader import TokenStore
    from selfspec.data.tokenizers import Tokenizer
    from selfspec.interfaces import Samples
    from selfspec.metrics import HuggingFaceJudge, TextFeatures
    from selfspec.model import SSMD, AutoregressiveModel
    from selfspec.sampling import Sampler

Metric = Literal[
    "judge", "hf-judge", "spelling", "words", "distinct", "entropy", "kl", "mauve", "bound",
    "heldout", "cost",
]  # fmt: skip
OF_DATA = {"kl", "mauve", "bound", "heldout"}
OF_TOKENS = OF_DATA - {"mauve"}
JUDGES = {"judge": "own_judge", "hf-judge": "reader", "mauve": "encoder"}
"""What a metric loads, by its name in `Task`."""


def evaluate(
    checkpoint: str,
    /,
    sampling: Sampling,
    run: Run,
    loading: Loading,
    metrics: tuple[Metric, ...] = ("judge", "spelling", "words", "distinct", "entropy", "cost"),
    num: int = 64,
    judge: str = "books27-judge",
    hf_judge: str = "gpt2-large",
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2",
    data: Path | None = None,
    split: str = "test",
    heldout_blocks: int = 2,
    length: int | None = None,
    batch_size: int = 64,
) -> None:
    """Draw samples and measure them; under torchrun every process takes its share of the rows.

    Args:
        checkpoint: the name of a bundled checkpoint, or a folder.
        sampling: how to sample.
        run: where and from which seed.
        loading: how the trunk of a head is found.
        metrics: what to measure. judge: bits a token under an autoregressive model of the same
            tokens. hf-judge: bits a character under a causal language model of any tokens, and its
            nats a token. spelling: share of known words. words: entropy of all words, nats.
            distinct: share of different word 4-grams. entropy: of a sample's tokens, nats. kl: from
            data to samples over character 4-grams, nats. mauve: of samples and as many held-out
            texts. bound: the masked-diffusion bound of held-out text, bits a token. heldout: bits a
            token of held-out text under the sampler, exact for orders fixed in advance; a budget
            then takes no sampler without a likelihood. cost: NFE, passes and seconds.
        num: how many samples.
        judge: a checkpoint of an autoregressive model of the same tokens.
        hf_judge: a causal language model of the transformers library: a name on the Hub, a folder,
            or a .gguf file.
        encoder: of texts for mauve, of the transformers library: a name on the Hub, or a folder.
        data: a corpus written by `selfspec prepare`, for kl, mauve, bound and heldout.
        split: of the corpus.
        heldout_blocks: how many sequences of held-out text, for bound and heldout.
        length: tokens a sample; by default as the training data, or the model's own length.
        batch_size: samples drawn at once, by each process.
    """
    from selfspec import api
    from selfspec.train.parallel import group, processes, together

    if not metrics:
        raise ValueError("`metrics` must name at least one, got none")
    for name, value in {"num": num, "heldout_blocks": heldout_blocks}.items():
        whole(name, value, least=1)
    with processes(run.where()):
        with together():
            model = loading.model(checkpoint, run.where())
            sampler = sampling.sampler(model, likelihood="heldout" in metrics)
            corpus = open_split(data, split) if OF_DATA & set(metrics) else None
            if corpus and OF_TOKENS & set(metrics):
                check_tokens(corpus.tokenizer, corpus.store, model)
            if "kl" in metrics:
                check_ngrams(model.vocab_size)

        def draw(rows: slice) -> Samples:
            return api.generate(
                model, rows.stop - rows.start, sampler=sampler, length=length, seed=run.seed,
                first=rows.start, batch_size=batch_size, progress=not group().rank,
            ).cpu()  # fmt: skip

        task = Task(
            model, sampler, draw, num, judge, hf_judge, encoder, corpus, heldout_blocks, run
        )
        with together():  # what is missing is missed before anything is drawn
            task.load(metrics)
        report = task.report(metrics)
    if not first_rank():
        return
    if run.json:
        return print(to_json(report))
    report["sampler"] = one_line(report["sampler"])
    for name, value in report.items():
        print(f"{name:15} {value:.4f}" if isinstance(value, float) else f"{name:15} {value}")


def check_ngrams(vocab_size: int) -> None:
    """Raises a `ValueError` for a vocabulary whose 4-grams are too many to count."""
    from selfspec.metrics.entropy import MOST_NGRAMS

    if vocab_size > (most := math.isqrt(math.isqrt(MOST_NGRAMS))):
        raise ValueError(f"`metrics` may hold kl for at most {most} tokens, got {vocab_size}")


@dataclass(frozen=True)
class Corpus:
    """Held-out text and the tokenizer that made its tokens."""

    store: TokenStore
    tokenizer: Tokenizer

    def rows(self, length: int, most: int) -> np.ndarray:
        """(n, L) evenly spaced blocks."""
        return self.store.excerpt(length, most)


def open_split(data: Path | None, split: str) -> Corpus:
    """The held-out text of a corpus."""
    from selfspec.data.corpus import open_corpus
    from selfspec.data.loader import TokenStore

    if data is None:
        raise ValueError(f"`data` must be a corpus for the metrics {', '.join(sorted(OF_DATA))}, "
                         "got none")  # fmt: skip
    tokenizer, stores = open_corpus(data)
    if split not in stores:
        raise ValueError(f"`data` must have a split {split!r}, got {sorted(stores)} in {data}")
    if not isinstance(store := stores[split], TokenStore):
        raise ValueError(f"`data` must be a corpus of text for these metrics, got {data}")
    return Corpus(store, tokenizer)


@dataclass
class Task:
    """What the metrics read; each shares its rows among the processes, if it takes time."""

    model: SSMD
    sampler: Sampler
    draw: Callable[[slice], Samples]
    num: int
    judge_name: str
    hf_judge_name: str
    encoder_name: str
    corpus: Corpus | None
    heldout_blocks: int
    run: Run

    def load(self, metrics: tuple[Metric, ...]) -> None:
        """Loads the models that judge."""
        for metric in metrics:
            if metric in JUDGES:
                getattr(self, JUDGES[metric])

    def report(self, metrics: tuple[Metric, ...]) -> dict[str, Any]:
        """The settings, then every metric by name."""
        from selfspec.calibration import describe

        report: dict[str, Any] = {"sampler": describe(self.sampler), "n": len(self.samples)}
        for metric in metrics:
            value = getattr(self, metric.replace("-", "_"))()
            report |= value if isinstance(value, dict) else {metric: value}
        return report

    @cached_property
    def drawn(self) -> tuple[Samples, float]:
        """The samples, and the seconds that they took."""
        from selfspec.interfaces import Samples
        from selfspec.train.parallel import share

        start = time.perf_counter()
        samples = Samples.concatenate(share(self.num, self.draw))
        return samples, time.perf_counter() - start

    @property
    def samples(self) -> Samples:
        """Of all processes."""
        return self.drawn[0]

    @cached_property
    def own_judge(self) -> AutoregressiveModel:
        """Of the model's tokens."""
        return load_judge(self.judge_name, self.model)

    @cached_property
    def reader(self) -> HuggingFaceJudge:
        """Of any text."""
        from selfspec.metrics import HuggingFaceJudge

        name = self.hf_judge_name
        try:
            return HuggingFaceJudge(name, device=self.model.device)
        except OSError as error:
            raise ValueError(
                f"`hf_judge` must be a causal language model, got {name!r}; where "
                f"nothing can be downloaded, a folder or a .gguf file"
            ) from error

    @cached_property
    def encoder(self) -> TextFeatures:
        """Of any text."""
        from selfspec.metrics import TextFeatures

        try:
            return TextFeatures(self.encoder_name, device=self.model.device)
        except OSError as error:
            raise ValueError(f"`encoder` must be a model of the transformers library, "
                             f"got {self.encoder_name!r}") from error  # fmt: skip

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
        from selfspec.metrics import JudgeScores, judge_nll
        from selfspec.train.parallel import share

        tokens, pad = self.samples.tokens, self.samples.pad
        scores = share(
            len(tokens),
            lambda rows: judge_nll(
                tokens[rows],
                self.own_judge.log_probs,
                pad=None if pad is None else pad[rows],
                device=self.model.device,
            ),
        )
        found = JudgeScores.concatenate(scores)
        report = {"judge": float(found.bits.mean())}
        characters, count = sum(map(len, self.samples.text or [])), int(found.tokens.sum())
        if characters not in (0, count):
            report["judge_per_character"] = found.mean / math.log(2) * count / characters
        return report

    def hf_judge(self) -> dict[str, Any]:
        """Bits a character, and nats a token of its own, under a Hugging Face model."""
        from selfspec.metrics import JudgeScores
        from selfspec.train.parallel import share

        texts = self.texts
        scores = JudgeScores.concatenate(share(len(texts), lambda rows: self.reader(texts[rows])))
        return {
            "hf_judge": scores.bits_per_character,
            "hf_judge_nats_per_token": scores.mean,
            "hf_judge_name": self.hf_judge_name,
        }

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

        assert self.corpus is not None
        size, tokens = self.model.vocab_size, self.corpus.store.tokens
        return ngram_kl(ngram_counts(tokens, size), ngram_counts(self.tokens, size))

    def mauve(self) -> dict[str, Any]:
        """Of the samples and as many held-out texts, by the features of an encoder."""
        import numpy as np

        from selfspec.metrics import mauve
        from selfspec.train.parallel import share

        assert self.corpus is not None
        rows = self.corpus.rows(self.tokens.shape[1], len(self.texts))
        real = [self.corpus.tokenizer.decode(row) for row in rows]
        data, samples = (
            np.concatenate(share(len(texts), lambda rows, t=texts: self.encoder(t[rows])))
            for texts in (real, self.texts)
        )
        return {"mauve": mauve(data, samples), "mauve_encoder": self.encoder_name}

    def bound(self) -> dict[str, Any]:
        """Of held-out text, in bits a token and a character, with its standard error over rows."""
        import torch

        from selfspec.losses import draft_bounds
        from selfspec.train.parallel import share

        assert self.corpus is not None
        blocks = self.corpus.rows(self.model.length, self.heldout_blocks).astype("int64")
        tokens = torch.from_numpy(blocks)
        nats = torch.cat(
            share(
                len(tokens),
                lambda rows: draft_bounds(
                    self.model, tokens[rows].to(self.model.device), self.run.seed, rows.start
                ).cpu(),
            )
        )
        characters = sum(len(self.corpus.tokenizer.decode(row)) for row in blocks)
        bits = nats / math.log(2)
        return {
            "bound": float(bits.mean()),
            "bound_stderr": float(bits.std(correction=0) / (len(bits) - 1) ** 0.5),
            "bound_per_character": float(bits.mean()) * blocks.size / characters,
        }

    def heldout(self) -> dict[str, Any]:
        """Bits a token of held-out text under the sampler; exact for orders fixed in advance."""
        import torch

        from selfspec.cli.score import measure
        from selfspec.train.parallel import share

        assert self.corpus is not None
        blocks = self.corpus.store.blocks(self.model.length)[: self.heldout_blocks]
        tokens = torch.from_numpy(blocks.astype("int64")).to(self.model.device)

        def score(rows: slice) -> list[dict[str, Any]]:
            numbers = range(rows.start, rows.stop)
            return [measure(self.model, tokens[i], self.sampler, 2, self.run.seed + i)
                    for i in numbers]  # fmt: skip

        found = [one for part in share(len(tokens), score) for one in part]
        return {
            "heldout": sum(one["bits"] for one in found) / len(found),
            "heldout_stderr": sum(one["stderr"] ** 2 for one in found) ** 0.5 / len(found),
            "heldout_exact": found[0]["exact"],
        }

    def cost(self) -> dict[str, float]:
        """NFE, passes, acceptance and seconds a sample, by all processes together."""
        from selfspec.cli.sample import account

        samples, seconds = self.drawn
        cost = account(samples, seconds / len(samples))
        return {name: value for name, value in cost.items() if name != "n"}
