import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec.cli import main
from selfspec.data import documents, huggingface, jsonl, texts
from selfspec.data.bpe import train_bpe
from selfspec.data.corpus import open_corpus
from selfspec.data.held_out import Blocks, LastDocuments
from selfspec.data.loader import TokenStore
from selfspec.data.tokenizers import CharTokenizer, normalise

EXCERPT = Path(__file__).parent / "data" / "books-excerpt.jsonl.xz"
BOOKS = [text[:20_000] for text in jsonl.read_jsonl(EXCERPT)]
BPE = train_bpe(BOOKS, 300, progress=False)


def digests(folder: Path) -> dict[str, str]:
    return {split: store.sha256 for split, store in open_corpus(folder, verify=True)[1].items()}


# --- packing and processes ------------------------------------------------------------------


def test_documents_are_packed_with_the_end_of_text_behind_each(tmp_path):
    splits = {"train": ["one", f"{BPE.decode([BPE.end])} two"], "test": ["drei ß"]}
    documents.prepare(splits, tmp_path / "c", BPE)
    tokenizer, stores = open_corpus(tmp_path / "c", verify=True)
    assert stores["train"].tokens.dtype == np.uint16
    rows = [BPE.encode_documents([text])[0] for text in splits["train"]]
    assert stores["train"].tokens.tolist() == np.concatenate(rows).tolist()
    assert (stores["train"].tokens == BPE.end).sum() == 2
    assert tokenizer.decode(stores["test"].tokens) == "drei ß<|endoftext|>"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer()], ids=["bpe", "27 symbols"])
def test_empty_documents_are_none(tmp_path, monkeypatch, tokenizer, workers):
    monkeypatch.setattr(documents, "TASK", 2)
    texts = ["", "one", "", iter(()), iter(["", "two"]), "three", ""]
    stores = documents.prepare(
        {"train": texts}, tmp_path / "c", tokenizer, LastDocuments(2), workers
    )
    found = [tokenizer.decode(stores[split].tokens) for split in ("train", "valid")]
    end = tokenizer is BPE
    assert found == (
        ["one<|endoftext|>", "two<|endoftext|>three<|endoftext|>"] if end else ["one", " two three"]
    )
    with pytest.raises(ValueError, match="must hold at least one token"):
        documents.prepare({"train": [""]}, tmp_path / "none", tokenizer)


@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer()], ids=["bpe", "27 symbols"])
def test_processes_change_nothing(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(documents, "TASK", 3000)  # some fifty tasks
    pieces = [text[at : at + 700] for text in BOOKS for at in range(0, len(text), 700)]
    for workers in (1, 2):
        splits = {"train": pieces, "valid": BOOKS[:1]}
        documents.prepare(splits, tmp_path / str(workers), tokenizer, workers=workers)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    _, stores = open_corpus(tmp_path / "1")
    if tokenizer is not BPE:
        whole = " ".join(filter(None, map(normalise, pieces)))
        assert tokenizer.decode(stores["train"].tokens) == whole


def test_no_more_is_read_than_the_processes_need(monkeypatch):
    monkeypatch.setattr(documents, "TASK", 1)
    read = []

    def endless():
        while True:
            read.append(1)
            yield "a document"

    stream = documents.encode(endless(), BPE, workers=2)
    for _ in range(10):
        next(stream)
    stream.close()
    assert 10 < len(read) < 30


def kill(texts):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(texts):
    raise ValueError("`text` is bad")


@pytest.mark.parametrize(("work", "error"), [(kill, BrokenProcessPool), (fail, ValueError)])
def test_what_ends_a_process_leaves_the_old_corpus(tmp_path, monkeypatch, work, error):
    documents.prepare({"train": ["old"]}, tmp_path / "c", BPE)
    before = digests(tmp_path / "c")
    monkeypatch.setattr(documents, "TASK", 1)
    monkeypatch.setattr(documents, "_work", work)
    with pytest.raises(error):
        documents.prepare({"train": ["new"] * 9}, tmp_path / "c", BPE, workers=2)
    assert digests(tmp_path / "c") == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


ENDLESS = """
import itertools, multiprocessing
from selfspec.data import documents
from selfspec.data.tokenizers import CharTokenizer
if __name__ == "__main__":
    documents.TASK = 1
    for _ in documents.encode(itertools.repeat("a document"), CharTokenizer(), workers=2):
        print(multiprocessing.active_children()[0].pid, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_processes_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    root = Path(documents.__file__).parents[2]
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True,
                           env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip
    assert run.stdout is not None
    child = int(run.stdout.readline())
    run.kill()
    run.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("a process outlived its parent")


def test_bad_requests_are_named(tmp_path):
    with pytest.raises(ValueError, match="`workers` must be at least 1, got 0"):
        documents.prepare({"train": ["a"]}, tmp_path / "c", BPE, workers=0)
    for splits in ({"train": ["a"], "valid": ["b"]}, {"test": ["a"]}):
        with pytest.raises(ValueError, match="`hold_out` needs a split 'train' and no 'valid'"):
            documents.prepare(splits, tmp_path / "c", BPE, LastDocuments(1))


def test_a_store_of_another_tokenizer_is_noticed(tmp_path):
    made = {"letters": CharTokenizer(), "words": BPE}
    for name, tokenizer in made.items():
        documents.prepare({"train": ["a"], "test": ["b"]}, tmp_path / name, tokenizer)
    for into, other, sizes in [("words", "letters", (300, 27)), ("letters", "words", (27, 300))]:
        mixed = shutil.copytree(tmp_path / into, tmp_path / f"{into}-mixed")
        for file in (tmp_path / other).glob("test.bin*"):
            shutil.copy(file, mixed)
        rule = rf"its tokenizer's {sizes[0]} tokens, got .*test\.bin of {sizes[1]}"
        with pytest.raises(ValueError, match=rule):
            open_corpus(mixed)


def test_splits_of_another_corpus_do_not_stay(tmp_path):
    documents.prepare({"train": ["a", "b"]}, tmp_path / "c", BPE, LastDocuments(1))
    before = digests(tmp_path / "c")
    with pytest.raises(ValueError, match=r"must hold no other splits, got \['valid'\]"):
        documents.prepare({"train": ["a", "b"]}, tmp_path / "c", BPE)
    assert digests(tmp_path / "c") == before


@pytest.mark.parametrize(("damage", "rule"), [(lambda b: b[:-1], "bytes, not"),
                                              (lambda b: b"\0" + b[1:], "SHA-256")])  # fmt: skip
def test_a_damaged_store_is_one_clear_error(tmp_path, damage, rule):
    documents.prepare({"train": ["some text"]}, tmp_path / "c", BPE)
    path = tmp_path / "c" / "train.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"`path` must be a token store, got .*: .*{rule}"):
        open_corpus(tmp_path / "c", verify=True)


# --- what is held out -----------------------------------------------------------------------

rows = st.lists(st.lists(st.integers(0, 9), max_size=12).map(np.array), max_size=30)


def divided(rule, documents) -> tuple[list, list]:
    held = []
    return list(rule.rest(iter(documents), held)), held


@given(rows, st.integers(1, 8))
def test_the_last_documents_are_held_out(documents, count):
    rule = LastDocuments(count)
    if len(documents) <= count:
        with pytest.raises(ValueError, match=f"`count` .* got {count} to hold out of"):
            divided(rule, documents)
        return
    rest, held = divided(rule, documents)
    assert len(held) == count
    for one, other in zip(documents, [*rest, *held], strict=True):
        assert one is other


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 7), st.integers(2, 5))
def test_one_block_of_every_few_is_held_out(sizes, length, every):
    ends = np.cumsum([0, *sizes])
    documents = [np.arange(a, b) for a, b in pairwise(ends)]
    rule, group = Blocks(length, every, seed=1), length * every
    if ends[-1] < group:
        with pytest.raises(ValueError, match=f"`every` must be at most {ends[-1] // length} "):
            divided(rule, documents)
        return
    rest, held = divided(rule, documents)
    assert [len(block) for block in held] == [length] * (ends[-1] // group)
    for number, block in enumerate(held):
        assert block[0] // group == number
        assert block[0] % length == 0
        assert block.tolist() == list(range(block[0], block[0] + length))
    left = np.concatenate(rest).tolist()
    assert left == sorted(left)
    assert sorted([*left, *np.concatenate(held)]) == list(range(ends[-1]))


def test_blocks_are_drawn_by_the_seed():
    everything = [np.arange(4000)]
    starts = [[b[0] for b in divided(Blocks(4, 10, seed), everything)[1]] for seed in (0, 0, 1)]
    assert starts[0] == starts[1] != starts[2]
    assert len({start % 40 for start in starts[0]}) == 10


def test_what_is_held_out_becomes_valid(tmp_path):
    stores = documents.prepare(
        {"train": ["a", "b", "c"], "test": ["d"]}, tmp_path / "c", BPE, LastDocuments(2)
    )
    found = {split: BPE.decode(store.tokens).split("<|endoftext|>") for split, store in
             stores.items()}  # fmt: skip
    assert found == {"train": ["a", ""], "valid": ["b", "c", ""], "test": ["d", ""]}
    with pytest.raises(ValueError, match="`every` must be at least 2, got 1"):
        Blocks(every=1)
    with pytest.raises(ValueError, match="`count` must be at least 1, got 0"):
        LastDocuments(0)


# --- sources --------------------------------------------------------------------------------


def test_folders_of_text(tmp_path):
    for name, text in {"b.txt": "ß\r\n", "a/z.txt": "", "notes.md": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(b"\xef\xbb\xbfpacked\n\nlines"))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"too"))
    found = texts.find_texts(tmp_path, ("train", "valid"))
    assert [path.name for path in found.pop("train")] == ["z.txt", "b.txt", "c.txt.xz", "d.txt.gz"]
    assert found == {}
    files = texts.find_texts(tmp_path, ("train",))["train"]
    assert list(map("".join, texts.read_texts(files))) == ["", "ß\r\n", "packed\n\nlines", "too"]
    (tmp_path / "valid").mkdir()  # whose texts are not to be trained on
    with pytest.raises(ValueError, match=r"must hold .txt files, got none in .*train"):
        texts.find_texts(tmp_path, ("train", "valid"))
    (tmp_path / "train").mkdir()
    for broken in (b"\xff", b"cut off\xc3"):
        (tmp_path / "train" / "e.txt").write_bytes(broken)
        found = texts.find_texts(tmp_path, ("train", "valid"))
        assert [path.name for path in found["train"]] == ["e.txt"]
        with pytest.raises(ValueError, match=r"e\.txt: must be UTF-8"):
            list(map("".join, texts.read_texts(found["train"])))
    with pytest.raises(ValueError, match="`source` must be a folder"):
        texts.find_texts(tmp_path / "nowhere", ("train",))


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    """A dataset on disk; what reads it is what reads one of the Hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, count in {"train": 2500, "validation": 3}.items():
        rows = (json.dumps({"text": f"{split} {i}", "n": i}) + "\n" for i in range(count))
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset(dataset, streaming):
    assert huggingface.find_splits(str(dataset)) == {"train": "train", "valid": "validation"}
    read = list(huggingface.read_dataset(str(dataset), "train", streaming=streaming))
    assert read == [f"train {i}" for i in range(2500)]
    with pytest.raises(ValueError, match="`field` must be a column of text, got 'n' of"):
        list(huggingface.read_dataset(str(dataset), "train", "n", streaming=streaming))
    with pytest.raises(ValueError, match="`field` must be a column of text, got 'x' of"):
        list(huggingface.read_dataset(str(dataset), "train", "x", streaming=streaming))


def test_a_dataset_that_is_not_there(dataset):
    with pytest.raises(ValueError, match="`source` must be a dataset, got"):
        huggingface.find_splits(str(dataset.parent / "nowhere"))
    (dataset / "train.jsonl").unlink()
    with pytest.raises(ValueError, match="must have a split 'train', got"):
        huggingface.find_splits(str(dataset))


@pytest.mark.parametrize("more", [[], ["--streaming"]], ids=["downloaded", "streamed"])
def test_openwebtext_from_disk(dataset, tmp_path, more, capsys):
    (dataset / "validation.jsonl").unlink()
    (tmp_path / "bpe.json").write_text(BPE.to_config()["tokenizer"])
    command = ["prepare", "openwebtext", "--source", str(dataset), "--bpe",
               str(tmp_path / "bpe.json"), "--out", str(tmp_path / "out"), *more]  # fmt: skip
    assert main(command) == 2
    assert "got 100000 to hold out of 2500" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--hold-out-documents", "5", "--limit", "20"]) == 0
    tokenizer, stores = open_corpus(tmp_path / "out")
    ends = {split: tokenizer.decode(store.tokens).count("<|endoftext|>")
            for split, store in stores.items()}  # fmt: skip
    assert ends == {"train": 15, "valid": 5}
    assert tokenizer.decode(stores["valid"].tokens).startswith("train 15<|endoftext|>train 16")


def test_a_store_that_was_written_by_documents_is_a_store(tmp_path):
    store = documents.prepare({"train": BOOKS}, tmp_path / "c", BPE)["train"]
    assert isinstance(store, TokenStore)
    assert BPE.count_characters(store.tokens) == sum(len(t.replace("\r\n", "\n")) for t in BOOKS)
