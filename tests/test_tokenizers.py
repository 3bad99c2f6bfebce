import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec.data.tokenizers import TEXT8_ALPHABET, CharTokenizer, normalise

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
alphabets = st.text(min_size=1, max_size=40).map(lambda t: "".join(dict.fromkeys(t)))


@given(st.text(alphabet=TEXT8_ALPHABET))
def test_decode_inverts_encode(text):
    tokenizer = CharTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.shape == (len(text),)
    assert tokenizer.decode(ids) == text


@settings(deadline=None)
@given(st.data(), alphabets)
def test_any_alphabet_is_a_bijection(data, alphabet):
    tokenizer = CharTokenizer(alphabet)
    everything = np.arange(tokenizer.vocab_size)
    assert np.array_equal(tokenizer.encode(alphabet), everything)
    text = data.draw(st.text(alphabet=alphabet))
    assert tokenizer.decode(tokenizer.encode(text), mask_char="\U0010fffd") == text


@given(st.lists(st.integers(0, 27)))
def test_encode_inverts_decode_with_masks(ids):
    tokenizer = CharTokenizer()
    text = tokenizer.decode(ids)
    assert text.count("_") == ids.count(tokenizer.mask_id)
    assert tokenizer.encode(text, mask_char="_").tolist() == ids


def test_ids_are_those_of_text8():
    tokenizer = CharTokenizer()
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (27, 27)
    assert tokenizer.encode(" az").tolist() == [0, 1, 26]


@given(st.text(alphabet=TEXT8_ALPHABET), st.characters(exclude_characters=TEXT8_ALPHABET))
def test_first_foreign_character_is_named_with_its_index(head, bad):
    with pytest.raises(ValueError) as caught:
        CharTokenizer().encode(head + bad + "a\U0010ffff")
    assert f"got {bad!r} at index {len(head)}" in str(caught.value)


@pytest.mark.parametrize("alphabet", ["", "abca"])
def test_alphabet_must_be_distinct(alphabet):
    with pytest.raises(ValueError, match="`alphabet`"):
        CharTokenizer(alphabet)


@pytest.mark.parametrize("mask_char", ["", "a", "__"])
def test_mask_char_must_be_one_foreign_character(mask_char):
    with pytest.raises(ValueError, match="`mask_char`"):
        CharTokenizer().encode("abc", mask_char=mask_char)
    with pytest.raises(ValueError, match="`mask_char`"):
        CharTokenizer().decode([1, 2], mask_char=mask_char)


@pytest.mark.parametrize("ids", [[-1, 0], [0, 28], [[1, 2], [3, 4]]])
def test_decode_refuses_what_is_no_row_of_ids(ids):
    with pytest.raises(ValueError, match="`ids`"):
        CharTokenizer().decode(ids)


@settings(deadline=None)
@given(alphabets)
def test_config_round_trip(alphabet):
    config = CharTokenizer(alphabet).to_config()
    assert CharTokenizer.from_config(config).alphabet == alphabet


@pytest.mark.parametrize("config", [{}, {"kind": "bpe", "alphabet": "ab"}, {"kind": "char"}])
def test_foreign_config_is_refused(config):
    with pytest.raises(ValueError, match="`config`"):
        CharTokenizer.from_config(config)


def slow_normalise(text: str) -> str:
    """The rules of text8, one character at a time."""
    out = []
    for char in unicodedata.normalize("NFKD", text):
        if char in "0123456789":
            out.append(f" {WORDS[int(char)]} ")
        elif char.isascii() and char.isalpha():
            out.append(char.lower())
        elif not unicodedata.category(char).startswith("M"):
            out.append(" ")
    return " ".join("".join(out).split())


# The letters below are folded beyond NFKD, which the reference does not do.
@given(st.text(st.characters(exclude_characters="æœßøđðþłÆŒẞØĐÐÞŁ\u00adǣǽǿǢǼǾıﬂ", codec="utf-8")))
def test_normalise_follows_the_rules_character_by_character(text):
    assert normalise(text) == slow_normalise(text)


@given(st.text())
def test_normalise_is_idempotent_and_ends_in_the_alphabet(text):
    once = normalise(text)
    assert normalise(once) == once
    assert set(once) <= set(TEXT8_ALPHABET)
    assert "  " not in once
    assert once == once.strip()


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("", ""),
        ("Noli Me Tángere—José", "noli me tangere jose"),
        ("e\u0301te\u0301", "ete"),
        ("1984, 4,246,028", "one nine eight four four two four six zero two eight"),
        ("x2y", "x two y"),
        ("Æsop's Œuvre, Straße, Øre", "aesop s oeuvre strasse ore"),
        ("co\u00adoperate", "cooperate"),
        ("\ufeff  tabs\tand\r\nlines \x00", "tabs and lines"),
        ("½ ﬁn", "one two fin"),
    ],
)
def test_normalise_by_example(raw, plain):
    assert normalise(raw) == plain
