"""FASTA: sequences of residues, each behind a line with its name.

    >sp|P01308|INS_HUMAN Insulin        header: a name, then anything
    MALWMRLLPLLALLALWGPDPAAAFVNQ        residues, on one line or many
    HLCGSHLVEALYLVCGERGFFYTPKT*         "*" ends a translation, "-" and "." are gaps

`read_fasta` gives what stands in a file, letter for letter; a `Policy` says what becomes of lower
case, gaps, "*" and residues outside the alphabet. `prepare` turns files into ragged stores.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from selfspec.data.clusters import cluster, split
from selfspec.data.corpus import write_corpus
from selfspec.data.packed import (
    Paths,
    find_files,
    find_splits,
    packed,
    read_lines,
    suffixes,
)
from selfspec.data.ragged import RaggedStore, write_sequences
from selfspec.data.tokenizers import ProteinTokenizer
from selfspec.files import write_bytes
from selfspec.progress import tracked

SUFFIXES = {".fasta", ".fa", ".faa", ".fas", ".ffn", ".fna", ".frn", ".fsa", ".mpfa"}
"""Of FASTA, also of nucleotides: those are refused when they are read, not taken for text."""
WIDTH = 60
"""Residues a line."""


class Record(NamedTuple):
    """One sequence of a file."""

    header: str
    """The line behind ">"."""
    residues: str
    place: str
    """File and line of the header."""


class Unknown(Enum):
    """What becomes of a sequence with a residue outside the alphabet."""

    SKIP = "skip"
    """The sequence is left out."""
    REFUSE = "refuse"
    """An error that names the place."""
    AS_X = "as-x"
    """The residue becomes X, which the alphabet must have."""


@dataclass(frozen=True)
class Policy:
    """How letters of a file become residues of an alphabet; each rule that is off leaves its
    letters as they are, which makes them unknown.

    Attributes:
        lower_case: small letters, which mark a masked region, are residues.
        gaps: "-" and "." are dropped.
        stop: a "*" at the end is dropped; one inside is always unknown.
        unknown: what becomes of all other letters.
    """

    lower_case: bool = True
    gaps: bool = True
    stop: bool = True
    unknown: Unknown = Unknown.SKIP

    def clean(self, record: Record, residues: str) -> str | None:
        """The sequence in the letters of `residues`; None if it is to be left out.

        Raises:
            ValueError: an unknown residue where they are refused, or nothing is left.
        """
        text = record.residues.upper() if self.lower_case else record.residues
        text = text.translate({ord(c): None for c in "-."}) if self.gaps else text
        text = text.removesuffix("*") if self.stop else text
        if not text:
            raise ValueError(f"{record.place}: nothing but gaps behind {record.header!r}")
        unknown = "".join(sorted(set(text) - set(residues)))
        if not unknown:
            return text
        if self.unknown is Unknown.REFUSE:
            raise ValueError(f"{record.place}: residues must be of {residues!r}, got {unknown!r} "
                             f"in {record.header!r}")  # fmt: skip
        if self.unknown is Unknown.SKIP:
            return None
        return text.translate(dict.fromkeys(map(ord, unknown), "X"))


def is_fasta(path: str | os.PathLike[str]) -> bool:
    """Whether a file, which may be packed, is FASTA by its name.

    >>> is_fasta("UP000005640.FAS.gz")
    True
    """
    return not SUFFIXES.isdisjoint(suffixes(path))


def read_fasta(paths: Paths, progress: bool = False) -> Generator[Record]:
    """The records of some files, one after another.

    Args:
        paths: a path, a glob pattern or a list of either; `.gz` and `.xz` are unpacked.
        progress: show a bar over the records.

    Raises:
        ValueError: a file is no FASTA, is empty, holds nucleotides, has a header without a
            sequence, or its packing is broken; file and line are named.
    """
    with tracked(desc="reading", unit="sequence", progress=progress) as bar:
        for path in find_files(paths):
            number = 0
            for record in parse_fasta(read_lines(path), str(path)):
                number += 1
                bar.update()
                yield record
            if not number:
                raise ValueError(f"{path}: must hold at least one sequence, got an empty file")


class Cleaner:
    """Keeps the sequences that a policy keeps, and counts the others.

    Args:
        residues: the letters of the alphabet.
        policy: what becomes of other letters.

    Attributes:
        skipped: sequences left out so far.

    Raises:
        ValueError: the policy puts X where the alphabet has none.
    """

    def __init__(self, residues: str, policy: Policy) -> None:
        if policy.unknown is Unknown.AS_X and "X" not in residues:
            raise ValueError("`unknown` must be skip or refuse for an alphabet without X, "
                             f"got as-x for {residues!r}")  # fmt: skip
        self.residues, self.policy, self.skipped = residues, policy, 0

    def __call__(self, records: Generator[Record]) -> Generator[str]:
        """The sequences of some records in the letters of the alphabet.

        Raises:
            ValueError: none is kept, or as `Policy.clean`.
        """
        kept = 0
        with closing(records):  # their bar must not outlive an error
            for record in records:
                text = self.policy.clean(record, self.residues)
                if text is None:
                    self.skipped += 1
                else:
                    kept += 1
                    yield text
        if not kept:
            raise ValueError(f"`unknown` must keep at least one sequence, got all {self.skipped} "
                             f"left out for residues other than {self.residues!r}")  # fmt: skip


def prepare(
    splits: Mapping[str, Paths],
    folder: str | os.PathLike[str],
    tokenizer: ProteinTokenizer | None = None,
    policy: Policy | None = None,
    progress: bool = True,
) -> tuple[dict[str, RaggedStore], dict[str, int]]:
    """Writes the ragged stores `<split>.bin` of FASTA files, and `tokenizer.json`.

    Args:
        splits: the files of each split.
        folder: where to; made if it does not exist.
        tokenizer: the twenty amino acids by default.
        policy: what becomes of letters that are none of them.
        progress: show a bar over the records of each split.

    Returns:
        The stores, and how many sequences each leaves out.

    Raises:
        ValueError: as `read_fasta` and `Policy.clean`; one file in two splits; or all are left out.
    """
    tokenizer = tokenizer or ProteinTokenizer()
    files = find_splits(splits)
    cleaners = {split: Cleaner(tokenizer.residues, policy or Policy()) for split in files}
    texts = {split: cleaners[split](read_fasta(f, progress)) for split, f in files.items()}
    stores = write_corpus(folder, texts, tokenizer, write_sequences)
    return stores, {split: cleaner.skipped for split, cleaner in cleaners.items()}


def prepare_clustered(
    paths: Paths,
    folder: str | os.PathLike[str],
    tokenizer: ProteinTokenizer | None = None,
    policy: Policy | None = None,
    seed: int = 0,
    progress: bool = True,
    relatives: float = 0.0,
) -> tuple[dict[str, RaggedStore], dict[str, int]]:
    """Writes the ragged stores train, valid and test of FASTA files, held out by cluster.

    Args:
        paths: the files, which are split by `clusters`.
        folder, tokenizer, policy, progress: as in `prepare`.
        seed: decides which clusters are held out.
        relatives: share of the sequences in a store of that name, relatives of training sequences.

    Returns:
        The stores, and how many sequences were left out of all.

    Raises:
        ValueError: as `prepare`; or there are too few clusters.
    """
    tokenizer = tokenizer or ProteinTokenizer()
    cleaner = Cleaner(tokenizer.residues, policy or Policy())
    texts = list(cleaner(read_fasta(paths, progress)))
    rows = [tokenizer.encode(text) for text in texts]
    parts = split(cluster(rows, tokenizer.vocab_size), seed=seed, relatives=relatives)
    splits = {name: [texts[i] for i in index] for name, index in parts.items()}
    stores = write_corpus(folder, splits, tokenizer, write_sequences)
    return stores, {"all": cleaner.skipped}


def to_fasta(records: Iterable[tuple[str, str]]) -> str:
    """(header, residues) pairs as the text of a FASTA file.

    >>> print(to_fasta([("insulin", "MALW"), ("none", "A" * 61)]), end="")
    >insulin
    MALW
    >none
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
    A
    """
    lines = []
    for header, residues in records:
        rows = [residues[i : i + WIDTH] for i in range(0, len(residues), WIDTH)]
        lines += [f">{header}", *rows]
    return "".join(f"{line}\n" for line in lines)


def write_fasta(path: str | os.PathLike[str], records: Iterable[tuple[str, str]]) -> None:
    """Writes (header, residues) pairs as FASTA, `.gz` and `.xz` packed, whole or not at all."""
    write_bytes(Path(path), packed(Path(path), to_fasta(records).encode()))


def parse_fasta(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[Record]:
    """The records of numbered lines of a file of this name; errors as `read_fasta`."""
    header, start, parts = None, 0, []
    for number, raw in lines:
        line = raw.removeprefix(BOM_UTF8).strip()
        if not line:
            continue
        text = line.decode("utf-8", "replace")
        if text.startswith(">"):
            if header is not None:
                yield _checked(Record(header, "".join(parts), f"{name}, line {start}"))
            header, start, parts = text[1:].strip(), number, []
        elif header is None:
            raise ValueError(f"{name}, line {number}: not FASTA, which starts with '>', "
                             f"got {text[:40]!r}")  # fmt: skip
        else:
            parts.append("".join(text.split()))
    if header is not None:
        yield _checked(Record(header, "".join(parts), f"{name}, line {start}"))


def _checked(record: Record) -> Record:
    """A record with residues that are no nucleotides.

    The letters of nucleotides are letters of amino acids too: twelve or more of them, three of them
    different, and no other letter, are taken for DNA or RNA.
    """
    if not record.residues:
        raise ValueError(f"{record.place}: header without a sequence, {record.header!r}")
    letters = set(record.residues.upper()) - set("-.*")
    if len(record.residues) >= 12 and len(letters) >= 3 and letters <= set("ACGTUN"):
        raise ValueError(f"{record.place}: residues of a protein are wanted, got what looks like "
                         f"DNA or RNA: {record.residues[:20]!r}")  # fmt: skip
    return record
