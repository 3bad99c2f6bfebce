"""Diversity: against direct counts, and the failures of one measure that another must see."""

from collections import Counter

import numpy as np
import pytest

from selfspec.metrics import distinct_n, ngram_counts, ngram_kl, token_entropy, word_entropy

RNG = np.random.default_rng(0)
ALPHABET = np.array(list(" abcdefghijklmnopqrstuvwxyz"))
WORDS = ["".join(RNG.choice(ALPHABET[1:], size=RNG.integers(1, 8))) for _ in range(500)]


def text_blocks(rows: int, seed: int, length: int = 128) -> np.ndarray:
    """Random words with Zipf's law, cut into rows of ids."""
    share = 1 / np.arange(1, len(WORDS) + 1)
    drawn = np.random.default_rng(seed).choice(WORDS, rows * length, p=share / share.sum())
    return np.searchsorted(ALPHABET, list(" ".join(drawn)))[: rows * length].reshape(rows, length)


def decode(blocks: np.ndarray) -> list[str]:
    return ["".join(ALPHABET[row]) for row in blocks]


DATA, OTHER = text_blocks(256, seed=1), text_blocks(256, seed=2)


def kl(data: np.ndarray, samples: np.ndarray) -> float:
    return ngram_kl(ngram_counts(data), ngram_counts(samples))


def test_token_entropy_equals_its_definition() -> None:
    def entropy(row: np.ndarray) -> float:
        share = np.array(list(Counter(row.tolist()).values())) / len(row)
        return -(share * np.log(share)).sum()

    np.testing.assert_allclose(token_entropy(DATA), [entropy(row) for row in DATA])
    assert token_entropy(np.full((2, 9), 50_000)).tolist() == [0, 0]
    np.testing.assert_allclose(token_entropy(np.arange(6)[None] * 1000), np.log(6))


def test_the_counts_of_ngrams_are_those_of_a_loop() -> None:
    tokens = RNG.integers(0, 3, (5, 9))
    grams = Counter(tuple(row[i : i + 4].tolist()) for row in tokens for i in range(6))
    counts = ngram_counts(tokens, vocab_size=3)
    assert counts.shape == (81,)
    for index, gram in enumerate(np.ndindex(3, 3, 3, 3)):
        assert counts[index] == grams[gram]


def test_a_long_text_is_counted_in_pieces() -> None:
    text = RNG.integers(0, 2, (1 << 22) + 5).astype(np.uint8)
    pairs = ngram_counts(text, vocab_size=2, n=2)
    assert pairs.tolist() == np.bincount(2 * text[:-1] + text[1:]).tolist()


def test_kl_of_data_to_itself_is_zero_and_to_anything_else_is_not() -> None:
    assert kl(DATA, DATA) == 0
    assert kl(DATA, np.concatenate([DATA, DATA])) == 0
    assert kl(DATA, OTHER) > 0


def test_kl_is_bounded_by_the_mixture() -> None:
    letters, others = DATA % 13, DATA % 13 + 13
    assert kl(letters, others) == pytest.approx(np.log(100))
    half = ngram_kl(ngram_counts(letters), ngram_counts(others), mixture=0.5)
    assert half == pytest.approx(np.log(2))


def test_kl_is_nearly_that_of_the_frequencies_where_nothing_is_missing() -> None:
    data, samples = np.array([30, 50, 20]), np.array([40, 40, 20])
    p, q = data / 100, samples / 100
    exact = (p * np.log(p / q)).sum()
    assert ngram_kl(data, samples, mixture=1e-6) == pytest.approx(exact, rel=1e-4)
    assert ngram_kl(data, samples) < exact


def test_shuffled_characters_keep_their_entropy_and_lose_the_data() -> None:
    shuffled = np.random.default_rng(3).permuted(DATA, axis=1)
    np.testing.assert_allclose(token_entropy(shuffled), token_entropy(DATA))
    assert kl(DATA, shuffled) > 5 * kl(DATA, OTHER)


def test_copies_of_one_sample_keep_their_entropy_and_lose_the_data() -> None:
    copies = np.repeat(DATA[:1], len(DATA), axis=0)
    assert token_entropy(copies).mean() == pytest.approx(token_entropy(DATA).mean(), rel=0.1)
    assert kl(DATA, copies) > 5 * kl(DATA, OTHER)
    assert word_entropy(decode(copies)) < word_entropy(decode(DATA)) - 1
    assert distinct_n(decode(copies)) < 0.01 < 0.9 < distinct_n(decode(DATA))


def test_word_entropy_and_distinct_ngrams_by_hand() -> None:
    texts = ["cut a b a b end", "cut b end"]
    assert word_entropy(texts) == pytest.approx(-(0.4 * np.log(0.4) + 0.6 * np.log(0.6)))
    assert distinct_n(texts, 2) == 2 / 3
    assert distinct_n(texts, 1) == 2 / 5
    assert np.isnan(distinct_n(texts, 5))
    assert np.isnan(word_entropy(["cut end"]))


def test_arguments_out_of_range_are_named() -> None:
    counts = ngram_counts(DATA)
    with pytest.raises(ValueError, match="`mixture` must be in"):
        ngram_kl(counts, counts, mixture=0)
    with pytest.raises(ValueError, match="at least one n-gram"):
        ngram_kl(counts, counts * 0)
    with pytest.raises(ValueError, match="the shape of `data`"):
        ngram_kl(counts, counts[1:])
    with pytest.raises(ValueError, match=r"`tokens` must be in 0..26, got 0..27"):
        ngram_counts(np.array([0, 1, 2, 27]))
    with pytest.raises(ValueError, match="rows of at least 4"):
        ngram_counts(DATA[:, :3])
    with pytest.raises(ValueError, match=r"at most 2\^26"):
        ngram_counts(DATA, vocab_size=50_257)
    with pytest.raises(ValueError, match="`n` must be at least 1"):
        distinct_n([], 0)
    with pytest.raises(ValueError, match="`tokens` must be"):
        token_entropy(DATA[0])
