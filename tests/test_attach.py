import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hubs
import numpy as np
import pytest
import torch
import transformers
from hubs import CLS, MASK, SEP, UNKNOWN
from torch import nn

import selfspec as ss
from selfspec.cli import main
from selfspec.cli.benchmark import own_profile
from selfspec.cli.common import Run
from selfspec.data.fasta import Unknown, read_fasta
from selfspec.data.ragged import RaggedStore
from selfspec.files import locked
from selfspec.hub.tokenizer import HubTokenizer
from selfspec.lengths import Lengths
from selfspec.noise import row_seeds
from selfspec.recipes.attach import settings
from selfspec.recipes.drawn import own_rows
from selfspec.recipes.rows import documents, text_rows

hf: Any = transformers
QUICK = ["--steps", "8", "--batch-size", "4", "--heads", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published BERT of letters."""
    folder = tmp_path_factory.mktemp("hub") / "bert"
    hubs.bert().save_pretrained(folder)
    hubs.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A hundred sequences in which every letter is followed by the next one."""
    path = tmp_path / "lines.txt"
    letters = hubs.LETTERS * 3
    path.write_text("".join(f"{letters[i % 20 : i % 20 + 5 + i % 9]}\n" for i in range(100)))
    return path


def model(source: str) -> Any:
    return ss.attach_head(source, heads=2)


# Rows


def test_a_line_is_a_row_within_its_frame(source: str, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("ACD\n\n  WY \nACDEFGHIKL\n")
    rows = [row.tolist() for row in text_rows(model(source), documents(path, "lines"), 6, "lines")]
    assert rows == [[CLS, 5, 6, 7, SEP], [CLS, 23, 24, SEP], [CLS, 5, 6, 7, 8, 9, 10, SEP]]


def test_documents_are_packed_with_the_separator_between(source: str):
    rows = [row.tolist() for row in text_rows(model(source), ["ACD", "", "EFGHI", "K"], 4)]
    packed = [5, 6, 7, SEP, 8, 9, 10, 11, 12, SEP, 13]
    assert rows == [[CLS, *packed[i : i + 4], SEP] for i in (0, 4)]  # the rest fills no row


def test_documents_of_every_kind_of_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"body": "AC"}\n{"body": "DE"}\n')
    (tmp_path / "a.fasta").write_text(">one\nAC\nDE\n>two\nwy\n")
    (tmp_path / "a.txt").write_text("AC\nDE\n")
    read = {name: list(map("".join, documents(tmp_path / f"a.{name}", "packed", "body")))
            for name in ("jsonl", "fasta", "txt")}  # fmt: skip
    assert read == {"jsonl": ["AC", "DE"], "fasta": ["ACDE", "WY"], "txt": ["AC\nDE\n"]}


def test_sequences_are_read_by_a_policy(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.fasta"
    path.write_bytes(
        b"\xef\xbb\xbf>low\r\nac\r\nde\r\n>gaps\r\nA-C.D*\r\n>stop\r\nA*C\r\n>odd\r\nAJC\r\n"
    )
    assert list(documents(path, residues=hubs.LETTERS)) == ["ACDE", "ACD"]
    assert "2 sequences with unknown residues were left out" in caplog.text
    assert list(documents(path, unknown=Unknown.AS_X, residues=hubs.LETTERS + "X")) == [
        "ACDE", "ACD", "AXC", "AXC"]  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.fasta, line 6: residues must be of .*, got '\*'"):
        list(documents(path, unknown=Unknown.REFUSE, residues=hubs.LETTERS))


def test_text_is_utf8_packed_or_not(tmp_path: Path):
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write("é\n\nA B\n".encode())
    assert list(documents(tmp_path / "a.txt.gz", "lines")) == ["é", "A B"]
    assert list(map("".join, documents(tmp_path / "a.txt.gz"))) == ["é\n\nA B\n"]
    (tmp_path / "b.txt").write_bytes(b"A\n\xff\n")
    with pytest.raises(ValueError, match=r"b\.txt, line 2: not UTF-8"):
        list(map("".join, documents(tmp_path / "b.txt")))
    whole = (tmp_path / "a.txt.gz").read_bytes()
    (tmp_path / "c.txt.gz").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"c\.txt\.gz, line .*: broken compression"):
        list(map("".join, documents(tmp_path / "c.txt.gz")))


def test_rows_of_its_own_are_framed_text_and_the_same_for_every_batch(source: str):
    drawn = [list(own_rows(model(source), 5, 7, 3, size, False)) for size in (5, 2)]
    for one, other in zip(*drawn, strict=True):
        assert one.tolist() == other.tolist()
        assert (one[0], one[-1], len(one)) == (CLS, SEP, 9)
        assert (one[1:-1] > MASK).all()
    assert len({tuple(row) for row in drawn[0]}) == 5


def words() -> Any:
    """A tokenizer of words."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat"]
    return hf.BertTokenizer(vocab={word: i for i, word in enumerate(vocab)})


def test_words_are_tokens_of_a_tokenizer_of_words():
    inner = words()
    tokenizer = HubTokenizer(inner, 9, MASK)
    assert tokenizer.encode("The cats dog").tolist() == [5, 6, 7, UNKNOWN]
    assert tokenizer.encode("the _ sat", "_").tolist() == [5, MASK, 8]
    assert tokenizer.decode([5, 6, 7, MASK, 8]) == "the cats_sat"
    made: Any = ss.attach_head(hubs.bert(vocab_size=9), heads=2, tokenizer=inner)
    samples = ss.generate(made, prompt="the cats", length=5, rounds=1)  # eight characters
    assert samples.tokens.shape == (1, 7)
    assert next(iter(samples)).startswith("the cats")
    with pytest.raises(ValueError, match="`length` must be at least 3, the prompt's, got 2"):
        ss.generate(made, prompt="the cats", length=2)
    inner.mask_token = None
    assert HubTokenizer(inner, 9, 8).encode("the _ cat", "_").tolist() == [5, 8, 6]


# Runs


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_words_are_scored_by_the_token_and_by_the_character_of_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    made = ss.attach_head(hubs.bert(vocab_size=9), heads=2, tokenizer=words())
    monkeypatch.setattr("selfspec.api.load", lambda *_, **__: made)
    text, settings = tmp_path / "text", ["--window", 1, "--rounds", 1]
    text.write_text("The cats  sat\n")
    told = run(capsys, "score", text, *settings)
    assert (told["tokens"], told["characters"]) == (4, 13)
    for name in ("bits", "stderr", "one_pass_bits", "one_pass_stderr"):
        assert told[f"{name}_per_character"] == pytest.approx(told[name] * 4 / 13)
    cut = run(capsys, "score", text, *settings, "--limit", 3)  # of how many characters?
    assert (cut["tokens"], cut["characters"], cut["bits_per_character"]) == (3, None, None)
    assert main(["score", str(text), *map(str, settings), "--limit", "3"]) == 0
    assert "character" not in capsys.readouterr().out
    text.write_text(" \n")
    assert main(["score", str(text), *map(str, settings)]) == 2
    assert "`file` must hold at least one token" in capsys.readouterr().err


def test_a_head_is_trained_saved_without_its_trunk_and_used(
    source: str, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    command = ["attach", source, "--data", lines, "--out", out, "--rows", "lines"]
    more = ["--steps", "60", "--batch-size", "16", "--heads", "2", "--device", "cpu"]
    report = run(capsys, *command, *more, "--merge")
    assert report["step"] == 60
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    first = next(line["target"] for line in log if "target" in line)
    assert report["target"] < first - 0.1  # each letter decides the next: there is much to learn
    assert report["target"] < report["draft"] - 0.1
    trained = ss.load(out / "model")
    assert trained.lengths is not None
    assert {len(text) for text in ss.generate(trained, 20, rounds=2)} <= set(range(5, 14))
    assert len(ss.generate(trained, length=11, rounds=2).tokens[0]) == 13
    whole = ss.load(out / "whole", trunk=hubs.roberta())  # which it does not need
    prompt = {"prompt": "AC_E", "rounds": 2}
    assert ss.generate(trained, **prompt).text == ss.generate(whole, **prompt).text


def test_a_stopped_run_is_resumed_to_the_same_end(source: str, lines: Path, tmp_path: Path):
    heads = []
    for name, cuts in (("whole", ()), ("cut", (0.0,))):
        command = ["attach", source, "--data", str(lines), "--out", str(tmp_path / name), *QUICK]
        for seconds in cuts:
            assert main([*command, "--stop-after", str(seconds)]) == 0
        assert main(command) == 0
        heads.append(ss.load(tmp_path / name / "model").head)
    for one, other in zip(*(head.parameters() for head in heads), strict=True):
        assert one.equal(other)


def test_rows_are_made_once_and_of_one_thing(
    source: str, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["attach", source, "--out", str(tmp_path / "run"), *QUICK]
    assert main([*command, "--data", str(lines)]) == 0
    store = RaggedStore(tmp_path / "run" / "data" / "train.bin")
    assert main([*command, "--data", str(lines)]) == 0
    assert RaggedStore(tmp_path / "run" / "data" / "train.bin").sha256 == store.sha256
    capsys.readouterr()
    assert main([*command, "--data", str(lines), "--rows", "lines"]) == 2
    assert "`rows` must be packed, as in" in capsys.readouterr().err
    other = hubs.tokenizer(hubs.LETTERS[::-1])
    other.save_pretrained(tmp_path / "other")
    assert main([*command, "--data", str(lines), "--tokenizer", str(tmp_path / "other")]) == 2
    assert "`tokens` must be" in capsys.readouterr().err
    with locked(tmp_path / "run" / "data"):
        assert main([*command, "--data", str(lines)]) == 1
    assert "another run is at work in" in capsys.readouterr().err
    assert main([*command, "--data", "self"]) == 2
    assert "`data` must be lines.txt" in capsys.readouterr().err
    for name, value, was in (("blocks", 2, 1), ("heads", 1, 2), ("mask_id", 3, 4)):
        flag = f"--{name.replace('_', '-')}"
        assert main([*command, "--data", str(lines), flag, str(value)]) == 2
        told = capsys.readouterr().err
        assert f"`{name}` must be {was}, as in" in told
        assert f"got {value};" in told


def test_rows_that_were_drawn_survive_a_kill(source: str, tmp_path: Path):
    """Those of finished batches are not drawn again, and the run has the rows of one at a go."""
    out = tmp_path / "run"
    command = ["attach", source, "--data", "self", "--out", str(out), "--length", "40", *QUICK]
    script = [sys.executable, "-m", "selfspec", *command, "--num", "100000"]
    first = out / "data" / "drawn" / "00000000.npy"
    with subprocess.Popen(script, stderr=subprocess.DEVNULL) as process:
        while not first.exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    drawn = np.load(first)
    np.save(first, drawn[::-1])  # to be known by
    assert main([*command, "--seed", "1"]) == 2
    assert main([*command, "--num", "80"]) == 0
    store, valid = (RaggedStore(out / "data" / f"{split}.bin") for split in ("train", "valid"))
    rows = [drawn[63], *store.tokens.reshape(-1, 40)]
    assert np.array_equal(rows[1:50], drawn[::-1][1:50])
    assert valid.tokens[:40].tolist() == drawn[63].tolist()
    assert not first.parent.exists()
    again = list(own_rows(model(source), 80, 38, 0, progress=False))
    assert again[0].tolist() == drawn[0].tolist()
    assert again[79].tolist() == rows[78].tolist()


def test_without_data_the_model_teaches_itself(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    command = ["attach", source, "--data", "self", "--num", 100, "--length", 9, "--out", out]
    assert run(capsys, *command, *QUICK)["step"] == 8
    store = RaggedStore(out / "data" / "train.bin")
    assert set(store.lengths.tolist()) == {9}
    assert len(store) == 98
    assert (store.tokens.reshape(-1, 9)[:, 1:8] > MASK).all()
    # Samples are as long as what the head was trained on, unless told otherwise.
    trained = ss.load(out / "model")
    assert {len(text) for text in ss.generate(trained, 9, rounds=1)} == {7}
    assert ss.generate(trained, length=20, rounds=1).tokens.shape == (1, 22)


@pytest.mark.parametrize("rows", ["packed", "lines"])
def test_only_rows_of_their_own_lengths_have_pads(
    source: str, lines: Path, tmp_path: Path, rows: Any
):
    trainer = ss.recipes.attach(
        model(source), lines, tmp_path / "run", rows=rows, length=12, steps=1, batch_size=8,
        device="cpu", progress=False,
    )  # fmt: skip
    assert (trainer.feed(0).pad is None) == (rows == "packed")
    assert np.ma.isMaskedArray(trainer.valid) == (rows == "lines")
    trainer.feed.close()


@pytest.mark.parametrize(
    ("name", "rows"), [("a.FA.gz", "lines"), ("a.mpfa", "lines"), ("a.txt", "packed")]
)
def test_proteins_are_rows_of_their_own_unless_told_otherwise(
    source: str, tmp_path: Path, name: str, rows: str
):
    text = "".join(f">{i}\n{hubs.LETTERS[: 5 + i]}\n" for i in range(9))
    text = text if rows == "lines" else hubs.LETTERS * 20
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(pack(text.encode()))
    out, options = tmp_path / "run", {"steps": 1, "batch_size": 2, "progress": False}
    ss.train_head(model(source), tmp_path / name, out, device="cpu", **options)
    assert json.loads((out / "data" / "rows.json").read_text())["rows"] == rows
    lengths = RaggedStore(out / "data" / "train.bin").lengths.tolist()
    assert lengths == ([*range(8, 16)] if rows == "lines" else [40] * len(lengths))


def test_unknown_words_are_observed(tmp_path: Path):
    inner = hubs.tokenizer("A")  # [UNK] is what it makes of a word of two letters
    inner.add_tokens(["BB"])  # no tokenizer of characters any more
    made: Any = ss.attach_head(hubs.bert(), heads=2, tokenizer=inner)
    (tmp_path / "text.txt").write_text("A qq BB A qq A\n" * 40)
    trainer = ss.recipes.attach(
        made, tmp_path / "text.txt", tmp_path / "run", length=12, steps=2, batch_size=4,
        device="cpu", progress=False,
    )  # fmt: skip
    assert UNKNOWN in np.unique(trainer.feed._batches.batch(0).data)  # type: ignore[attr-defined]
    assert trainer.objective.observed == (UNKNOWN, CLS, SEP)  # type: ignore[attr-defined]
    assert trainer.run(progress=False)
    assert np.isfinite(trainer.validation["target"])


def test_settings_can_be_changed():
    assert settings(steps=50, seed=3).schedule.warmup == 5  # type: ignore[attr-defined]
    assert settings(muon=None).muon is None


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data nowhere.txt", "nowhere.txt: No such file"),
        ("--data {empty}", "`data` must give at least 2 rows, got 0"),
        ("--data {lines} --length 2", "`length` must be in 3..40, got 2"),
        ("--data {lines} --length 41", "`length` must be in 3..40, got 41"),
        ("--data {lines} --blocks 0", "`blocks` must be at least 1 to train a head, got 0"),
        ("--data {foreign} --rows lines", "must consist of the model's characters, got 'b'"),
        ("--data self --num 1", "`num` must be at least 2, got 1"),
        ("--data {lines} --merge --stop-after 1", "`merge` goes with a run to its end"),
        ("--data {dna}", "what looks like DNA"),
        ("--data {lines} --mask-id 99", "`mask_id` must be in 0..24, the model's tokens, got 99"),
    ],
)
def test_bad_input_is_one_line(
    source: str,
    lines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "foreign.txt").write_text("AbC\n")
    (tmp_path / "dna.fasta").write_text(">gene\n" + "ACGT" * 30 + "\n")
    names = {name: tmp_path / f"{name}.txt" for name in ("empty", "foreign")}
    filled = arguments.format(lines=lines, dna=tmp_path / "dna.fasta", **names)
    capsys.readouterr()
    assert main(["attach", source, "--out", str(tmp_path / "run"), *filled.split()]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("selfspec: ")
    assert message in error


def test_remote_code_is_not_merged_after_its_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stranger = str(hubs.publish_remote(tmp_path / "stranger"))
    command = ["attach", stranger, "--trust-remote-code", "--data", "self", "--num", "4", *QUICK]
    assert main([*command, "--out", str(tmp_path / "run"), "--merge"]) == 2
    assert "`merge` must be left out for a trunk that is remote code" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_library_adds_no_lines_of_its_own(tmp_path: Path):
    """In a process of its own: the library reads its settings when it is imported."""
    hf.BertModel(hubs.bert().config).save_pretrained(tmp_path / "bert")
    hubs.tokenizer().save_pretrained(tmp_path / "bert")
    command = ["attach", str(tmp_path / "bert"), "--data", "self", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "selfspec", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "without weights for cls.predictions" in done.stderr


def test_a_causal_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shape: Any = {"vocab_size": 25, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    hf.GPT2LMHeadModel(hf.GPT2Config(**shape)).save_pretrained(tmp_path / "gpt")
    out = ["--data", "self", "--out", str(tmp_path / "run")]
    assert main(["attach", str(tmp_path / "gpt"), *out]) == 2
    assert "got the causal" in capsys.readouterr().err


def test_what_cannot_be_found_is_named(
    source: str, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    nowhere, rest = str(tmp_path / "nowhere"), ["--data", str(lines), "--out", str(tmp_path / "x")]
    assert main(["adapt", nowhere, *rest]) == 2
    assert f"{nowhere}: no such model" in capsys.readouterr().err
    assert main(["attach", source, "--tokenizer", nowhere, *rest]) == 2
    assert f"`tokenizer` cannot be loaded: {nowhere}: " in capsys.readouterr().err


def test_a_run_is_only_for_models_of_the_hub(tmp_path: Path):
    import tiny

    with pytest.raises(ValueError, match="`model` must be one from `attach_head`"):
        ss.train_head(tiny.model(), "self", tmp_path)


def test_the_verbs_work_on_a_head(
    source: str, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["attach", source, "--data", str(lines), "--out", str(tmp_path), "--rows", "lines"]
    assert main([*command, *QUICK]) == 0
    capsys.readouterr()
    head = ["--checkpoint", str(tmp_path / "model"), "--rounds", "2", "--device", "cpu"]
    drawn = run(capsys, "sample", *head, "--length", 9, "--num", 2)["samples"]
    assert [len(sample["text"]) for sample in drawn] == [9, 9]
    filled = run(capsys, "infill", "AC__D", *head)["samples"][0]["text"]
    assert (filled[:2], filled[-1], len(filled)) == ("AC", "D", 5)
    (tmp_path / "text").write_text(hubs.LETTERS * 3)  # two blocks
    score = run(capsys, "score", tmp_path / "text", *head, "--window", 1)
    assert score["characters"] == 60
    model = ss.load(tmp_path / "model")
    assert model.tokenizer is not None
    assert 0 < score["bits"] < 20
    # A window of one: the draft alone, given what stands around the text.
    row = ss.generate(model, prompt=hubs.LETTERS, length=20, rounds=1).tokens
    observed = (row == CLS) | (row == SEP)
    laws = [ss.log_likelihood(model, row, window=ss.ConstantWindow(1), rounds=0, seeds=seed,
                              observed=observed) for seed in range(3)]  # fmt: skip
    (tmp_path / "text").write_text(hubs.LETTERS)
    short = run(capsys, "score", tmp_path / "text", *head, "--window", 1, "--orders", 30)
    exact = -sum(law.item() for law in laws) / 3 / 20 / np.log(2)
    assert short["bits"] == pytest.approx(exact, abs=0.5)


def test_the_arena_draws_within_the_frame(source: str, tmp_path: Path):
    from selfspec.arena import Reference, Setting, Sweep

    made = model(source)
    setting = Setting("plain", "uniform", {"steps": 2}, ss.FixedCountSampler(made, steps=2))
    judge = lambda tokens: torch.zeros(tokens.shape)  # noqa: E731
    sweep = Sweep(made, judge, Reference(), tmp_path, n=2, batch_size=2, length=8)
    tokens = sweep.run([setting])[0].arrays["tokens"]
    assert (tokens[:, 0] == CLS).all()
    assert (tokens[:, -1] == SEP).all()
    assert (tokens[:, 1:-1] > MASK).all()


def test_the_verbs_read_and_write_proteins(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hubs.esm(vocab_size=33, mask_token_id=32, pad_token_id=1).save_pretrained(tmp_path / "esm")
    hubs.esm_tokenizer(tmp_path).save_pretrained(tmp_path / "esm")
    made: Any = ss.attach_head(tmp_path / "esm", heads=2)
    made.lengths = Lengths((0, 1, 1), 5, 15)
    nn.init.normal_(made.head.project.weight)
    ss.save(made, tmp_path / "head")
    head = ["--checkpoint", str(tmp_path / "head"), "--rounds", "2", "--device", "cpu"]
    arguments = ["--num", "5", "--format", "fasta", "--out", str(tmp_path / "out.fasta")]
    assert main(["sample", *head, *arguments]) == 0
    for index, record in enumerate(read_fasta(tmp_path / "out.fasta")):
        text, facts = record.residues, dict(fact.split("=") for fact in record.header.split()[1:])
        assert len(text) == int(facts["length"])
        row = torch.tensor([[0, *made.tokenizer.encode(text), 2]])
        seen = torch.zeros_like(row, dtype=torch.bool)
        seen[:, [0, -1]] = True
        score = ss.one_pass_score(made, row, observed=seen, seeds=row_seeds(0, 5)[index, None])
        assert score.item() / len(text) == pytest.approx(float(facts["score"]), abs=1e-3)
    plain = (tmp_path / "out.fasta").read_bytes()
    assert main(["sample", *head, *arguments[:-1], str(tmp_path / "out.fasta.gz")]) == 0
    assert gzip.decompress((tmp_path / "out.fasta.gz").read_bytes()) == plain
    assert main(["sample", *head, *arguments, "--json"]) == 2
    assert "`format` must be text with `json`" in capsys.readouterr().err
    assert (tmp_path / "out.fasta").read_bytes() == plain
    (tmp_path / "wild.fasta").write_text(">wild\nmkta-yiakq\n*\n")
    score = run(capsys, "score", tmp_path / "wild.fasta", *head)
    assert score["characters"] == 9
    packed = gzip.compress(b">wild\r\nmkta-yiakq\r\n*\r\n")
    (tmp_path / "wild.fasta.gz").write_bytes(packed)
    assert run(capsys, "score", tmp_path / "wild.fasta.gz", *head) == score
    for content, message in {
        ">a\nMKTA\n>b\nMKT\n": "`file` must hold one sequence, got 2",
        "ACGT" * 3: "what looks like DNA",
    }.items():
        (tmp_path / "bad.fasta").write_text(content)
        assert main(["score", str(tmp_path / "bad.fasta"), *head]) == 2
        assert message in capsys.readouterr().err
    effects = run(capsys, "score", tmp_path / "wild.fasta", *head[:2], "--mutations", "K2R")
    assert effects["effects"]["K2R"] == pytest.approx(
        ss.mutation_effect(made, "MKTAYIAKQ", ["K2R"]).item()
    )


def test_the_profile_of_a_framed_model_is_that_of_its_text_alone(
    capsys: pytest.CaptureFixture[str],
):
    """Its frame is no place to fill, and its rows are as long as those it was trained on."""
    model = ss.attach_head(hubs.bert(), tokenizer=hubs.tokenizer())
    model.lengths = Lengths((0, 5, 1), 3, 9)
    profile = own_profile(model, Run(device="cpu"), num=3)
    assert 4 <= len(profile) <= 6
    assert profile == sorted(profile, reverse=True)
    model.lengths = None
    assert len(own_profile(model, Run(device="cpu"), num=2)) == model.length - 2
    assert "information profile on 3 samples" in capsys.readouterr().err
