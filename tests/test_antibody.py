"""benchmarks/antibody.py on tiny random stand-ins for AntiBERTy and IgLM."""

import itertools
import json
import math
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hubs
import numpy as np
import pytest
import torch
from test_readme import load_script

import selfspec as ss
from selfspec.data.tokenizers import AMINO_ACIDS
from selfspec.likelihood import log_likelihood
from selfspec.prompts import blank
from selfspec.schedules import CosineWindow

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONDITIONS = ["[CAMEL]", "[HUMAN]", "[MOUSE]", "[RABBIT]", "[RHESUS]", "[HEAVY]", "[LIGHT]"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("antibody")


@pytest.fixture(scope="module")
def iglm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the wheel, with residues in another order than ours."""
    folder = tmp_path_factory.mktemp("iglm")
    vocabulary = [*SPECIALS, *AMINO_ACIDS[::-1], *CONDITIONS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    shape = {"vocab_size": 32, "n_positions": 40, "n_embd": 16, "n_layer": 1, "n_head": 2}
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        model = hubs.hf.GPT2LMHeadModel(hubs.hf.GPT2Config(**shape))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder / "IgLM")
    return folder


@pytest.fixture(scope="module")
def model() -> ss.SSMD:
    made = ss.attach_head(hubs.bert(), tokenizer=hubs.tokenizer(AMINO_ACIDS[::-1]))
    assert made.head is not None
    torch.nn.init.normal_(made.head.project.weight, std=0.3)
    return made


def test_iglm_is_a_mixture_of_its_chains_over_residues_and_end(script: ModuleType, iglm: Path):
    law = script.IgLM(iglm)
    names = (iglm / "vocab.txt").read_text().split()
    text = "ACDWY"
    tokens = torch.tensor([[AMINO_ACIDS.index(c) for c in text]])
    allowed = [names.index(c) for c in [*AMINO_ACIDS, "[SEP]"]]
    total = 0.0
    for chain in ("[HEAVY]", "[LIGHT]"):
        prefix, chance = [names.index(chain), names.index("[HUMAN]")], 0.5
        for residue in text:  # one token after another, without a shift to get wrong
            logits = law.model(torch.tensor([prefix])).logits[0, -1]
            chance *= logits[allowed].softmax(0)[allowed.index(names.index(residue))].item()
            prefix.append(names.index(residue))
        total += chance
    assert law.log_probs(tokens).sum().item() == pytest.approx(math.log(total), rel=1e-4)
    # What stands behind a residue does not change it, so that pads do not.
    longer = torch.cat([tokens, torch.zeros_like(tokens)], dim=1)
    assert torch.allclose(law.log_probs(longer)[:, :5], law.log_probs(tokens), atol=1e-5)


def test_iglm_draws_from_the_law_that_judges(
    script: ModuleType, iglm: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(script, "LENGTH", 30)
    law, num = script.IgLM(iglm), 3000
    drawn = [text.decode() for text in law.draw(2 * num, 0).tolist()]
    assert all(text and set(text) <= set(AMINO_ACIDS) for text in drawn)
    assert max(map(len, drawn)) <= 27  # of 30, without what stands before it and the end
    first = torch.arange(20).unsqueeze(1)
    chance = law.log_probs(first).exp().squeeze(1)
    chance /= chance.sum()  # a sequence has a first residue, and is otherwise left out
    counts = np.array([sum(text[0] == c for text in drawn) for c in AMINO_ACIDS])
    assert counts / counts.sum() == pytest.approx(chance.numpy(), abs=0.03)
    assert chance.max() > 2 * chance.min()


class Echo(torch.nn.Module):
    """A model and its cache: a row repeats its first residue, read off cache and ids, or ends."""

    device = torch.device("cpu")

    def __init__(self, allowed: torch.Tensor):
        super().__init__()
        self.allowed, self.first = allowed, torch.empty(0, dtype=torch.long)

    def forward(self, ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Namespace:
        chances = torch.zeros(*ids.shape, 32)
        if ids.shape[1] > 1:
            chances[:, -1, self.allowed[:20]] = 1 / 20
        else:
            self.first = self.first if len(self.first) else ids[:, -1]
            both = torch.stack([self.first, ids[:, -1]], dim=1)
            chances[:, -1].scatter_add_(1, both, torch.full(both.shape, 0.45))
            chances[:, -1, self.allowed[20]] = 0.1
        return Namespace(logits=chances.log(), past_key_values=self)

    def batch_select_indices(self, index: torch.Tensor) -> None:
        self.first = self.first[index]


def test_a_row_keeps_its_past_when_others_have_ended(script: ModuleType, iglm: Path):
    law = script.IgLM(iglm)
    law.model = Echo(law.allowed)
    drawn = law.draw(500, 0).tolist()
    assert all(len({*text}) == 1 for text in drawn)
    assert len(drawn) == 500
    assert np.mean([*map(len, drawn)]) == pytest.approx(10, abs=1.5)


def test_memory_taken_once_changes_nothing(
    script: ModuleType, iglm: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(script, "LENGTH", 38)
    law = script.IgLM(iglm)
    drawn = law.draw(500, 0)
    monkeypatch.setattr(script, "make_cache", lambda length: None)  # the library's own
    assert drawn.tolist() == law.draw(500, 0).tolist()
    assert len({len(text) for text in drawn.tolist()}) > 20


@pytest.fixture
def small(script: ModuleType, iglm: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A size, and arguments for a folder."""
    monkeypatch.setattr(script, "LENGTH", 24)
    size = script.Size(
        train=120, judge=80, heldout=20, likelihood=2, reference=5, drawn=64, judge_steps=2,
        head_steps=2, window_steps=2, finetune_steps=2, batch=2, n=4, most=8, profile=2,
    )  # fmt: skip
    return size, lambda folder, **more: Namespace(
        **{"iglm": iglm, "runs": folder, "seconds": None, "command": "test"} | more
    )


class Killed(Exception):
    """What a stage does not see coming."""


def dies_after(times: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, so many times."""
    calls = itertools.count()

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= times:
            raise Killed
        return call(*args, **kwargs)

    return counted


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_killed_while_drawing_the_same_sequences_come(
    script: ModuleType, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    size, arguments = small
    script.data(whole := arguments(tmp_path / "whole"), size)
    killed, draw = arguments(tmp_path / "killed"), script.IgLM.draw
    for parts in (2, 1):  # a second death, in what the first has left
        monkeypatch.setattr(script.IgLM, "draw", dies_after(parts, draw))
        with pytest.raises(Killed):
            script.data(killed, size)
    (killed.runs / "drawn" / "0003.npy.1.part").write_bytes(b"\x93NUMPY")  # of a killed process
    seeds = []
    monkeypatch.setattr(script.IgLM, "draw", lambda *a: (seeds.append(a[2]), draw(*a))[1])
    summary = script.data(killed, size)
    assert contents(killed.runs / "data") == contents(whole.runs / "data")
    assert seeds[0] == 3
    assert summary == "judge 80, valid 20, test 20, train 120"
    monkeypatch.setattr(script, "IgLM", None)
    assert script.data(killed, size) == "finished before"


def test_without_time_all_parts_of_the_data_are_smaller_alike(
    script: ModuleType, small: Any, tmp_path: Path
):
    size, arguments = small
    args = arguments(tmp_path, seconds=1e-9)
    script.data(args, size)
    drawn = np.load(args.runs / "drawn" / "0000.npy")
    assert [f.name for f in (args.runs / "drawn").iterdir()] == ["0000.npy"]
    share = len(set(drawn.tolist())) / 240
    stores = {s: script.RaggedStore(tmp_path / f"data/{s}.bin")
              for s in ("judge/train", "judge/valid", "corpus/test", "corpus/train")}  # fmt: skip
    assert [len(store) for store in stores.values()] == [
        int(share * n) for n in (size.judge, size.heldout, size.heldout, size.train)
    ]
    assert 0.1 < share < 0.3


def test_samples_are_read_as_residues_without_their_frame(script: ModuleType, model: ss.SSMD):
    sizes = torch.tensor([3, 6, 1])
    tokens, pad = blank(sizes, model.mask_id, frame=model.frame)
    samples = ss.SpeculativeSampler(model).sample(tokens, torch.arange(3), pad)
    rows = script.residues(model)(samples.rows)
    assert model.tokenizer is not None
    for row, drawn, size in zip(rows, samples.tokens, sizes.tolist(), strict=True):
        text = model.tokenizer.decode(drawn[1 : size + 1])
        assert "".join(AMINO_ACIDS[i] for i in row.compressed()) == text


def test_held_out_sequences_have_the_likelihood_given_their_frame(
    script: ModuleType, model: ss.SSMD
):
    beyond = np.array([[False] * 4, [False, False, True, True]])
    rows = np.ma.masked_array([[5, 9, 24, 7], [6, 6, 0, 0]], mask=beyond)
    law = script.Heldout(model, rows, seed=0)
    order = law.table("uniform")
    assert order.observed.tolist() == [2, 2]
    tokens = torch.tensor([[2, 5, 9, 24, 7, 3], [2, 6, 6, 3, 4, 4]])
    pad = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    observed = ((tokens == 2) | (tokens == 3)) & ~pad
    window = CosineWindow(0.3)
    nats = log_likelihood(model, tokens, window=window, rounds=2, pad=pad, observed=observed)
    setting = script.Setting("self-speculative", "uniform", {},
                             ss.SpeculativeSampler(model, window=window, rounds=2))  # fmt: skip
    expected = -nats.numpy() / np.array([4, 2]) / math.log(2)
    assert law(setting) == pytest.approx(expected, rel=2e-2)  # the script is in bfloat16


def test_every_stage_runs_and_resumes(
    script: ModuleType, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trunk = tmp_path / "antiberty"
    hubs.bert().save_pretrained(trunk)
    hubs.tokenizer().save_pretrained(trunk)
    size, arguments = small
    args = arguments(tmp_path / "runs", antiberty=trunk, out=tmp_path / "report.json")
    for stage in ("data", "judge", "head"):
        script.STAGES[stage](args, size)
    script.quality(args, size)  # with what there is
    assert {row["model"] for row in rows(args.out)} == {"AntiBERTy"}
    for stage in ("finetune", "finetuned"):
        assert "step 2 of 2" in script.STAGES[stage](args, size)
    shutil.copytree(args.runs, tmp_path / "other", ignore=shutil.ignore_patterns("quality"))
    reports = []
    for _ in range(2):
        for stage in script.STAGES.values():
            stage(args, size)
        reports.append(args.out.read_text())
    assert reports[0] == reports[1]
    args = arguments(tmp_path / "other", antiberty=trunk, out=tmp_path / "again.json")
    measure = script.Sweep.measure
    monkeypatch.setattr("quality.REPORT_EVERY", 0)  # whose `fill` it is
    monkeypatch.setattr(script.Sweep, "measure", dies_after(5, measure))
    with pytest.raises(Killed):
        script.quality(args, size)
    assert len(rows(args.out)) == 5  # the report is already there, for what is measured
    monkeypatch.setattr(script.Sweep, "measure", measure)
    measured = len(rows(tmp_path / "report.json"))
    assert script.quality(args, size) == f"{measured} of {measured} settings"
    assert [untimed(row) for row in rows(args.out)] == [
        untimed(row) for row in rows(tmp_path / "report.json")
    ]
    report = json.loads(reports[0])
    models = [row["model"] for row in report["rows"] if row["sampler"] != "data"]
    assert [name for name, _ in itertools.groupby(models)] == list(script.MODELS)
    assert all(row["second_judge_low"] < row["second_judge"] for row in report["rows"])
    pairs = {(r["model"], r["score_name"]) for r in report["reduction"]}
    assert all(r["nfe"] == r["cost"] for r in report["reduction"] if r["account"] == "same trunk")
    names = ("judge", "second_judge", "heldout_bits")
    assert pairs == set(itertools.product(script.MODELS, names))
    about = report["judges"]
    assert [run["steps"] for run in about["training"].values()] == [2] * 5
    losses = [set(run["validation_nats"]) for run in about["training"].values()]
    assert ["window" in found for found in losses] == [False, False, True, True, False]
    schedules = [row["settings"].get("schedule") for row in report["rows"]]
    assert schedules.count("optimal") == 2 * 2 * 3  # models, steps, unverified and by rounds
    assert about["judge"]["training"]["of"] == 2
    assert about["trunk"]["rounded_to_bfloat16"] is False
    assert [about["data"][k] for k in ("train", "judge", "share_of_plan")] == [120, 80, 1.0]


def rows(path: Path) -> list[dict[str, Any]]:
    return [r for r in json.loads(path.read_text())["rows"] if r["sampler"] != "data"]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "seconds"}
