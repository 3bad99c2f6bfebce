"""benchmarks/antibody.py on tiny random stand-ins for AntiBERTy and IgLM."""

import itertools
import json
import math
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

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
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        return load_script("antibody")
    finally:
        sys.path.pop(0)


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
    drawn = [text for i, c in enumerate(script.CHAINS) for text in law.draw(c, num, i)]
    assert all(set(text) <= set(AMINO_ACIDS) for text in drawn)
    first = torch.arange(20).unsqueeze(1)
    chance = law.log_probs(first).exp().squeeze(1)
    chance /= chance.sum()  # a sequence has a first residue, and is otherwise left out
    counts = np.array([sum(text[0] == c for text in drawn) for c in AMINO_ACIDS])
    assert counts / counts.sum() == pytest.approx(chance.numpy(), abs=0.03)
    assert chance.max() > 2 * chance.min()


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
    script: ModuleType, iglm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(script, "LENGTH", 24)
    trunk = tmp_path / "antiberty"
    hubs.bert().save_pretrained(trunk)
    hubs.tokenizer().save_pretrained(trunk)
    size = script.Size(
        train=12, judge=10, heldout=4, likelihood=2, reference=5, drawn=32, judge_steps=2,
        head_steps=2, finetune_steps=2, batch=4, n=4, most=8,
    )  # fmt: skip
    args = Namespace(antiberty=trunk, iglm=iglm, runs=tmp_path / "runs", seconds=None,
                     out=tmp_path / "report.json", command="test")  # fmt: skip
    reports = []
    for _ in range(2):
        for stage in script.STAGES.values():
            stage(args, size)
        reports.append(args.out.read_text())
    assert reports[0] == reports[1]
    report = json.loads(reports[0])
    models = [row["model"] for row in report["rows"] if row["sampler"] != "data"]
    assert [name for name, _ in itertools.groupby(models)] == list(script.MODELS)
    assert all(row["second_judge_low"] < row["second_judge"] for row in report["rows"])
    pairs = {(r["model"], r["score_name"]) for r in report["reduction"]}
    names = ("judge", "second_judge", "heldout_bits")
    assert pairs == set(itertools.product(script.MODELS, names))
    trained = report["judges"]["training"]
    assert [run["steps"] for run in trained.values()] == [2, 2, 2]
    assert report["judges"]["trunk"]["rounded_to_bfloat16"] is False
