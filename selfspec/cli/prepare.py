"""`selfspec prepare`: a corpus to token files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from selfspec.cli.common import Run, note, to_json, watched

SPLITS = ("train", "valid", "test")


def prepare(
    corpus: Literal["books27", "text8", "jsonl", "proteins", "fasta"],
    /,
    run: Run,
    source: str,
    out: Path,
    field: str = "text",
    alphabet: Literal["amino-acids", "esm"] = "amino-acids",
    unknown: Literal["skip", "refuse", "as-x"] = "skip",
) -> None:
    """Turn a corpus into token files for training: train.bin, valid.bin, test.bin.

    Args:
        corpus: books27 and jsonl read a folder with train*.jsonl, valid*.jsonl and test*.jsonl,
            which may end in .xz or .gz; books27 needs all three. text8 reads text8.zip. proteins
            reads FASTA and holds clusters of similar sequences out, by the seed. fasta reads a
            folder with train*.fasta, valid*.fasta and test*.fasta, which may be packed too.
        run: device plays no part here.
        source: the folder; for text8 the zip file, the plain file, or a URL of either; for proteins
            a file, or a pattern of several.
        out: the folder to write.
        field: which field of a JSON document holds its text.
        alphabet: of proteins: the twenty amino acids, or the vocabulary of ESM-2.
        unknown: what becomes of a protein with a residue outside the alphabet.
    """
    from selfspec.data import jsonl, text8

    if corpus in ("proteins", "fasta"):
        return prepare_proteins(corpus, run, source, out, alphabet, unknown)
    if corpus == "text8":
        stores = text8.prepare(source, out, progress=True)
    else:
        splits = find_splits(Path(source), "jsonl")
        needed = SPLITS if corpus == "books27" else SPLITS[:1]
        for split in needed:
            if split not in splits:
                raise ValueError(f"`source` must hold files {split}*.jsonl, got none in {source}")
        stores = jsonl.prepare(splits, out, field)
    report(run, out, "characters", {split: len(store) for split, store in stores.items()})


def prepare_proteins(
    corpus: str, run: Run, source: str, out: Path, alphabet: str, unknown: str
) -> None:
    """FASTA to ragged stores."""
    from selfspec.data import fasta
    from selfspec.data.tokenizers import AMINO_ACIDS, ESM_ALPHABET, ProteinTokenizer

    tokenizer = ProteinTokenizer(ESM_ALPHABET if alphabet == "esm" else AMINO_ACIDS)
    policy = fasta.Policy(unknown=fasta.Unknown(unknown))
    if corpus == "proteins":
        stores, skipped = fasta.prepare_clustered(
            source, out, tokenizer, policy, run.seed, watched()
        )
    else:
        splits = find_splits(Path(source), "fasta")
        if "train" not in splits:
            raise ValueError(f"`source` must hold files train*.fasta, got none in {source}")
        stores, skipped = fasta.prepare(splits, out, tokenizer, policy, watched())
    report(run, out, "sequences", {split: len(store) for split, store in stores.items()})
    if left_out := sum(skipped.values()):
        note(f"{left_out:,} sequences with residues outside the alphabet were left out")


def report(run: Run, out: Path, unit: str, sizes: dict[str, int]) -> None:
    """Print what was written."""
    if run.json:
        return print(to_json({"out": str(out), unit: sizes}))
    for split, size in sizes.items():
        print(f"{split:6}{size:14,} {unit}")


def find_splits(folder: Path, kind: str) -> dict[str, list[Path]]:
    """The files of each split in a folder, such as train*.jsonl*."""
    if not folder.is_dir():
        raise ValueError(f"`source` must be a folder, got {str(folder)!r}")
    files = {split: sorted(folder.glob(f"{split}*.{kind}*")) for split in SPLITS}
    return {split: found for split, found in files.items() if found}
