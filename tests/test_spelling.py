"""Spelling accuracy: the protocol word by word, and a vocabulary that does not depend on cuts."""

from collections import Counter

import numpy as np
import pytest

from selfspec.metrics import (
    count_words,
    decoded,
    load_vocabulary,
    save_vocabulary,
    spelling_accuracy,
    spelling_counts,
    vocabulary,
)

TEXT = "the cat saw the rat and the rat saw a cat  and then the end"
ALPHABET = np.array(list(" abcdefghijklmnopqrstuvwxyz"))


def decode(ids: np.ndarray) -> str:
    return "".join(ALPHABET[ids])


def test_only_words_that_occur_twice_are_known() -> None:
    assert vocabulary(count_words([TEXT])) == {"the", "cat", "saw", "rat", "and"}
    assert vocabulary(count_words([TEXT]), minimum=1) == set(TEXT.split())


@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
def test_the_counts_do_not_depend_on_where_the_text_is_cut(size: int) -> None:
    tokens = np.searchsorted(ALPHABET, list(TEXT)).astype(np.uint8)
    assert count_words(decoded(tokens, decode, size)) == Counter(TEXT.split())


def test_first_and_last_word_of_a_sequence_do_not_count() -> None:
    words = {"cat", "saw"}
    assert spelling_accuracy(["xx cat saw yy"], words) == 1.0
    assert spelling_accuracy(["cat xx saw"], words) == 0.0
    assert spelling_accuracy(["cat xx saw saw"], words) == 0.5
    assert spelling_accuracy([" xx cat saw yy "], words) == 1.0


def test_accuracy_pools_the_words_of_all_samples() -> None:
    texts = ["a cat b", "a x y cat cat b", "too short", ""]
    known, total = spelling_counts(texts, {"cat"})
    assert known.tolist() == [1, 2, 0, 0]
    assert total.tolist() == [1, 4, 0, 0]
    assert spelling_accuracy(texts, {"cat"}) == 3 / 5
    assert np.isnan(spelling_accuracy(["too short"], {"cat"}))


@pytest.mark.parametrize("name", ["words.txt", "words.txt.xz"])
def test_a_vocabulary_survives_the_disk(tmp_path, name: str) -> None:
    words = {decode(ids) for ids in np.random.default_rng(0).integers(1, 27, (5000, 6))}
    save_vocabulary(tmp_path / name, words)
    assert load_vocabulary(tmp_path / name) == words
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert ((tmp_path / name).stat().st_size < 7 * len(words)) == name.endswith(".xz")


def test_the_least_count_is_one() -> None:
    with pytest.raises(ValueError, match="`minimum` must be at least 1, got 0"):
        vocabulary(Counter(), minimum=0)
