"""Long documents are cut where it changes no token."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hubs
import numpy as np
import pytest
import tokenizers

import selfspec as ss
from selfspec.cli import main
from selfspec.data import documents, pieces
from selfspec.data.bpe import END, BPETokenizer, train_bpe
from selfspec.data.corpus import open_corpus
from selfspec.data.held_out import Blocks, LastDocuments
from selfspec.data.jsonl import read_jsonl
from selfspec.data.texts import read_texts
from selfspec.data.tokenizers import CharTokenizer
from selfspec.recipes.rows import text_rows

library: Any = tokenizers
EXCERPT = Path(__file__).parent / "data" / "books-excerpt.jsonl.xz"
BOOKS = [text[:30_000] for text in read_jsonl(EXCERPT)][:2]
BPE = train_bpe(BOOKS, 500, progress=False)
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def made(pre: Any) -> BPETokenizer:
    """A BPE that divides text in this way before it merges."""
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer, inner.decoder = pre, library.decoders.ByteLevel()
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    trainer = library.trainers.BpeTrainer(
        vocab_size=700, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([*BOOKS, noise(0), "Oh!\n" * 500], trainer)
    return BPETokenizer(inner.to_str())


def byte_level(**options: bool) -> Any:
    return library.pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


def llama() -> BPETokenizer:
    """Punctuation takes the line feeds behind it along."""
    split = library.pre_tokenizers.Split(library.Regex(LLAMA), "isolated")
    return made(library.pre_tokenizers.Sequence([split, byte_level(use_regex=False)]))


TOKENIZERS: dict[str, Callable[[], BPETokenizer | CharTokenizer]] = {
    "gpt2": lambda: BPE,
    "llama": llama,
    "prefix": lambda: made(byte_level(add_prefix_space=True)),
    "27 symbols": CharTokenizer,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a thousand characters."""
    monkeypatch.setattr(pieces, "PIECE", 1000)
    monkeypatch.setattr(pieces, "NEAR", 100)
    monkeypatch.setattr(documents, "TASK", 3000)


def noise(seed: int, size: int = 20_000) -> str:
    """All that divides words, in any order."""
    parts = ["\n", "\n\n", "\r\n", " ", "  ", "\t", ".", "?\n", "a", "The", " cat", "ß", "\u00a0",
             "7", "1234", "'s", "é", "字", "🙂", END, "\u2028", "e\u0301", "\x1c"]  # fmt: skip
    return "".join(random.Random(seed).choices(parts, k=size // 2))


def cut(text: str, seed: int = 0) -> Iterator[str]:
    """A text as parts that end anywhere."""
    draw, at = random.Random(seed), 0
    while at < len(text):
        size = draw.choice([0, 1, 30, 700, 1500])
        yield text[at : at + size]
        at += size


def ids(texts: list[Any], tokenizer: Any, **options: Any) -> list[int]:
    return np.concatenate(list(documents.encode(texts, tokenizer, **options))).tolist()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_have_the_tokens_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch):
    tokenizer = TOKENIZERS[name]()
    texts = [*BOOKS, noise(1), "", "short", noise(2)]
    found = ids(texts, tokenizer)
    read = ids([cut(text) for text in texts], tokenizer)
    several = len(list(documents.encode(texts, tokenizer)))
    monkeypatch.setattr(pieces, "PIECE", 1 << 30)
    assert found == read == ids(texts, tokenizer)
    assert several > len(list(documents.encode(texts, tokenizer))) + 60


def test_not_every_blank_divides_every_text(monkeypatch: pytest.MonkeyPatch):
    """What the check is for: Llama's punctuation takes line feeds along."""
    tokenizer, text = llama(), "Oh!\n" * 2000
    whole = tokenizer.encode_documents([text])[0].tolist()
    assert ids([text], tokenizer) == whole
    assert len(list(documents.encode([text], tokenizer))) == 1  # there is no place to cut
    monkeypatch.setattr(pieces, "_apart", lambda *_: True)
    assert ids([text], tokenizer) != whole


def test_a_place_is_tried_with_what_stands_behind_it():
    def encode(text: str) -> np.ndarray:  # "hey !" is one token
        return np.array([hash(word) for word in re.findall(r"hey !|\S+|\s+", text)])

    text = "hey " * 500
    found = [piece for piece, _ in pieces.pieces([text, "!" * 2000], encode)]
    assert len(found) > 1
    whole = encode(text + "!" * 2000)
    assert np.array_equal(np.concatenate(list(map(encode, found))), whole)


def test_few_places_are_tried(monkeypatch: pytest.MonkeyPatch):
    tried = []
    monkeypatch.setattr(pieces, "_apart", lambda *near: tried.append(near))
    assert len(list(pieces.pieces("a b " * 1250, BPE.encode))) == 1
    assert len(tried) == pieces.TRIES * 5  # of five thousand characters


def test_the_tokenizer_is_trained_on_the_same_words():
    texts = [noise(seed) for seed in range(4)]
    divided = [piece for text in texts for piece, _ in pieces.pieces(text)]
    assert len(divided) > 60
    alike = [train_bpe(x, 300, progress=False).to_config() for x in (texts, divided)]
    assert alike[0] == alike[1]


@pytest.mark.parametrize("document", ["x" * 9000, "\u00a0 \n" * 3000, ""])
def test_what_cannot_be_cut_stays_whole(document: str):
    assert list(pieces.pieces(document)) == [(document, True)]


@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer()], ids=["bpe", "27 symbols"])
def test_a_long_document_is_one_to_what_counts_documents(tokenizer: Any):
    texts = ["one", BOOKS[0], "two", BOOKS[1]]
    rows = list(documents.encode(texts, tokenizer, whole=True))
    held: list[np.ndarray] = []
    assert LastDocuments.whole
    assert not Blocks.whole
    rest = list(LastDocuments(1).rest(iter(rows), held))
    assert [len(rows), len(rest), len(held)] == [4, 3, 1]
    assert np.concatenate([*rest, *held]).tolist() == ids(texts, tokenizer)


def test_one_large_file_is_read_in_parts_and_encoded_by_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source, text = tmp_path / "source", noise(3, 40_000)
    source.mkdir()
    (source / "all.txt").write_bytes(text.encode())
    (tmp_path / "bpe.json").write_text(BPE.to_config()["tokenizer"])
    monkeypatch.setattr("selfspec.data.packed._BLOCK", 333)  # in the midst of a character
    (read,) = map(list, read_texts([source / "all.txt"]))
    assert max(map(len, read)) <= 333
    assert "".join(read) == text
    command = ["prepare", "texts", "--source", str(source), "--bpe", str(tmp_path / "bpe.json")]
    for workers in (1, 2):
        more = ["--workers", str(workers), "--out", str(tmp_path / str(workers))]
        assert main([*command, *more]) == 0
        store = open_corpus(tmp_path / str(workers), verify=True)[1]["train"]
        assert store.tokens.tolist() == BPE.encode_documents([text])[0].tolist()


def pieces_of_words() -> Any:
    """BERT's tokenizer: spaces and case are lost, what it does not know is one token."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "##a", "##e", "the", "."]
    return hubs.hf.BertTokenizer(vocab={name: i for i, name in enumerate(names)})


@pytest.mark.parametrize("tokenizer", [hubs.tokenizer, pieces_of_words])
@pytest.mark.parametrize("room", [7, 64])
def test_rows_of_a_long_text_are_those_of_the_whole(
    room: int, tokenizer: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
):
    model = ss.attach_head(hubs.bert(), heads=2, tokenizer=tokenizer())
    lines = [hubs.LETTERS[k % 20 :] + "\n" for k in range(400)]
    texts = ["".join(lines), "", "ACD", "".join(lines[:300])]
    if tokenizer is pieces_of_words:
        texts += [noise(4), BOOKS[0]]
    parts = [row.tolist() for row in text_rows(model, [cut(text) for text in texts], room)]
    monkeypatch.setattr(pieces, "PIECE", 1 << 30)
    assert parts == [row.tolist() for row in text_rows(model, texts, room)]
