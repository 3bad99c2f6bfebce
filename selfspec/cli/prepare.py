"""`selfspec prepare`: a corpus to token files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfspec.checks import existing_folder, whole
from selfspec.cli.common import Run, check_folder, note, to_json
from selfspec.files import write_json

if TYPE_CHECKING:
    from selfspec.data.bpe import BPETokenizer
    from selfspec.data.held_out import HoldOut
    from selfspec.data.loader import TokenStore
    from selfspec.data.pieces import Document
    from selfspec.data.tokenizers import CharTokenizer

SPLITS = ("train", "valid", "test")
SUBWORDS = ("jsonl", "texts", "dataset", "openwebtext")
MDLM_HELD_OUT = 100_000
"""Documents of OpenWebText, the last ones."""

Documents = Callable[[], "Iterable[Document]"]
"""Reads a split from its start, each time."""


@dataclass(frozen=True)
class Text:
    """How the documents of jsonl, texts, dataset and openwebtext become tokens."""

    bpe: str | None = None
    """a byte-level BPE: name on the Hub, file or folder; else 27 symbols, for openwebtext gpt2."""
    vocab_size: int | None = None
    """train a BPE of this many tokens on the train split instead."""
    field: str = "text"
    """which field of a JSON document, or column of a dataset, holds its text."""
    subset: str | None = None
    """of a dataset, where it has several configurations."""
    streaming: bool = False
    """read a dataset over the network without downloading it first."""
    limit: int | None = None
    """at most this many documents of each split."""
    hold_out_documents: int | None = None
    """the last so many train documents become the valid split; 100,000 for openwebtext."""
    hold_out_blocks: int | None = None
    """one block of 1,024 tokens in so many becomes the valid split; 50 holds 2 % out."""
    workers: int | None = None
    """processes; as many as there are cores by default."""

    def check(self, corpus: str) -> None:
        """Raises a `ValueError` for what cannot be, before anything is read."""
        if corpus not in SUBWORDS and (self.bpe, self.vocab_size) != (None, None):
            raise ValueError(f"`bpe` and `vocab_size` go with {', '.join(SUBWORDS)}, got {corpus}")
        if self.bpe is not None and self.vocab_size is not None:
            raise ValueError("give `bpe` or `vocab_size`, got both")
        if self.hold_out_documents is not None and self.hold_out_blocks is not None:
            raise ValueError("give `hold_out_documents` or `hold_out_blocks`, got both")
        least = {"limit": 1, "hold_out_documents": 1, "hold_out_blocks": 2, "workers": 1}
        for name, low in least.items():
            if (value := getattr(self, name)) is not None:
                whole(name, value, low)

    def reader(self, read: Documents) -> Documents:
        """No more than the limit."""
        return lambda: islice(read(), self.limit)

    def tokenizer(self, train: Documents, default: str | None) -> BPETokenizer | CharTokenizer:
        """Loaded, trained, or the 27 symbols."""
        from selfspec.data.bpe import load_bpe, train_bpe
        from selfspec.data.pieces import pieces
        from selfspec.data.tokenizers import CharTokenizer

        if self.vocab_size is not None:
            texts = (text for document in train() for text, _ in pieces(document))
            return train_bpe(texts, self.vocab_size)
        name = self.bpe or default
        return CharTokenizer() if name is None else load_bpe(name)

    def hold_out(self, default: int | None, seed: int) -> HoldOut | None:
        """What of train becomes valid; `default` documents unless told otherwise."""
        from selfspec.data.held_out import Blocks, LastDocuments

        if self.hold_out_blocks is not None:
            return Blocks(every=self.hold_out_blocks, seed=seed)
        count = default if self.hold_out_documents is None else self.hold_out_documents
        return None if count is None else LastDocuments(count)


def prepare(
    corpus: Literal[
        "books27", "text8", "jsonl", "texts", "openwebtext", "dataset", "proteins", "fasta"
    ],
    /,
    run: Run,
    text: Text,
    out: Path,
    source: str | None = None,
    alphabet: Literal["amino-acids", "esm"] = "amino-acids",
    unknown: Literal["skip", "refuse", "as-x"] = "skip",
    relatives: float = 0.0,
) -> None:
    """Turn a corpus into token files for training: train.bin, valid.bin, test.bin.

    Args:
        corpus: books27 and jsonl read a folder with train*.jsonl, valid*.jsonl and test*.jsonl,
            which may end in .xz or .gz; books27 needs all three. texts reads the .txt files of a
            folder, a document each, by its subfolders train, valid and test if it has them. dataset
            and openwebtext read a text dataset of the Hugging Face Hub. text8 reads text8.zip.
            proteins reads FASTA and holds clusters of similar sequences out, by the seed. fasta
            reads a folder with train*.fasta, valid*.fasta and test*.fasta, or another suffix of
            FASTA, which may be packed too.
        run: device plays no part here.
        text: how documents become tokens.
        out: the folder to write; it may hold what the same command has prepared before, which is
            then prepared anew, and no other corpus.
        source: the folder; for a dataset its name, also with "@revision", or a folder; for text8
            the zip file, the plain file, or a URL of either; for proteins a file, or a pattern of
            several. Only openwebtext needs none.
        alphabet: of proteins: the twenty amino acids, or the vocabulary of ESM-2.
        unknown: what becomes of a protein with a residue outside the alphabet.
        relatives: of proteins: this share of all is held out at random too, each with relatives in
            training: relatives.bin.
    """
    if source is None and corpus != "openwebtext":
        raise ValueError(f"`source` must be given for {corpus}, got none")
    text.check(corpus)
    check_folder(out)
    asked = {"corpus": corpus, "source": source, "seed": run.seed, **asdict(text),
             "alphabet": alphabet, "unknown": unknown, "relatives": relatives}  # fmt: skip
    del asked["workers"]  # however many, the corpus is the same
    with recorded(out, asked):
        if corpus in ("proteins", "fasta"):
            return prepare_proteins(corpus, run, str(source), out, alphabet, unknown, relatives)
        if corpus != "text8":
            return prepare_documents(corpus, run, text, source, out)
        from selfspec.data import text8

        stores = text8.prepare(str(source), out)
        report(run, out, "characters", {split: len(store) for split, store in stores.items()})


@contextmanager
def recorded(out: Path, asked: dict[str, Any]) -> Iterator[None]:
    """`prepare.json` says what was asked of the corpus that the block prepares.

    Raises:
        ValueError: the folder holds a corpus of another command.
    """
    record = out / "prepare.json"
    same = record.exists() and json.loads(record.read_bytes()) == asked
    if (out / "tokenizer.json").exists() and not same:
        raise ValueError(f"`out` must hold no other corpus, got {out}: remove that one first")
    yield
    write_json(record, asked)


def prepare_documents(corpus: str, run: Run, text: Text, source: str | None, out: Path) -> None:
    """Documents to stores of packed tokens."""
    from selfspec.data import documents

    readers = {split: text.reader(read) for split, read in sources(corpus, source, text).items()}
    web = corpus == "openwebtext"
    hold_out = text.hold_out(MDLM_HELD_OUT if web else None, run.seed)
    documents.check_hold_out(readers, hold_out)  # training a tokenizer takes minutes
    tokenizer = text.tokenizer(readers["train"], "gpt2" if web else None)
    stores = documents.prepare(
        {split: read() for split, read in readers.items()},
        out,
        tokenizer,
        hold_out,
        documents.cores() if text.workers is None else text.workers,
    )
    sizes = {split: len(store) for split, store in stores.items()}
    from selfspec.data.bpe import BPETokenizer

    if isinstance(tokenizer, BPETokenizer):
        return report(run, out, "tokens", sizes, per_token(tokenizer, stores))
    report(run, out, "characters", sizes)


def sources(corpus: str, source: str | None, text: Text) -> dict[str, Documents]:
    """What reads the documents of each split."""
    from selfspec.data import huggingface, jsonl, texts

    if corpus in ("dataset", "openwebtext"):
        name = source or huggingface.OPENWEBTEXT
        splits = huggingface.find_splits(name, text.subset)
        options = {"subset": text.subset, "streaming": text.streaming, "progress": True}
        return {split: partial(huggingface.read_dataset, name, theirs, text.field, **options)
                for split, theirs in splits.items()}  # fmt: skip
    folder = Path(str(source))
    if corpus == "texts":
        files = texts.find_texts(folder, SPLITS)
        return {split: partial(texts.read_texts, found, True) for split, found in files.items()}
    files = find_splits(folder, lambda path: ".jsonl" in path.name)
    for split in SPLITS if corpus == "books27" else SPLITS[:1]:
        if split not in files:
            raise ValueError(f"`source` must hold files {split}*.jsonl, got none in {source}")
    return {split: partial(jsonl.read_jsonl, found, text.field, True)
            for split, found in files.items()}  # fmt: skip


def per_token(tokenizer: BPETokenizer, stores: dict[str, TokenStore]) -> dict[str, float]:
    """Characters a token, of each split."""
    return {split: tokenizer.count_characters(store.tokens) / len(store)
            for split, store in stores.items()}  # fmt: skip


def prepare_proteins(
    corpus: str, run: Run, source: str, out: Path, alphabet: str, unknown: str, relatives: float
) -> None:
    """FASTA to ragged stores."""
    from selfspec.data import fasta
    from selfspec.data.tokenizers import AMINO_ACIDS, ESM_ALPHABET, ProteinTokenizer

    tokenizer = ProteinTokenizer(ESM_ALPHABET if alphabet == "esm" else AMINO_ACIDS)
    policy = fasta.Policy(unknown=fasta.Unknown(unknown))
    if corpus == "proteins":
        stores, skipped = fasta.prepare_clustered(
            source, out, tokenizer, policy, run.seed, True, relatives
        )
    else:
        splits = find_splits(Path(source), fasta.is_fasta)
        if "train" not in splits:
            raise ValueError(f"`source` must hold files train*.fasta, got none in {source}")
        stores, skipped = fasta.prepare(splits, out, tokenizer, policy)
    report(run, out, "sequences", {split: len(store) for split, store in stores.items()})
    if left_out := sum(skipped.values()):
        note(f"{left_out:,} sequences with residues outside the alphabet were left out")


def report(
    run: Run, out: Path, unit: str, sizes: dict[str, int], each: dict[str, float] | None = None
) -> None:
    """Print what was written, with the characters `each` token has where that is not 1."""
    if run.json:
        more = {} if each is None else {"characters_per_token": each}
        return print(to_json({"out": str(out), unit: sizes, **more}))
    for split, size in sizes.items():
        more = "" if each is None else f"{each[split]:8.3f} characters a token"
        print(f"{split:6}{size:14,} {unit}{more}")


def find_splits(source: Path, fits: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """The files of each split in a folder, such as train*.jsonl, as far as they fit."""
    existing_folder("source", source)
    files = {split: sorted(filter(fits, source.glob(f"{split}*"))) for split in SPLITS}
    return {split: found for split, found in files.items() if found}
