"""benchmarks/books_bpe.py at a tiny size."""

import json
import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_readme import load_script

from selfspec.arena import Reference, Result
from selfspec.arena.results import Row
from selfspec.data.bpe import BPETokenizer, train_bpe
from selfspec.data.corpus import write_tokens
from selfspec.data.jsonl import read_jsonl
from selfspec.data.tokenizers import CharTokenizer, normalise
from selfspec.metrics import judge_nll, ngram_counts
from selfspec.model import AutoregressiveModel
from selfspec.nn.transformer import Trunk, TrunkConfig

EXCERPT = Path(__file__).parent / "data" / "books-excerpt.jsonl.xz"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("books_bpe")


@pytest.fixture(scope="module")
def text() -> str:
    return " ".join(read_jsonl([EXCERPT]))[:60_000]


@pytest.fixture(scope="module")
def tokenizer(text: str) -> BPETokenizer:
    return train_bpe([text], 300, progress=False)


@pytest.fixture(scope="module")
def judge() -> AutoregressiveModel:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        made = AutoregressiveModel(Trunk(TrunkConfig(27, 256, 16, 1, 2, causal=True)))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.mark.parametrize("size", [1, 255, 256, 257, 384, 385, 700])
def test_a_character_is_scored_in_the_first_window_that_reaches_it(
    script: ModuleType, judge: AutoregressiveModel, size: int
):
    ids = torch.randint(27, (size,), generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        found = script.CharacterJudge(judge, str).score(ids)
        slow = []
        for place in range(size):
            start = 0
            while place >= start + 256:
                start += 128
            assert place - start >= min(place, 128)
            slow.append(judge.log_probs(ids[None, start : place + 1])[0, -1])
    assert torch.allclose(found, torch.stack(slow).double(), atol=1e-4)


def test_the_judge_of_characters_gives_bits_a_character(
    script: ModuleType, judge: AutoregressiveModel, tokenizer: BPETokenizer, text: str
):
    read = script.Text(tokenizer)
    ids = tokenizer.encode(text)[:600]
    rows = np.stack([ids[:300], ids[300:]])
    rows[0, 40] = tokenizer.end  # no letters of it are read
    plain = tokenizer.decode(rows[0, :40]) + "\n" + tokenizer.decode(rows[0, 41:])
    assert read(rows[0]) == normalise(plain)
    scores = judge_nll(torch.from_numpy(rows), script.CharacterJudge(judge, read))
    with torch.no_grad():
        letters = torch.from_numpy(CharTokenizer().encode(normalise(plain)))
        expected = -script.CharacterJudge(judge, read).score(letters).mean() / math.log(2)
    assert len(letters) > 256
    assert scores.bits[0] == pytest.approx(expected.item())
    assert scores.bits[1] != pytest.approx(expected.item())
    nothing = torch.from_numpy(tokenizer.encode("...!!")[None])
    with pytest.raises(ValueError, match="`judge` must return numbers"):
        judge_nll(nothing, script.CharacterJudge(judge, read))


def test_words_are_measured_on_the_characters_of_tokens(
    script: ModuleType, tokenizer: BPETokenizer, text: str
):
    read = script.Text(tokenizer)
    rows = tokenizer.encode(text)[:1200].reshape(2, 600)
    known = frozenset(normalise(text).split()[:40])
    letters = [CharTokenizer().encode(read(row)) for row in rows]
    counts = ngram_counts(letters[0]) + ngram_counts(letters[1])
    found, arrays = script.Words(read, known, counts).measure(rows)
    assert found["kl_4gram"] == 0
    size = max(map(len, letters))
    pad = np.array([np.arange(size) >= len(row) for row in letters])
    same = np.stack([np.resize(row, size) for row in letters])
    expected, _ = Reference(CharTokenizer().decode, known).measure(np.ma.masked_array(same, pad))
    assert {**found, "kl_4gram": None} == expected
    assert arrays["words"].shape == (2,)
    other = script.Words(read, known, script.grams("of another text altogether"))
    assert other.measure(rows)[0]["kl_4gram"] > 1
    assert other.digest() != script.Words(read, known, counts).digest()


def result(nfe: float, bits: list[float], **settings: Any) -> Result:
    mean, cost = float(np.mean(bits)), np.full(len(bits), nfe)
    row = Row("plain", settings, nfe, nfe, 0.0, mean, mean, mean, None, 0.5, mean, 1.0, 0.1,
              mean, len(bits), "uniform", None, None)  # fmt: skip
    return Result(row, {"judge": np.array(bits), "nfe": cost, "trunk_passes": cost})


def test_between_two_settings_a_curve_is_straight_in_log_nfe(script: ModuleType):
    curve = [result(64.0, [1.0, 2.0], schedule="linear", steps=64),
             result(16.0, [3.0, 6.0], schedule="linear", steps=16)]  # fmt: skip
    middle = script.between(curve, 32.0)
    assert middle.arrays["judge"] == pytest.approx([2.0, 4.0])
    assert middle.row.judge == pytest.approx(3.0)
    assert middle.row.judge_low < 3.0 < middle.row.judge_high
    assert middle.row.nfe == 32
    assert middle.row.settings == {"schedule": "linear", "between": [16, 64]}
    for nfe, bits in {16.0: [3.0, 6.0], 64.0: [1.0, 2.0]}.items():
        assert script.between(curve, nfe).arrays["judge"] == pytest.approx(bits)
    assert script.between(curve, 15.0) is None
    assert script.between(curve, 65.0) is None
    rows = [found.row.nfe for found in script.table(curve)]
    assert rows == [32, 64]


def test_every_stage_runs_stops_and_goes_on(
    script: ModuleType, tokenizer: BPETokenizer, text: str, tmp_path: Path
):
    ids = tokenizer.encode(text)
    splits = {"train": ids[:9000], "valid": ids[9000:10000], "test": ids[10000:12000]}
    write_tokens(tmp_path / "data", {k: [v] for k, v in splits.items()}, tokenizer)
    args = Namespace(data=tmp_path / "data", runs=tmp_path / "runs", judge=Path("books27-judge"),
                     model="joint", seconds=1e-9, steps=3, part=None, command="test",
                     out=tmp_path / "report.json")  # fmt: skip
    size = replace(script.TINY, length=48, n=3, most=24)
    for stage in ("trunk", "head", "joint", "judge"):
        with pytest.raises(SystemExit, match=f"stage {stage}: stopped"):
            script.train(Namespace(**{**vars(args), "seconds": 0.01}), size, stage)
        again = Namespace(**{**vars(args), "seconds": None, "steps": 7})
        script.train(again, size, stage)  # as many steps as it was to have
        about = json.loads((args.runs / stage / "model" / "config.json").read_text())["training"]
        assert about["step"] == about["run"]["steps"] == 3
    args.seconds, reports = None, []
    with torch.compiler.set_stance("force_eager"):
        for part in ("0/2", "1/2", None, None):
            args.part = part
            script.quality(args, size, "quality")
            reports.append(args.out.read_text() if part is None else "")
    assert reports[2] == reports[3]
    report = json.loads(reports[3])
    rows = report["rows"]
    assert {"plain", "self-speculative", "data"} == {row["sampler"] for row in rows}
    assert all(row["second_judge_low"] < row["second_judge"] for row in rows)
    assert all(row["heldout_bits"] > 0 for row in rows if row["sampler"] != "data")
    assert {r["score_name"] for r in report["reduction"]} == set(script.SCORES)
    assert report["judges"]["model"]["steps"] == 3
    assert report["table"] == []  # too short for 32 NFE
    assert report["judges"]["second_judge"]["unit"] == "bits per token"


def test_the_table_has_what_plain_sampling_needs_for_the_same_score(script: ModuleType):
    plain = [result(n, [8 - math.log2(n), 8 - math.log2(n)], schedule="linear", steps=n)
             for n in (16, 32, 64, 128, 256)]  # fmt: skip
    ours = [result(n, [7 - math.log2(n), 7 - math.log2(n)], rounds=1, schedule="linear", dtau=1 / n)
            for n in (16, 40, 80)]  # fmt: skip
    ours = [Result(replace(r.row, sampler="self-speculative"), r.arrays) for r in ours]
    both = [*plain, *ours]
    rows = script.with_reductions(script.table(both), both, {"same trunk": 1.0})
    found = [(row["sampler"], row["nfe"]) for row in rows]
    assert found == [("plain", 32), ("self-speculative", 32), ("plain", 64),
                     ("self-speculative", 64), ("plain", 128), ("plain", 256)]  # fmt: skip
    for row in rows:
        if row["sampler"] != "plain":
            assert row["settings"].keys() == {"rounds", "schedule", "between"}
            assert list(row["reduction"]) == ["judge"]
            assert row["reduction"]["judge"]["ratio"] == pytest.approx(2.0)
            assert row["reduction"]["judge"]["bound"] is None
            assert "by judge  2.00 (2.00–2.00)" in script.printed(row)
        else:
            assert "reduction" not in row


def test_a_budget_of_time_becomes_a_number_of_steps(script: ModuleType):
    class Trainer:
        device = torch.device("cpu")
        feed = Namespace(close=lambda: None)

        def prepared(self) -> Any:
            return torch.no_grad()

        def update(self) -> None:
            script.time.sleep(0.02)

    began = script.time.monotonic()
    assert 15 < script.affordable(Trainer(), 0.9, began) <= 33
    assert script.affordable(Trainer(), 0.0, began) == 1
