"""Judges: a law over sequences is read off exactly, batches and pads do not matter."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from selfspec.metrics import HuggingFaceJudge, Judge, JudgeScores, judge_nll
from selfspec.model import AutoregressiveModel
from selfspec.nn.transformer import Trunk, TrunkConfig

VOCAB, LENGTH = 3, 4
EVERY = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))


class Markov:
    """log q(x_l | x_{l-1}) of a random chain."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(VOCAB + 1, VOCAB, generator=generator).log_softmax(-1)

    def __call__(self, tokens: Tensor) -> Tensor:
        before = torch.cat([torch.full_like(tokens[:, :1], VOCAB), tokens[:, :-1]], 1)
        return self.table[before, tokens]


def trained_alike() -> AutoregressiveModel:
    """The library's own judge, with weights far from a uniform law."""
    config = TrunkConfig(vocab_size=VOCAB, length=LENGTH, width=8, blocks=1, heads=2, causal=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = AutoregressiveModel(Trunk(config)).eval()
        torch.nn.init.normal_(model.trunk.unembedding.weight)
    return model


def test_a_uniform_judge_gives_the_logarithm_of_the_vocabulary() -> None:
    scores = judge_nll(EVERY, lambda tokens: torch.full(tokens.shape, -math.log(VOCAB)))
    np.testing.assert_allclose(scores.nats, math.log(VOCAB), rtol=1e-6)
    np.testing.assert_allclose(scores.bits, math.log2(VOCAB), rtol=1e-6)


@pytest.mark.parametrize("judge", [Markov(), trained_alike().log_probs], ids=["chain", "model"])
def test_the_probabilities_of_all_sequences_sum_to_one(judge: Judge) -> None:
    scores = judge_nll(EVERY, judge, batch_size=7)
    assert np.exp(-scores.nats * LENGTH).sum() == pytest.approx(1, abs=1e-5)
    assert scores.nats.std() > 0.1


def test_a_score_depends_on_its_own_sample_only() -> None:
    together = judge_nll(EVERY, Markov(), batch_size=len(EVERY)).nats
    alone = [judge_nll(row[None], Markov()).nats.item() for row in EVERY]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert judge_nll(EVERY, Markov()).mean == pytest.approx(together.mean())


def test_pads_do_not_count() -> None:
    pad = torch.zeros_like(EVERY, dtype=torch.bool)
    pad[::2, 2:] = True
    scores = judge_nll(EVERY, Markov(), pad=pad)
    short = judge_nll(EVERY[::2, :2], Markov())
    np.testing.assert_allclose(scores.nats[::2], short.nats, rtol=1e-6)
    assert scores.tokens.tolist() == [2 if i % 2 == 0 else 4 for i in range(len(EVERY))]
    whole = judge_nll(EVERY[1::2], Markov())
    total = 2 * short.nats.sum() + 4 * whole.nats.sum()
    assert scores.mean == pytest.approx(total / scores.tokens.sum())


def test_a_broken_judge_is_named() -> None:
    with pytest.raises(ValueError, match="`judge` must return one number a token"):
        judge_nll(EVERY, lambda tokens: Markov()(tokens).sum(1))
    with pytest.raises(ValueError, match="`judge` must return numbers, got nan for 81 samples"):
        judge_nll(EVERY, lambda tokens: Markov()(tokens) * math.nan)
    with pytest.raises(ValueError, match="`samples` must be"):
        judge_nll(EVERY[0], Markov())


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory):
    """A tiny random GPT-2 with a tokenizer of words, in a folder."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("gpt2")
    words = {word: i for i, word in enumerate(["the", "cat", "saw", "a", "rat", "and", "ran", "?"])}
    table = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    table.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=table).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return HuggingFaceJudge(str(folder), max_length=6)


def test_texts_are_scored_token_by_token_up_to_the_cut(gpt2: HuggingFaceJudge) -> None:
    texts = ["the cat saw a rat", "the rat ran", "and", "a rat ran and the cat ran and ran"]
    scores = gpt2(texts, batch_size=4)
    assert scores.tokens.tolist() == [4, 2, 0, 5]
    for text, nats in zip(texts, scores.nats, strict=True):
        ids = torch.tensor([gpt2.tokenizer(text)["input_ids"][:6]])
        logs = gpt2.model(ids).logits[0, :-1].log_softmax(-1)
        expected = -logs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].mean().item()
        assert nats == pytest.approx(expected, rel=1e-4, nan_ok=True)
    np.testing.assert_allclose(gpt2(texts, batch_size=1).nats, scores.nats, rtol=1e-4)
    assert scores.mean == pytest.approx(np.nansum(scores.nats * scores.tokens) / 11)


def test_bits_a_character_do_not_depend_on_how_text_is_cut(gpt2: HuggingFaceJudge) -> None:
    texts = ["the cat saw a rat", "the rat ran", "and", "a rat ran and the cat ran and ran"]
    scores = gpt2(texts)
    # Without the first token, up to the last that was kept.
    scored = [" cat saw a rat", " rat ran", "", " rat ran and the cat"]
    assert scores.characters is not None
    assert scores.characters.tolist() == [len(text) for text in scored]
    nats = np.nansum(scores.nats * scores.tokens)
    assert scores.bits_per_character == pytest.approx(nats / math.log(2) / len("".join(scored)))
    parts = JudgeScores.concatenate([gpt2(texts[:1]), gpt2(texts[1:])])
    assert parts.bits_per_character == pytest.approx(scores.bits_per_character)
    assert parts.mean == pytest.approx(scores.mean)
    assert parts.tokens.tolist() == scores.tokens.tolist()
    with pytest.raises(ValueError, match="`characters` are not known"):
        _ = judge_nll(EVERY, Markov()).bits_per_character


def test_a_token_in_front_is_predicted_by_nothing_and_stands_for_no_text(
    gpt2: HuggingFaceJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gpt2.tokenizer

    def with_begin(text: str, **options: object) -> dict[str, list]:
        found = plain(text, **options)
        return {"input_ids": [0, *found["input_ids"]],
                "offset_mapping": [(0, 0), *found["offset_mapping"]]}  # fmt: skip

    monkeypatch.setattr(gpt2, "tokenizer", with_begin)
    scores = gpt2(["cat saw"])
    assert scores.tokens.tolist() == [2]
    assert scores.characters is not None
    assert scores.characters.tolist() == [7]


def test_texts_are_cut_where_the_model_ends(gpt2: HuggingFaceJudge) -> None:
    judge = HuggingFaceJudge(gpt2.model.name_or_path, max_length=1024)
    assert judge(["the cat " * 30]).tokens.tolist() == [15]  # it has sixteen positions


def test_the_mean_of_no_tokens_is_no_number():
    assert math.isnan(JudgeScores(np.array([math.nan]), np.array([0])).mean)
