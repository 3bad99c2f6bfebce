import gzip
import json
import lzma
from pathlib import Path

import pytest

from selfspec.data.corpus import open_corpus
from selfspec.data.jsonl import find_files, prepare, read_jsonl
from selfspec.data.tokenizers import normalise

EXCERPT = Path(__file__).parent / "data" / "books-excerpt.jsonl.xz"
OPENERS = {"jsonl": open, "jsonl.xz": lzma.open, "jsonl.gz": gzip.open}


def lines(*documents):
    return b"".join(json.dumps(d, ensure_ascii=False).encode() + b"\n" for d in documents)


def write(path, data):
    suffix = path.name.split(".", 1)[1]
    with OPENERS[suffix](path, "wb") as file:
        file.write(data)
    return path


@pytest.mark.parametrize("suffix", OPENERS)
def test_every_packing_gives_the_same_texts(tmp_path, suffix):
    data = lines({"text": "Tángere 1887"}, {"text": ""}) + b"\n" + lines({"text": "two\nlines"})
    path = write(tmp_path / f"a.{suffix}", data)
    assert list(read_jsonl(path)) == ["Tángere 1887", "", "two\nlines"]


def test_files_come_in_order_and_globs_sorted(tmp_path):
    for name in "cab":
        write(tmp_path / f"{name}.jsonl", lines({"body": name}))
    paths = [tmp_path / "c.jsonl", str(tmp_path / "[ab].jsonl")]
    assert list(read_jsonl(paths, field="body")) == ["c", "a", "b"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    write(tmp_path / "a[1].jsonl", lines({"text": "bracket"}))
    write(tmp_path / "a1.jsonl", lines({"text": "plain"}))
    assert list(read_jsonl(tmp_path / "a[1].jsonl")) == ["bracket"]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b"{'text': 1}\n", "not JSON"),
        (b'{"text": "\xff"}\n', "not JSON"),
        (b'["text"]\n', "a string in 'text'"),
        (b'{"title": "x"}\n', "a string in 'text'"),
        (b'{"text": 3}\n', "a string in 'text'"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, line, rule):
    path = write(tmp_path / "a.jsonl", lines({"text": "good"}) + line)
    texts = read_jsonl(path)
    assert next(texts) == "good"
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{rule}"):
        next(texts)


@pytest.mark.parametrize("suffix", ["jsonl.xz", "jsonl.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated_compression_is_never_a_short_corpus(tmp_path, suffix, kept):
    path = write(tmp_path / f"a.{suffix}", lines(*({"text": str(i**9)} for i in range(500))))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    rule = r"`paths` must hold at least one document|line \d+: broken compression"
    with pytest.raises(ValueError, match=rule):
        list(read_jsonl(path))


@pytest.mark.parametrize("suffix", ["jsonl.xz", "jsonl.gz"])
def test_what_is_not_compressed_at_all_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(lines({"text": "plain"}))
    with pytest.raises(ValueError, match="line 1: broken compression"):
        list(read_jsonl(path))


def test_an_empty_corpus_and_a_missing_file_are_refused(tmp_path):
    empty = write(tmp_path / "a.jsonl", b"\n\n")
    with pytest.raises(ValueError, match="at least one document"):
        list(read_jsonl(empty))
    with pytest.raises(ValueError, match="names none"):
        find_files([empty, tmp_path / "b-*.jsonl"])


def test_prepare_joins_normalised_documents_by_one_space(tmp_path):
    write(tmp_path / "t-0.jsonl", lines({"text": "It's 2."}, {"text": " ... "}, {"text": "Où?"}))
    write(tmp_path / "t-1.jsonl.gz", lines({"text": "END\n"}))
    write(tmp_path / "v.jsonl", lines({"text": "held out"}))
    splits = {"train": tmp_path / "t-*.jsonl*", "valid": [tmp_path / "v.jsonl"]}
    prepare(splits, tmp_path / "out", progress=False)
    tokenizer, stores = open_corpus(tmp_path / "out")
    assert tokenizer.decode(stores["train"].tokens) == "it s two ou end"
    assert tokenizer.decode(stores["valid"].tokens) == "held out"


def test_one_file_in_two_splits_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"text": "a"}))
    with pytest.raises(ValueError, match=r"`splits` must not share files, got .*a\.jsonl"):
        prepare({"train": path, "test": tmp_path / "*.jsonl"}, tmp_path / "out", progress=False)


def test_real_books_pass_through_unharmed(tmp_path):
    documents = list(read_jsonl(EXCERPT))
    stores = prepare({"train": EXCERPT}, tmp_path / "out", progress=False)
    tokenizer, _ = open_corpus(tmp_path / "out")
    text = tokenizer.decode(stores["train"].tokens)
    assert text == " ".join(map(normalise, documents))
    assert len(documents) == 8
    assert " four two four six zero two eight times " in text  # "4,246,028 times"
    assert "Doña" in "".join(documents)
    assert " dona " in text
