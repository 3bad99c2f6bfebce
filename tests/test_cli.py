"""The command line: what it prints, what it writes, how it fails."""

import errno
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import docstring_parser
import pytest
import tiny
import torch
from conftest import make_scorer

import selfspec as ss
from selfspec import calibration, checkpoint, cli, measuring, recipes
from selfspec.arena import BATCHES
from selfspec.cli import main
from selfspec.cli.benchmark import kept_profile
from selfspec.cli.common import OrderName, Run, check_out
from selfspec.cli.watch import Frame, Replay, State, play, render
from selfspec.data.bpe import load_bpe
from selfspec.data.corpus import write_corpus
from selfspec.data.fasta import read_fasta, write_fasta
from selfspec.engine import read_shards
from selfspec.nn.head import HeadConfig
from selfspec.nn.transformer import TrunkConfig
from selfspec.recipes import books_bpe

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(autouse=True)
def bundled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small checkpoints stand in for those of the package."""
    monkeypatch.setattr(checkpoint, "BUNDLED", folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    text = "the cat sat on the mat and the dog saw it " * 40
    write_corpus(folder, {"train": [text], "valid": [text[:300]], "test": [text]}, tokenizer())
    return folder


def tokenizer() -> ss.CharTokenizer:
    return ss.CharTokenizer()


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=ENV)


def outside(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return python("-m", "selfspec", *arguments)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """The JSON that a command prints."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# Verbs


@pytest.fixture(scope="module")
def protein(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("protein")
    checkpoint.save(tiny.protein(), folder)
    return str(folder)


def test_proteins_come_as_fasta(protein: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new.fasta"
    arguments = ["--checkpoint", protein, "--rounds", "2", "--format", "fasta", "--out", str(out)]
    assert main(["sample", "--num", "5", "--seed", "4", *arguments]) == 0
    model = ss.load(protein)
    samples = ss.generate(model, 5, seed=4, rounds=2)
    score = ss.one_pass_score(model, samples.tokens, pad=samples.pad)
    records = list(read_fasta(out))
    assert [record.residues for record in records] == samples.text
    for row, record in enumerate(records):
        name, *facts = record.header.split()
        told = dict(fact.split("=") for fact in facts)
        assert name == f"sample-4-{row}"
        assert int(told["length"]) == len(record.residues)
        assert float(told["nfe"]) == pytest.approx(float(samples.nfe[row]), abs=0.005)
        each = float(score[row]) / len(record.residues)
        assert float(told["score"]) == pytest.approx(each, abs=1e-4)
    assert main(["infill", "MK____GKST__", "--num", "2", *arguments]) == 0
    for record in read_fasta(out):
        assert record.residues.startswith("MK")
        assert record.residues[6:10] == "GKST"
    capsys.readouterr()
    assert main(["sample", "--format", "fasta"]) == 2
    assert "`format` must be text" in capsys.readouterr().err


def test_score_of_mutations(protein: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.fasta").write_text(">wild\nMKTAY\nIAKQR\n")
    file, of = str(tmp_path / "a.fasta"), ["--checkpoint", protein]
    told = report(capsys, "score", file, *of, "--mutations", "K2R", "A4G:I6L", "--orders", "3")
    expected = ss.mutation_effect(ss.load(protein), "MKTAYIAKQR", ["K2R", "A4G:I6L"], orders=3)
    assert list(told["effects"]) == ["K2R", "A4G:I6L"]
    assert list(told["effects"].values()) == pytest.approx(expected.tolist())
    assert report(capsys, "score", file, *of)["characters"] == 10
    assert main(["score", file, *of, "--mutations", "A2R"]) == 2
    assert "the wild type, which has K at 2" in capsys.readouterr().err
    (tmp_path / "a.fasta").write_text(">a\nMK\n>b\nMK\n")
    assert main(["score", file, *of]) == 2
    assert "one sequence, got 2" in capsys.readouterr().err


def test_prepare_proteins(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = random.Random(0)
    texts = ["".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=40)) for _ in range(60)]
    write_fasta(tmp_path / "a.fasta", [(str(i), text) for i, text in enumerate([*texts, "MXX"])])
    source, out = str(tmp_path / "a.fasta"), str(tmp_path / "out")
    told = report(capsys, "prepare", "proteins", "--source", source, "--out", out)
    assert told["sequences"] == {"train": 54, "valid": 3, "test": 3}
    write_fasta(tmp_path / "b.fasta", [(str(i), text) for i, text in enumerate(texts + texts[:30])])
    twice = ["prepare", "proteins", "--source", str(tmp_path / "b.fasta"), "--relatives", "0.1"]
    told = report(capsys, *twice, "--out", str(tmp_path / "twice"))
    assert told["sequences"] == {"train": 73, "valid": 4, "test": 4, "relatives": 9}
    assert main([*twice, "--out", str(tmp_path / "none"), "--relatives", "2"]) == 2
    assert "`relatives` must be at least 0 and below 1, got 2" in capsys.readouterr().err
    folder = tmp_path / "splits"
    folder.mkdir()
    shutil.copy(source, folder / "train-0.fas")
    arguments = ["prepare", "fasta", "--source", str(folder), "--alphabet", "esm", "--out"]
    assert report(capsys, *arguments, str(tmp_path / "esm"))["sequences"] == {"train": 61}
    arguments.append(str(tmp_path / "none"))
    assert main([*arguments, "--alphabet", "amino-acids", "--unknown", "refuse"]) == 2
    assert "residues must be of" in capsys.readouterr().err


def test_prepare_takes_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.txt").write_text("the cat sat")
    out = tmp_path / "out"
    asked = ["prepare", "texts", "--source", str(tmp_path), "--out", str(out)]
    assert report(capsys, *asked)["characters"] == {"train": 11}
    (tmp_path / "a.txt").write_text("the cat sat on the mat")
    assert report(capsys, *asked, "--workers", "2")["characters"] == {"train": 22}
    tokens = (out / "train.bin").read_bytes()
    for other in (["--limit", "1"], ["--source", f"{tmp_path}/."]):
        assert main([*asked, *other]) == 2
        told = f"selfspec: `out` must hold no other corpus, got {out}: remove that one first\n"
        assert capsys.readouterr().err == told
    (out / "prepare.json").unlink()  # as of a corpus by Python
    assert main(asked) == 2
    assert (out / "train.bin").read_bytes() == tokens


def test_sample_prints_a_text_a_line(capsys: pytest.CaptureFixture[str]):
    assert main(["sample", "--num", "3", "--nfe", "12"]) == 0
    out, err = capsys.readouterr()
    assert [len(line) for line in out.splitlines()] == [tiny.LENGTH] * 3
    assert "3 samples" in err
    assert "NFE" in err


def test_sample_accounts_for_what_it_did(capsys: pytest.CaptureFixture[str]):
    told = report(capsys, "sample", "--num", "2", "--seed", "5", "--rounds", "3", "--window", "4")
    samples = ss.generate(ss.load("books27"), 2, seed=5, window=4, rounds=3)
    assert [row["text"] for row in told["samples"]] == samples.text
    assert told["nfe"] == pytest.approx(float(samples.nfe.mean()))
    assert told["acceptance"] == pytest.approx(samples.acceptance)
    assert told["sampler"]["window"] == {"kind": "constant", "size": 4}


def test_sample_resolves_a_budget_from_the_table(capsys: pytest.CaptureFixture[str]):
    told = report(capsys, "sample", "--nfe", "11.5")
    assert told["sampler"]["order"] == "respaced"
    told = report(capsys, "sample", "--quality", "fast", "--order", "uniform")
    assert told["sampler"]["window"] == {"kind": "cosine", "dtau": 0.3}
    told = report(capsys, "sample", "--dtau", "0.2")
    assert told["sampler"]["window"] == {"kind": "cosine", "dtau": 0.2}
    told = report(capsys, "sample", "--dtau", "0.2", "--schedule", "linear")
    assert told["sampler"]["window"] == {"kind": "linear", "dtau": 0.2}


def test_a_budget_may_buy_plain_sampling(capsys: pytest.CaptureFixture[str]):
    told = report(capsys, "sample", "--nfe", "10.5")
    plain = {"sampler": "plain", "order": "respaced", "schedule": "linear", "steps": 15}
    assert told["sampler"] == plain
    assert (told["trunk_passes"], told["head_passes"]) == (15, 0)
    assert report(capsys, "infill", "the ____ sat", "--nfe", "10")["sampler"] == plain
    assert main(["sample", "--nfe", "10"]) == 0
    about = capsys.readouterr().err
    assert about.splitlines()[-1] == "plain respaced linear steps=15"
    assert "acceptance" not in about  # of nothing
    assert main(["sample", "--nfe", "9", "--order", "uniform"]) == 0
    assert "acceptance" in capsys.readouterr().err


def test_sample_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "texts.txt"
    assert main(["sample", "--num", "2", "--length", "9", "--out", str(out)]) == 0
    assert [len(line) for line in out.read_text().splitlines()] == [9, 9]
    assert capsys.readouterr().out == ""
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("out", "message"),
    [(".", "`out` must be a file, got the folder"), ("text/a.txt", "`out` must lie in a folder")],
)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_drawn(
    tmp_path: Path, out: str, message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    (tmp_path / "text").write_text("kept")
    monkeypatch.setattr("selfspec.api.generate", None)
    assert main(["infill", "a_", "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "text").read_text() == "kept"


@pytest.mark.parametrize(
    "command",
    ["sample", "train text8 --data {data}", "attach nowhere --data {data}",
     "adapt nowhere --data {data}", "prepare texts --source {data}", "benchmark books27"],
)  # fmt: skip
@pytest.mark.parametrize("out", ["text", "text/run"])
def test_a_folder_that_cannot_be_made_is_told_at_once(
    command: str, out: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text").write_text("kept")
    path = tmp_path / out
    assert main([*command.format(data=corpus).split(), "--out", str(path)]) == 2
    rule = {"text": f"be a folder, got the file {path}",
            "text/run": f"lie in a folder, got {path}, which would lie in a file"}  # fmt: skip
    assert capsys.readouterr().err == f"selfspec: `out` must {rule[out]}\n"


@pytest.mark.parametrize(("locked", "refused"), [("a.txt", False), (".", True), ("pipe", True)])
def test_what_is_replaced_needs_a_folder_that_can_be_written(
    tmp_path: Path, locked: str, refused: bool, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.txt").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != tmp_path / locked)
    out = tmp_path / ("pipe" if locked == "pipe" else "a.txt")
    with pytest.raises(PermissionError) if refused else nullcontext():
        check_out(out)


def test_sample_writes_to_a_pipe_and_does_not_replace_it(tmp_path: Path):
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert main(["sample", "--length", "9", "--out", str(pipe)]) == 0
        assert len(os.read(reader, 100)) == 9 + len("\n")
    finally:
        os.close(reader)


def test_texts_that_cannot_be_written_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.txt").write_text("kept")
    monkeypatch.setattr("selfspec.files._to_disk", full)
    outs = [tmp_path / "a.txt", tmp_path / "a.txt.gz"]
    outs += [Path("/dev/full")] if Path("/dev/full").is_char_device() else []
    for out in outs:
        assert main(["infill", "a____b", "--num", "2", "--out", str(out)]) == 2
        drawn, told = capsys.readouterr()
        lines = drawn.splitlines()
        assert [(len(line), line[0], line[-1]) for line in lines] == [(6, "a", "b")] * 2
        reason = "No space left on device; the result is on standard output"
        assert told == f"selfspec: {out}: {reason}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "kept"


def test_sample_writes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "shards"
    asked = ["sample", "--num", "5", "--length", "9", "--dtau", "0.3", "--out", str(out)]
    assert main(asked) == 0
    assert "5 samples in" in capsys.readouterr().err
    (samples,) = read_shards(out)
    expected = ss.generate(ss.load("books27"), 5, length=9, window=ss.CosineWindow(0.3))
    assert torch.equal(samples.tokens, expected.tokens)
    assert torch.equal(samples.nfe, expected.nfe)
    assert report(capsys, *asked)["n"] == 0
    assert main([*asked, "--seed", "1"]) == 2
    assert "`seed` must be 0, as in" in capsys.readouterr().err
    assert main([*asked, "--checkpoint", str(checkpoint.BUNDLED / "books27")]) == 2
    assert "`checkpoint` must be 'books27', as in" in capsys.readouterr().err


def test_infill_keeps_what_is_given(capsys: pytest.CaptureFixture[str]):
    assert main(["infill", "the ____ sat", "--num", "2"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert (line[:4], line[8:]) == ("the ", " sat")
    told = report(capsys, "infill", "a%b", "--mask-char", "%", "--length", "5")
    (text,) = (row["text"] for row in told["samples"])
    assert (text[0], text[2], len(text)) == ("a", "b", 5)


def test_score_is_the_likelihood_of_the_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "text.txt"
    file.write_text("The cat sat on\n")
    told = report(
        capsys, "score", str(file), "--normalise", "--rounds", "2", "--window", "3", "--orders", "3"
    )
    model, tokens = ss.load("books27"), torch.from_numpy(tokenizer().encode("the cat sat on"))
    window, seeds = ss.ConstantWindow(3), ss.row_seeds(0, 3).split(1)
    draws = torch.cat(
        [ss.log_likelihood(model, tokens[None], window=window, rounds=2, seeds=k) for k in seeds]
    )
    bits = -draws / (len(tokens) * math.log(2))
    assert told["bits"] == pytest.approx(float(bits.mean()))
    assert told["stderr"] == pytest.approx(float(bits.std() / 3**0.5))
    assert told["exact"] is True
    assert told["characters"] == 14
    assert told["bits_per_character"] == told["bits"]


def test_score_reads_standard_input_in_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat sat on the mat and the dog saw it"))
    told = report(capsys, "score", "-", "--orders", "2", "--limit", "30")
    assert told["characters"] == 30
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat"))
    assert main(["score", "-", "--orders", "2", "--order", "respaced"]) == 0
    assert "estimate" in capsys.readouterr().out


@pytest.mark.parametrize(("order", "most"), [("uniform", 16), ("respaced", tiny.LENGTH)])
def test_the_bar_of_score_moves_with_its_tokens(
    order: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    moved: list[int] = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda _, n: moved.append(n))
    (tmp_path / "text").write_text("the cat sat on the mat and the dog")
    assert main(["score", str(tmp_path / "text"), "--orders", "2", "--order", order]) == 0
    assert sum(moved) == 2 * 34
    assert max(moved) == most


def test_score_keeps_to_a_fixed_order_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "text.txt"
    file.write_text("the cat sat on")
    scoring = ["score", str(file), "--orders", "2", "--nfe", "12"]
    told = report(capsys, *scoring)
    assert (told["exact"], told["sampler"]["order"]) == (True, "uniform")
    assert main(scoring) == 0  # not the sampler that the same budget samples with
    assert "\nspeculative uniform cosine " in capsys.readouterr().err
    best = ["score", str(file), "--orders", "2", "--quality", "best", "--order", "cells"]
    told = report(capsys, *best)  # what is taken back leaves no likelihood
    assert (told["exact"], told["sampler"]["sampler"]) == (False, "speculative")
    told = report(capsys, *scoring, "--order", "respaced")
    assert (told["exact"], told["sampler"]["sampler"]) == (False, "plain")
    model = ss.load("books27")
    tokens = torch.from_numpy(tokenizer().encode("the cat sat on"))[None]
    window = ss.ScheduleWindow(ss.LinearSchedule(), 15)
    draws = [
        ss.estimate_log_likelihood(model, tokens, ss.RespacedOrder(), window, 0, seeds=k).item()
        for k in ss.row_seeds(0, 2).split(1)
    ]
    assert told["bits"] == pytest.approx(-sum(draws) / 2 / (14 * math.log(2)))


def test_evaluate_prints_every_metric(corpus: Path, capsys: pytest.CaptureFixture[str]):
    metrics = ["judge", "spelling", "words", "distinct", "entropy", "kl", "heldout", "cost"]
    told = report(
        capsys, "evaluate", "books27", "--num", "32", "--metrics", *metrics,
        "--data", str(corpus), "--heldout-blocks", "1",
    )  # fmt: skip
    samples = ss.generate(ss.load("books27"), 32)
    bits = ss.metrics.judge_nll(samples.tokens, ss.load_judge("books27-judge").log_probs).bits
    assert told["judge"] == pytest.approx(bits.mean(), rel=1e-5)
    assert told["nfe"] == pytest.approx(float(samples.nfe.mean()))
    spelled = ss.metrics.spelling_accuracy(list(samples), {"a", "the"})
    assert told["spelling"] == (None if math.isnan(spelled) else spelled)  # without a whole word
    assert told["heldout"] > 0
    assert told["heldout_exact"] is False  # the table's balanced row has a re-chosen order
    assert told["kl"] > 0
    one = ["--metrics", "bound", "--num", "1", "--data", str(corpus), "--heldout-blocks", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report(capsys, "evaluate", "books27", *one)["bound_stderr"] is None
    assert main(["evaluate", "books27", "--num", "2", "--metrics", "entropy"]) == 0
    assert "entropy" in capsys.readouterr().out


def test_benchmark_compares_with_plain_samplers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["benchmark", "books27", "--num", "4", "--steps", "4", "8", "--out", str(tmp_path)]
    told = report(capsys, *arguments, "--against", "plain", "ancestral", "any-order")
    assert {row["sampler"] for row in told["rows"]} == {
        "plain", "ancestral", "any-order", "self-speculative"
    }  # fmt: skip
    assert {record["account"] for record in told["reduction"]} >= {"same trunk", "separate model"}
    assert {row["engine"] for row in told["rows"]} == {"engine"}
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == told["rows"]
    assert main(arguments) == 0
    assert "self-speculative" in capsys.readouterr().out
    told = report(capsys, *arguments, "--engine", "reference")
    assert {row["engine"] for row in told["rows"]} == {"reference"}


def test_benchmark_times_its_samples_unless_they_are_too_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["benchmark", "books27", "--steps", "3", "--out", str(tmp_path), "--num"]
    assert all(row["ms_per_sample"] > 0 for row in report(capsys, *arguments, "13")["rows"])
    assert (tmp_path / "report.html").read_text().count("<svg") == 2
    for few in (["5"], ["13", "--batch-size", "4"]):
        assert main([*arguments, *few]) == 0
        assert f"no milliseconds: they take {BATCHES} full batches" in capsys.readouterr().err
        assert (tmp_path / "report.html").read_text().count("<svg") == 1


def test_benchmark_against_all_is_the_arena(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["benchmark", "books27", "--num", "2", "--steps", "3", "--out", str(tmp_path)]
    told = report(capsys, *arguments, "--against", "all")
    assert {row["sampler"] for row in told["rows"]} >= {
        "plain", "remdm loop", "optimal", "punt", "self-speculative, optimal"
    }  # fmt: skip
    assert any(row["pareto_nfe"] for row in told["rows"])
    assert "<svg" in (tmp_path / "report.html").read_text()
    finished = sorted(path.name for path in (tmp_path / "settings").iterdir())
    assert len(finished) == 2 * len(told["rows"])
    assert main([*arguments, "--against", "all", "--json"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["rows"] == told["rows"]
    assert "no --predictor and no --policy given" in again.err


def test_benchmark_compares_with_a_corpus(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["benchmark", "books27", "--num", "2", "--steps", "3", "--out", str(tmp_path)]
    told = report(capsys, *arguments, "--data", str(corpus))
    assert all(row["kl_4gram"] is not None for row in told["rows"])
    assert [row["sampler"] for row in told["rows"]].count("data") == 1
    without = report(capsys, *arguments)
    assert {row["kl_4gram"] for row in without["rows"]} == {None}


def test_benchmark_measures_what_proteins_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint.save(tiny.protein(), tmp_path / "model")
    checkpoint.save(tiny.judge(vocab=20), tmp_path / "judge")
    arguments = ["benchmark", str(tmp_path / "model"), "--judge", str(tmp_path / "judge"), "--num",
                 "6", "--steps", "3", "--against", "plain", "self-verified"]  # fmt: skip
    rows = report(capsys, *arguments, "--out", str(tmp_path / "out"))["rows"]
    greedy = {row["sampler"]: row for row in rows}["self-verified, greedy"]
    assert greedy["spelling"] is None
    assert 0 < greedy["distinct_kmers"] < 0.5
    assert not greedy["diverse"]


def test_the_information_profile_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, run, other = tiny.model(), Run(device="cpu"), tiny.model(seed=1)
    first = kept_profile(model, run, 3, tmp_path)
    others = [(other, run, 3), (model, replace(run, seed=1), 3), (model, run, 2)]
    assert all(kept_profile(*given, tmp_path) != first for given in others)
    monkeypatch.delattr("selfspec.cli.benchmark.own_profile")
    assert kept_profile(model, run, 3, tmp_path) == first
    assert kept_profile(*others[0], tmp_path) != first


@pytest.mark.parametrize(
    ("options", "message"),
    [("all --policy nowhere", "`policy` cannot be loaded: nowhere"),
     ("all --predictor {folder}", "`predictor` must read the model's 27 tokens"),
     ("optimal guided", "`predictor` must be given for 'guided', got None")],
)  # fmt: skip
def test_benchmark_fails_before_it_measures_a_profile(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    make_scorer(vocab_size=5).save(tmp_path)
    monkeypatch.delattr("selfspec.cli.benchmark.own_profile")
    command = f"benchmark books27 --against {options}".format(folder=tmp_path).split()
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_benchmark_calibrates_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ss.save(tiny.model(), tmp_path)
    told = report(capsys, "benchmark", str(tmp_path), "--calibrate", "--num", "2")
    assert ss.load(tmp_path).calibration == told["calibration"]
    assert {row["order"] for row in told["calibration"]} == set(calibration.ORDERS)
    nfe = min(row["nfe"] for row in told["calibration"])
    assert report(capsys, "sample", "--checkpoint", str(tmp_path), "--nfe", str(nfe))["n"] == 1


def test_a_calibration_is_shown_row_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measuring, "SWEEP", ((2, ss.LinearWindow(0.25)),))
    monkeypatch.setattr(measuring, "PLAIN_SWEEP", (24,))
    monkeypatch.setattr(measuring, "REMASKED_SWEEP", measuring.REMASKED_SWEEP[1:2])
    monkeypatch.setattr(measuring, "worthwhile", lambda rows: rows)
    ss.save(tiny.model(), tmp_path)
    assert main(["benchmark", str(tmp_path), "--calibrate", "--num", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["sampler", "NFE", "judge"]
    assert len(lines) == 1 + 2 * len(calibration.ORDERS) + 1
    settings = "remasked cells linear dtau=0.06 rounds=1 eta=0.05 passes=64 "
    assert any(line.startswith(settings) for line in lines)
    for name in calibration.ORDERS:
        assert any(
            line.startswith(f"speculative {name} linear dtau=0.25 rounds=2 ") for line in lines
        )
        (plain,) = (line for line in lines if line.startswith(f"plain {name} linear steps=24 "))
        assert plain.split()[-2] == "16.0"  # 24 passes of two of three blocks


def test_prepare_then_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "books"
    source.mkdir()
    for split, words in {"train": 3000, "valid": 60, "test": 60}.items():
        line = json.dumps({"text": "The cat sat. " * words})
        (source / f"{split}-0.jsonl").write_text(line + "\n")
    data, out = str(tmp_path / "data"), str(tmp_path / "run")
    sizes = report(capsys, "prepare", "books27", "--source", str(source), "--out", data)
    assert set(sizes["characters"]) == {"train", "valid", "test"}
    told = report(
        capsys, "train", "books27-small-judge", "--data", data, "--out", out, "--steps", "2",
        "--batch-size", "2", "--device", "cpu",
    )  # fmt: skip
    assert told["step"] == 2
    assert told["judge"] > 0
    assert ss.load_judge(told["model"]).trunk.vocab_size == 27


def test_training_without_a_terminal_says_how_far_it_is(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = ["train", "books27-small-judge", "--data", str(corpus), "--out", str(tmp_path)]
    assert main([*asked, "--steps", "2", "--batch-size", "2", "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert "\r" not in told
    assert re.fullmatch(r"step 2 of 2, \d+ s: .*valid_judge \d+\.\d{3}", told.splitlines()[-1])


def test_a_training_that_stops_early_prints_nothing_beside_its_json(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = ["train", "books27-small-judge", "--data", str(corpus), "--out", str(tmp_path)]
    options = ["--steps", "9", "--batch-size", "2", "--device", "cpu", "--stop-after", "0"]
    assert main([*asked, *options, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["step"] == 1
    assert told.err.endswith("stopped at step 1; run it again to resume\n")


def test_subwords_from_text_to_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    small = TrunkConfig(vocab_size=1, length=16, width=16, blocks=1, heads=2)
    monkeypatch.setattr(books_bpe, "TRUNK", small)
    monkeypatch.setattr(books_bpe, "HEAD", HeadConfig(heads=2))
    books, data, out = (str(tmp_path / name) for name in ("books", "data", "run"))
    for number in range(20):
        folder = tmp_path / "books" / ("test" if number % 10 == 9 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(f"The cat sat on {number} mats.\n" * 40)
    told = report(
        capsys, "prepare", "texts", "--source", books, "--vocab-size", "270", "--out", data,
        "--hold-out-documents", "2", "--limit", "12", "--workers", "1",
    )  # fmt: skip
    assert told["tokens"].keys() == {"train", "valid", "test"}
    assert told["characters_per_token"]["train"] > 1
    again = ["prepare", "texts", "--source", books, "--out", str(tmp_path / "again"), "--bpe", data]
    for wrong, message in {
        "--hold-out-blocks 50": "`every` must be at most",
        "--hold-out-blocks 5 --hold-out-documents 5": "give `hold_out_documents` or",
        "--vocab-size 300": "give `bpe` or `vocab_size`, got both",
    }.items():
        assert main([*again, *wrong.split()]) == 2
        assert message in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("selfspec.data.bpe.train_bpe", None)  # before minutes of training
        (tmp_path / "books" / "valid").mkdir()
        (tmp_path / "books" / "valid" / "1.txt").write_text("The cat.")
        wrong = [*again[:-2], "--vocab-size", "270", "--hold-out-documents", "2"]
        assert main(wrong) == 2
        assert "`hold_out` needs a split 'train' and no 'valid'" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    options = ["--steps", "2", "--batch-size", "4", "--device", "cpu", "--accumulate", "1"]
    trained = report(capsys, "train", "books-bpe-joint", "--data", data, "--out", out, *options)
    bits = told["characters_per_token"]["valid"] * math.log(2)
    assert trained["bits_per_character"]["draft"] == pytest.approx(trained["draft"] / bits)
    made = report(
        capsys, "infill", "The__ sat", "--checkpoint", trained["model"], "--num", "2",
        "--window", "2", "--rounds", "2",
    )  # fmt: skip
    for row in made["samples"]:
        assert row["text"].startswith("The")
        assert row["text"].endswith(" sat")
    file = tmp_path / "some.txt"
    file.write_text("The cat sat, naïve.")
    scoring = ["score", str(file), "--checkpoint", trained["model"], "--window", "2"]
    scored = report(capsys, *scoring)
    assert scored["characters"] == 19 > scored["tokens"] - 2  # ï is two tokens, "The" is one
    model = ss.load(trained["model"])
    tokens = torch.from_numpy(load_bpe(data).encode("The cat sat, naïve."))
    assert len(tokens) == scored["tokens"] <= model.length  # one block
    nats = [
        ss.one_pass_score(model, tokens[None], seeds=k).item() for k in ss.row_seeds(0, 4).split(1)
    ]
    total = -sum(nats) / 4 / math.log(2)
    assert scored["one_pass_bits"] == pytest.approx(total / len(tokens))
    assert scored["one_pass_bits_per_character"] == pytest.approx(total / 19)
    assert scored["bits_per_character"] == pytest.approx(scored["bits"] * len(tokens) / 19)
    assert main(scoring) == 0
    said = capsys.readouterr().out.splitlines()[0]
    each, spread = scored["bits"], scored["stderr"]
    assert said.startswith(f"sampler   {each:.4f} ± {spread:.4f} bits per token, ")
    assert said.endswith(" bits per character (exact)")
    judge = str(tmp_path / "judge")
    report(capsys, "train", "books-bpe-judge", "--data", data, "--out", judge, *options)
    found = report(
        capsys, "evaluate", trained["model"], "--judge", f"{judge}/model", "--metrics", "judge",
        "--num", "2", "--window", "2",
    )  # fmt: skip
    assert found["judge_per_character"] > 0
    with monkeypatch.context() as patch:
        patch.setattr("selfspec.api.generate", None)  # it is missed before anything is drawn
        assert main(["evaluate", trained["model"], "--metrics", "kl", "--data", data]) == 2
    assert "`metrics` may hold kl for at most 90 tokens, got 270" in capsys.readouterr().err
    assert main(["sample", "--checkpoint", trained["model"], "--watch", "--window", "4"]) == 0
    assert "trunk passes" in capsys.readouterr().out


def test_subwords_are_shown_whole():
    cells = [(0, State.REVEALED), (1, State.DRAFTED), (2, State.MASKED), (3, State.DRAFTED)]
    words = ["The", "\n", "x", " "]
    shown = render(Frame(cells, 1, 0, 0, 1.0), words.__getitem__, 4, False, [State.DRAFTED])
    assert shown.splitlines()[:2] == ["The⏎", "·␣"]


def test_recipes_are_listed_with_their_cost(capsys: pytest.CaptureFixture[str]):
    told = report(capsys, "recipes")
    assert told["openwebtext"]["tokens"] == 262_144_000_000
    assert told.keys() == recipes.ALL.keys()
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "openwebtext" in shown
    assert " 0.0\n" not in shown  # hours that say nothing


def test_demo_compares_at_equal_cost(capsys: pytest.CaptureFixture[str]):
    rows = report(capsys, "demo", "--num", "2", "--nfe", "12")["rows"]
    assert [row["name"] for row in rows] == [
        "plain masked diffusion", "self-speculative", "self-speculative, best setting"
    ]  # fmt: skip
    plain, verified, best = rows
    assert abs(plain["nfe"] - verified["nfe"]) <= 2 / 3  # a pass of two of three blocks
    # Though the table has a better plain row for this budget.
    assert [row["sampler"] for row in rows] == ["plain", "speculative", "speculative"]
    assert best["order"] == "respaced"
    assert main(["demo", "--num", "1", "--nfe", "12"]) == 0
    assert "plain masked diffusion" in capsys.readouterr().out


def test_demo_compares_in_uniform_order_though_cells_are_better(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    model = ss.load("books27")
    model.calibration = [tiny.row(11, 4.0), tiny.row(11, 3.0, "cells")]
    monkeypatch.setattr("selfspec.api.load", lambda *_: model)
    rows = report(capsys, "demo", "--num", "1", "--nfe", "12")["rows"]
    assert [row["order"] for row in rows] == ["uniform", "uniform", "cells"]


@pytest.mark.parametrize(
    "command",
    ["infill a_b --out out", "score text", "prepare texts --source . --out out", "recipes", "demo",
     "benchmark books27 --out out"],
)  # fmt: skip
def test_work_that_is_not_shared_is_the_first_process_alone(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("the cat")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("selfspec.api.load", None)
    assert main(command.split()) == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_orders_have_the_names_of_the_table():
    assert get_args(OrderName) == tuple(calibration.ORDERS)


# The replay


def test_the_last_frame_shows_the_text_and_its_cost():
    samples = ss.generate(tiny.model(), 2, trace=True)
    assert samples.trace is not None
    for row, passes in enumerate(samples.trace):
        *_, last = Replay(samples.tokens[row].tolist(), passes, 2, 1).frames()
        assert [token for token, _ in last.cells] == samples.tokens[row].tolist()
        assert {state for _, state in last.cells} == {State.REVEALED}
        assert last.nfe == pytest.approx(samples.nfe[row].item())
        assert last.trunk_passes == samples.trunk_passes[row]
        assert last.head_passes == samples.head_passes[row]


def test_frames_show_drafts_verdicts_and_redraws():
    samples = ss.generate(tiny.model(), 1, prompt="ab" + "_" * 20, window=6, rounds=2, trace=True)
    assert samples.trace is not None
    (passes,) = samples.trace
    frames = list(Replay(samples.tokens[0].tolist(), passes, 2, 1).frames())
    seen = {state for frame in frames for _, state in frame.cells}
    assert seen == set(State) - {State.REMASKED}
    drafted = [cell for cell in frames[0].cells if cell[1] is State.DRAFTED]
    assert [token for token, _ in drafted] == [
        token for _, token in sorted(zip(passes[0].positions, passes[0].drafted, strict=True))
    ]
    assert all(frame.cells[:2] == [(1, State.REVEALED), (2, State.REVEALED)] for frame in frames)
    rejections = sum(round_.rejected is not None for p in passes for round_ in p.rounds)
    assert sum(any(state is State.REJECTED for _, state in f.cells) for f in frames) == rejections
    assert len(frames) == sum(1 + len(p.rounds) for p in passes) + rejections + 1


def test_frames_of_plain_sampling_show_drafts_that_stand(capsys: pytest.CaptureFixture[str]):
    model = tiny.model()
    plain = ss.FixedCountSampler(model, ss.RespacedOrder(), ss.LinearSchedule(), steps=6)
    samples = ss.generate(model, sampler=plain, trace=True)
    assert samples.trace is not None
    frames = list(Replay(samples.tokens[0].tolist(), samples.trace[0], 2, 1).frames())
    seen = {state for frame in frames for _, state in frame.cells}
    assert seen == {State.MASKED, State.DRAFTED, State.REVEALED}
    assert len(frames) == 6 + 1
    assert [sum(state is State.MASKED for _, state in f.cells) for f in frames] == [
        20, 16, 12, 8, 4, 0, 0
    ]  # fmt: skip
    assert (frames[-1].head_passes, frames[-1].nfe) == (0, 4)
    assert main(["sample", "--watch", "--nfe", "10"]) == 0
    out = capsys.readouterr().out
    assert "head passes   0  NFE  10.0   drafted\n" in out
    assert main(["sample", "--watch", "--window", "6", "--rounds", "2"]) == 0
    assert "   drafted accepted rejected redrawn\n" in capsys.readouterr().out


def test_frames_show_what_is_taken_back():
    model = tiny.model()
    sampler = ss.RemaskedPlainSampler(model, window=4, eta=0.3)
    samples = ss.generate(model, sampler=sampler, trace=True)
    assert samples.trace is not None
    (passes,) = samples.trace
    replay = Replay(samples.tokens[0].tolist(), passes, 2, 1)
    assert replay.states == [State.DRAFTED, State.REMASKED]
    frames = list(replay.frames())
    states = [[state for _, state in frame.cells] for frame in frames]
    shown = [s for s in states if State.REMASKED in s]
    taken = [done.remasked for done in passes if done.remasked]
    assert taken
    assert [[k for k, s in enumerate(row) if s is State.REMASKED] for row in shown] == [
        sorted(positions) for positions in taken
    ]
    after = [states[k + 1] for k, row in enumerate(states) if State.REMASKED in row]
    for row, positions in zip(after, taken, strict=True):
        assert {row[k] for k in positions} <= {State.MASKED, State.DRAFTED}
    assert [token for token, _ in frames[-1].cells] == samples.tokens[0].tolist()


def test_watch_prints_frames_without_control_codes(capsys: pytest.CaptureFixture[str]):
    assert main(["sample", "--watch"]) == 0
    out = capsys.readouterr().out
    assert "\033" not in out
    assert "trunk passes   1" in out
    assert out.splitlines()[-1] in out.splitlines()[-4]  # the text, and the last frame


def test_watch_leaves_standard_output_to_json(capsys: pytest.CaptureFixture[str]):
    assert main(["sample", "--watch", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["samples"]) == 1
    assert "trunk passes   1" in err


def test_watch_redraws_in_place_in_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, model = Terminal(), tiny.model()
    play(model, ss.generate(model, trace=True), screen, delay=0)
    assert "\033[2F" in screen.getvalue()  # up over the text and the counters
    assert "\033[33m" in screen.getvalue()
    with pytest.raises(ValueError, match="must have a trace"):
        play(model, ss.generate(model), screen)


# Failures


def broken(tmp_path: Path, change) -> str:
    """A checkpoint with something wrong."""
    ss.save(tiny.model(), tmp_path / "broken")
    change(tmp_path / "broken")
    return str(tmp_path / "broken")


def edit(**changes):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["trunk"] |= changes.pop("trunk", {})
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, "not a readable safetensors file"),
        (lambda f: (f / "model.safetensors").unlink(), "not a readable safetensors file"),
        (lambda f: (f / "config.json").write_text("{"), "not a readable JSON file"),
        (edit(trunk={"width": "wide"}), "trunk.width must be int, got 'wide'"),
        (edit(format=9), "must be a selfspec checkpoint of format 1"),
        (edit(head=3), "head must be an object, got 3"),
        (edit(calibration=[{"nfe": 3}]), "`calibration` has a bad row"),
        (edit(calibration=7), "calibration must be a list, got 7"),
    ],
)
def test_broken_checkpoints(
    tmp_path: Path, change, message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["sample", "--checkpoint", broken(tmp_path, change)]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fly", "`verb` must be one of sample, infill"),
        ("sample --checkpoint nowhere", "must be a folder with a config.json or one of ['books27'"),
        ("sample --checkpoint books27-judge", "`checkpoint` must be a masked diffusion model"),
        ("sample --num 0", "`num` must be at least 1, got 0"),
        ("sample --num 99999999999999999999 --nfe 9", "`num` must fit into 64 bits with its sign"),
        ("sample --window 99999999999999999999", "`window` must fit into 64 bits with its sign"),
        ("sample --rounds 99999999999999999999", "`rounds` must fit into 64 bits with its sign"),
        ("sample --nfe 0", "`nfe` must be at least 1, got 0"),
        ("sample --nfe 3", "`nfe` must be at least 8 for this checkpoint, got 3"),
        ("sample --window 0", "`window` must be at least 1, got 0"),
        ("sample --rounds 0", "`rounds` must be at least 1, got 0"),
        ("sample --dtau 0", "`dtau` must be in (0, 1], got 0"),
        ("sample --dtau .1 --window 2", "give `dtau` or `window`"),
        ("sample --schedule linear", "`schedule` needs `dtau`, got linear without"),
        ("sample --length 99", "`length` must be in 1..24, the model's, got 99"),
        ("sample --temperature 0", "`temperature` must be above 0"),
        ("sample --device abacus", "`device` must be one of this machine, got 'abacus'"),
        ("sample --device meta", "`device` must be one of this machine, got 'meta'"),
        ("sample --nfe 9 --out {folder}", "{folder}: must be empty or hold a run.json"),
        ("sample --num 0 --out shards", "`num` must be at least 1, got 0"),
        ("sample --watch --out shards", "`watch` goes with texts"),
        ("sample --format fasta --out shards", "`format` goes with texts"),
        ("infill whole", "`text` must have a '_' to fill"),
        ("infill Ab_", "got 'A' at index 0"),
        ("infill a__b --mask-char __", "`mask_char` must be one character outside the alphabet"),
        ("infill a__b --mask-char=", "`mask_char` must be one character outside the alphabet"),
        ("score nowhere.txt", "nowhere.txt: No such file or directory"),
        ("score {empty}", "`file` must hold at least one character"),
        ("score {empty} --orders 1", "`orders` must be at least 2, got 1"),
        ("score {empty} --limit 0", "`limit` must be at least 1, got 0"),
        ("score {binary}", "`file` must be text in UTF-8, got {binary}"),
        ("evaluate books27 --num 0", "`num` must be at least 1, got 0"),
        ("evaluate books27 --heldout-blocks 0", "`heldout_blocks` must be at least 1, got 0"),
        ("evaluate books27 --metrics", "`metrics` must name at least one, got none"),
        ("evaluate books27 --metrics kl", "`data` must be a corpus"),
        ("evaluate books27 --metrics hf-judge --hf-judge ./nowhere", "`hf_judge`"),
        ("evaluate books27 --judge books27", "`checkpoint` must be an autoregressive judge"),
        ("sample --seed 99999999999999999999", "`seed` must fit into 64 bits"),
        ("benchmark books27 --num 0", "`num` must be at least 1, got 0"),
        ("benchmark books27 --calibrate --batch-size 0", "`batch_size` must be at least 1, got 0"),
        ("benchmark books27 --data {folder} --out x", "`data` must hold a corpus"),
        ("benchmark books27 --judge nowhere", "`judge` cannot be loaded: `checkpoint` must be a"),
        ("prepare books27 --source x --bpe gpt2 --out x", "go with jsonl, texts, dataset, openweb"),
        ("prepare jsonl --source x --limit 0 --out x", "`limit` must be at least 1, got 0"),
        ("prepare jsonl --source x --workers 0 --out x", "`workers` must be at least 1, got 0"),
        ("prepare jsonl --source x --hold-out-documents 0 --out x", "`hold_out_documents` must be"),
        ("prepare jsonl --source x --hold-out-blocks 1 --out x", "`hold_out_blocks` must be at le"),
        ("prepare texts --source {folder} --out x", "`source` must hold .txt files"),
        ("prepare texts --out x", "`source` must be given for texts, got none"),
        ("prepare jsonl --source nowhere --out x", "`source` must be a folder, got 'nowhere'"),
        ("prepare jsonl --source {folder} --out x", "must hold files train*.jsonl"),
        ("prepare text8 --source {empty} --out x", "`source` must hold 100,000,000 characters"),
        ("demo --num 0", "`num` must be at least 1, got 0"),
        ("demo --nfe 0", "`nfe` must be at least "),
        ("train none --data x --out x", "`recipe` must be one of books27-trunk"),
        ("train text8 --data {folder} --out x", "`data` must hold a corpus"),
        ("train books27-head --data {corpus} --out x", "`start` must be a trained model"),
    ],
)
def test_bad_input_is_one_line(
    command: str, message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("")
    places = {"empty": tmp_path / "empty", "folder": tmp_path, "corpus": corpus,
              "binary": checkpoint.BUNDLED / "books27" / "model.safetensors"}  # fmt: skip
    assert main(command.format(**places).split()) == 2
    out, err = capsys.readouterr()
    assert message.format(**places) in err
    assert (out, err.count("\n")) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("verb", ["benchmark", "benchmark --calibrate", "evaluate --num 1"])
def test_a_judge_of_other_tokens_is_one_line(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shape = ss.TrunkConfig(vocab_size=2, length=24, width=8, blocks=1, heads=1, causal=True)
    checkpoint.save(ss.AutoregressiveModel(ss.Trunk(shape)), tmp_path)
    assert main([*verb.split(), "books27", "--judge", str(tmp_path)]) == 2
    assert "`judge` must have the model's 27 tokens, got 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    ["benchmark", *(f"evaluate --metrics {metric}" for metric in ("kl", "bound", "heldout"))],
)
@pytest.mark.parametrize("symbols", ["ab ", ss.CharTokenizer().alphabet[::-1]])
def test_a_corpus_of_other_tokens_is_one_line(
    symbols: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_corpus(tmp_path, {"test": ["ab ab " * 100]}, ss.CharTokenizer(symbols))
    name, *flags = verb.split()
    assert main([name, "books27", *flags, "--data", str(tmp_path)]) == 2
    told = f"`data` must be of the model's 27 tokens, got other {len(symbols)} in {tmp_path}"
    assert told in capsys.readouterr().err


def test_judges_are_there_before_anything_is_drawn(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("selfspec.api.generate", None)
    for missing, name in {"judge": "judge", "hf-judge": "hf_judge", "mauve": "encoder"}.items():
        flag = f"--{name.replace('_', '-')}"
        command = ["evaluate", "books27", "--metrics", "entropy", missing, flag, "./nowhere"]
        assert main([*command, "--data", str(corpus)]) == 2
        assert "nowhere" in capsys.readouterr().err


def test_an_empty_corpus_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "train.jsonl").write_text("")
    out = str(tmp_path / "data")
    assert main(["prepare", "jsonl", "--source", str(tmp_path), "--out", out]) == 2
    assert "must hold at least one document" in capsys.readouterr().err
    (tmp_path / "train.jsonl").write_text('{"text": "..."}')
    assert main(["prepare", "jsonl", "--source", str(tmp_path), "--out", out]) == 2
    assert "`chunks` must hold at least one token for train.bin" in capsys.readouterr().err


@pytest.mark.parametrize("out", [["--out", ""], ["--out="]])
def test_an_empty_path_is_not_the_current_folder(
    out: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", *out]) == 2
    assert capsys.readouterr().err == "selfspec: `out` must be a path, got ''\n"
    assert not list(tmp_path.iterdir())


def test_failures_outside_leave_no_traceback():
    done = outside("sample", "--checkpoint", "nowhere")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("selfspec: `checkpoint` must be a folder")
    assert done.stderr.count("\n") == 1
    assert outside("sample", "--nmu", "3").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "selfspec", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=ENV)
    assert (done.returncode, done.stderr) == (2, "selfspec: No space left on device\n")


def test_what_standard_output_cannot_encode_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tiny.model()
    model.tokenizer = ss.CharTokenizer(" é" + ss.CharTokenizer().alphabet[2:])
    checkpoint.save(model, tmp_path)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert main(["infill", "éb_", "--checkpoint", str(tmp_path), "--watch"]) == 0
    assert printed.getvalue().splitlines()[-1].startswith(rb"\xe9b")


def test_a_reader_that_leaves_is_no_error(folder: Path):
    arguments = ["sample", "--checkpoint", str(folder / "books27")]
    process = subprocess.Popen(
        [sys.executable, "-m", "selfspec", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "BrokenPipe" not in errors


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_is_closed_is_none_to_write_to(closed: int):
    command = f"{sys.executable} -m selfspec recipes --json {closed}>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stderr) == (0, "")
    command = f"{sys.executable} -m selfspec score no-such-file {closed}>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stdout) == (2, "")  # an error is no result


def test_ctrl_c_during_training_leaves_a_run_to_resume(corpus: Path, tmp_path: Path):
    arguments = ["train", "books27-small-judge", "--data", str(corpus), "--out", str(tmp_path)]
    arguments += ["--batch-size", "1", "--device", "cpu", "--steps"]
    process = subprocess.Popen(
        [sys.executable, "-m", "selfspec", *arguments, "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENV,
    )
    log, deadline = tmp_path / "log.jsonl", time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "run it again to resume" in output
    assert any((tmp_path / "state").iterdir())
    assert ss.load_judge(tmp_path / "model").trunk.vocab_size == 27


def test_help_breaks_its_lines_itself():
    for verb in cli.all_verbs().values():
        groups = [kind for kind in get_type_hints(verb).values() if is_dataclass(kind)]
        for source in (verb, *groups):
            told = docstring_parser.parse_from_object(source).params
            assert told
            assert all("\n" not in (about.description or "") for about in told), source


def test_help_is_fast_because_torch_is_not_imported():
    code = (
        "import sys; from selfspec.cli import main;"
        "main(['--version']); print('torch' in sys.modules)"
    )
    done = python("-c", code)
    assert done.stdout.splitlines() == [f"selfspec {ss.__version__}", "False"]
    done = outside("--help")
    assert done.returncode == 0
    assert "infill" in done.stdout


def test_all_but_the_command_line_does_without_tyro(tmp_path: Path):
    code = (
        "import sys; sys.modules['tyro'] = None\n"
        "import selfspec as ss, selfspec.train, selfspec.recipes, selfspec.arena\n"
        "print(callable(ss.generate), callable(ss.train), callable(selfspec.arena.Sweep))"
    )
    done = python("-c", code)
    assert done.stdout == "True True True\n", done.stderr


def test_score_reads_utf8_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\udcff"))  # as other bytes are read in
    assert main(["score", "-", "--normalise"]) == 2
    assert "`file` must be text in UTF-8, got -" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["score", "-"]) == 2
    assert "got a closed standard input" in capsys.readouterr().err


def test_a_folder_of_shards_knows_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["sample", "--checkpoint", str(tmp_path / "model"), "--window", "3", "--rounds",
                 "1", "--length", "3", "--out", str(tmp_path / "out")]  # fmt: skip
    checkpoint.save(tiny.model(), tmp_path / "model")
    assert main(arguments) == 0
    checkpoint.save(tiny.model(seed=1), tmp_path / "model")
    assert main(arguments) == 2
    assert "`weights` must be" in capsys.readouterr().err
