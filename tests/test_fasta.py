import gzip
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfspec.data.corpus import open_corpus
from selfspec.data.fasta import (
    Cleaner,
    Policy,
    Record,
    Unknown,
    prepare,
    read_fasta,
    to_fasta,
    write_fasta,
)
from selfspec.data.ragged import RaggedStore
from selfspec.data.tokenizers import (
    AMINO_ACIDS,
    ESM_ALPHABET,
    CharTokenizer,
    ProteinTokenizer,
)

FILE = b"""
>sp|P1|ONE first protein
MALWMRLL

PLLA LL
>two
acdef-GH.IK*
"""


def pairs(path) -> list[tuple[str, str]]:
    return [(record.header, record.residues) for record in read_fasta(path)]


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.fasta", bytes), ("a.fa.gz", gzip.compress), ("a.fa.xz", lzma.compress),
     ("dos.fasta", lambda text: text.replace(b"\n", b"\r\n"))],
)  # fmt: skip
def test_records_come_letter_for_letter(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(FILE))
    expected = [("sp|P1|ONE first protein", "MALWMRLLPLLALL"), ("two", "acdef-GH.IK*")]
    assert pairs(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "must hold at least one sequence, got an empty file"),
        (b"\n\n", "empty file"),
        (b"MALWM\n", r"line 1: not FASTA, which starts with '>', got 'MALWM'"),
        (b'{"text": "a"}\n', "line 1: not FASTA"),
        (b"\x89PNG\r\n\x1a\n", "line 1: not FASTA"),
        (b">a\n>b\nMK\n", "line 1: header without a sequence, 'a'"),
        (b">a\nMK\n>b\n", "line 3: header without a sequence, 'b'"),
        (b">a\nMKV\n>gene\nATGGCGTTAGCC\n", "line 3: .* looks like DNA or RNA: 'ATGGCGTTAGCC'"),
        (b">rna\nauggcguua\nnnn\n", "line 1: .* looks like DNA or RNA"),
    ],
)
def test_what_is_no_fasta_of_proteins_is_named(tmp_path, content, rule):
    path = tmp_path / "a.fasta"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rule) as caught:
        list(read_fasta(path))
    assert str(path) in str(caught.value)


def test_short_or_simple_stretches_are_proteins(tmp_path):
    records = [("peptide", "GATTACA"), ("silk", "GAGAGAGAGAGAGAGA")]
    write_fasta(tmp_path / "a.fasta", records)
    assert pairs(tmp_path / "a.fasta") == records


@pytest.mark.parametrize(("name", "pack"), [("a.gz", gzip.compress), ("a.xz", lzma.compress)])
def test_a_truncated_file_is_named(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(FILE * 50)[:-9])
    with pytest.raises(ValueError, match=r"line \d+: broken compression"):
        list(read_fasta(tmp_path / name))


headers = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


@given(st.lists(st.tuples(headers, st.text("MKWYLE", min_size=1)), min_size=1))
def test_what_is_written_is_read(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("fasta")
    for name in ("a.fasta", "a.fasta.gz", "a.fasta.xz"):
        write_fasta(folder / name, records)
        assert pairs(folder / name) == records
    assert all(len(line) <= 60 for line in to_fasta(records).splitlines() if line[0] != ">")


# Policies


def cleaned(text: str, policy: Policy, residues: str = AMINO_ACIDS) -> str | None:
    return policy.clean(Record("name", text, "a.fasta, line 7"), residues)


@pytest.mark.parametrize(
    ("text", "policy", "kept"),
    [
        ("mkV", Policy(), "MKV"),
        ("mkV", Policy(lower_case=False), None),
        ("M-K.V", Policy(), "MKV"),
        ("M-K.V", Policy(gaps=False), None),
        ("MKV*", Policy(), "MKV"),
        ("MKV*", Policy(stop=False), None),
        ("MK*V", Policy(), None),
        ("MKBV", Policy(), None),
        ("MKXV", Policy(), None),
    ],
)
def test_each_rule_says_what_becomes_of_its_letters(text, policy, kept):
    assert cleaned(text, policy) == kept


def test_unknown_residues_become_x_or_an_error():
    letters = ProteinTokenizer(ESM_ALPHABET).residues
    assert cleaned("mkJV?*", Policy(unknown=Unknown.AS_X), letters) == "MKXVX"
    assert cleaned("MKBUZOX", Policy(unknown=Unknown.REFUSE), letters) == "MKBUZOX"
    with pytest.raises(ValueError, match=r"line 7: residues must be of .*, got 'JX' in 'name'"):
        cleaned("XMJX", Policy(unknown=Unknown.REFUSE))
    with pytest.raises(ValueError, match="line 7: nothing but gaps"):
        cleaned("--.*", Policy())


# Tokenizers


def test_esm_ids_are_those_of_esm2():
    """The order of ESM-2's vocabulary file, as published with its checkpoints."""
    tokens = [
        "<cls>",
        "<pad>",
        "<eos>",
        "<unk>",
        "L",
        "A",
        "G",
        "V",
        "S",
        "E",
        "R",
        "T",
        "I",
        "D",
        "P",
        "K",
        "Q",
        "N",
        "F",
        "Y",
        "M",
        "H",
        "W",
        "C",
        "X",
        "B",
        "U",
        "Z",
        "O",
        ".",
        "-",
        "<null_1>",
        "<mask>",
    ]
    tokenizer = ProteinTokenizer(ESM_ALPHABET)
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (32, 32)
    assert len(tokens) == 33
    for residue in "LAGVSERTIDPKQNFYMHWCXBUZO.-":
        assert tokenizer.encode(residue).tolist() == [tokens.index(residue)]
    assert tokenizer.encode("_", "_").tolist() == [tokens.index("<mask>")]
    assert tokenizer.residues == "LAGVSERTIDPKQNFYMHWCXBUZO"


def test_esm_ids_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    names = {"^": "<cls>", "~": "<pad>", "$": "<eos>", "?": "<unk>", "!": "<null_1>"}
    words = [names.get(c, c) for c in ESM_ALPHABET] + ["<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    theirs = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"))
    text = "MKTAYIAKQRXBUZO"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ProteinTokenizer(ESM_ALPHABET).encode(text).tolist() == ids
    assert theirs.mask_token_id == 32


@pytest.mark.parametrize("alphabet", [AMINO_ACIDS, ESM_ALPHABET])
def test_a_protein_tokenizer_survives_its_config(alphabet):
    tokenizer = CharTokenizer.from_config(ProteinTokenizer(alphabet).to_config())
    assert isinstance(tokenizer, ProteinTokenizer)
    assert tokenizer.alphabet == alphabet
    assert tokenizer.decode(tokenizer.encode("MK_V", "_")) == "MK_V"
    with pytest.raises(ValueError, match="got 'k' at index 1"):
        tokenizer.encode("MkV")


# Stores


def test_prepare_keeps_sequences_apart_and_counts_what_it_skips(tmp_path):
    (tmp_path / "a.fasta").write_bytes(FILE + b">three\nMKXV\n")
    write_fasta(tmp_path / "b.fasta", [("four", "WYV")])
    splits = {"train": tmp_path / "a.fasta", "valid": tmp_path / "b.fasta"}
    _, skipped = prepare(splits, tmp_path / "out", progress=False)
    assert skipped == {"train": 1, "valid": 0}
    tokenizer, stores = open_corpus(tmp_path / "out")
    assert isinstance(tokenizer, ProteinTokenizer)
    train = stores["train"]
    assert isinstance(train, RaggedStore)
    texts = [tokenizer.decode(train[i]) for i in range(len(train))]
    assert texts == ["MALWMRLLPLLALL", "ACDEFGHIK"]
    assert len(stores["valid"]) == 1


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (Policy(unknown=Unknown.AS_X), "`unknown` must be skip or refuse for an alphabet without"),
        (Policy(unknown=Unknown.REFUSE, lower_case=False), "line 6: residues must be of"),
        (Policy(lower_case=False, stop=False), None),
    ],
)
def test_a_failed_prepare_leaves_nothing(tmp_path, policy, rule):
    (tmp_path / "a.fasta").write_bytes(FILE)
    splits = {"train": tmp_path / "a.fasta"}
    if rule:
        with pytest.raises(ValueError, match=rule):
            prepare(splits, tmp_path / "out", policy=policy, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["a.fasta"]
    else:
        _, skipped = prepare(splits, tmp_path / "out", policy=policy, progress=False)
        assert skipped == {"train": 1}


def test_all_skipped_is_an_error(tmp_path):
    write_fasta(tmp_path / "a.fasta", [("x", "XXXX")])
    with pytest.raises(ValueError, match="`unknown` must keep at least one sequence, got all 1"):
        prepare({"train": tmp_path / "a.fasta"}, tmp_path / "out", progress=False)


def test_a_bar_does_not_outlive_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("selfspec.progress.watched", lambda: True)
    write_fasta(tmp_path / "a.fasta", [("x", "MKXV")])
    cleaner = Cleaner(AMINO_ACIDS, Policy(unknown=Unknown.REFUSE))
    with pytest.raises(ValueError, match="residues must be of") as caught:
        list(cleaner(read_fasta(tmp_path / "a.fasta", progress=True)))
    assert capsys.readouterr().err.endswith("\n")  # while its traceback keeps the reader alive
    del caught
