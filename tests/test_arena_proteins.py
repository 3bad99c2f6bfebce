"""The arena on sequences of their own lengths."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_antibody import Killed, dies_after
from test_readme import load_script

from selfspec.arena import ProteinReference, Setting, Sweep, accounts, reductions, write_report
from selfspec.arena.figures import diversity_figure, heldout_figure, relatives_figure
from selfspec.data.ragged import RaggedStore, write_sequences
from selfspec.data.tokenizers import ProteinTokenizer
from selfspec.files import write_json
from selfspec.kmers import kmers
from selfspec.lengths import Lengths
from selfspec.likelihood import log_likelihood
from selfspec.metrics import distinct_kmers, jensen_shannon, novelty
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.noise import row_seeds
from selfspec.sampling import FixedCountSampler, SpeculativeSampler
from selfspec.schedules import CosineWindow

N = 20


@pytest.fixture(scope="module")
def model() -> SSMD:
    return tiny.protein()


@pytest.fixture(scope="module")
def judge() -> AutoregressiveModel:
    return tiny.judge(vocab=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of twenty residues, some commoner than others."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, size in (("train", 40), ("test", 12), ("relatives", 6)):
        rows = [
            rng.choice(20, n, p=np.arange(1, 21) / 210) for n in rng.integers(8, tiny.LENGTH, size)
        ]
        write_sequences(folder / f"{split}.bin", rows, 20)
    write_json(folder / "tokenizer.json", ProteinTokenizer().to_config())
    return folder


@pytest.fixture
def sweep(model: SSMD, judge: AutoregressiveModel, data: Path, tmp_path: Path) -> Sweep:
    stores = (RaggedStore(data / f"{split}.bin") for split in ("train", "test"))
    return Sweep(model, judge.log_probs, ProteinReference(*stores), tmp_path / "rows", N, 7,
                 lengths=model.lengths)  # fmt: skip


def settings(model: SSMD) -> list[Setting]:
    return [
        Setting("plain", "uniform", {"steps": 4}, FixedCountSampler(model, steps=4)),
        Setting("plain", "uniform", {"steps": 12}, FixedCountSampler(model, steps=12)),
        Setting("self-speculative", "uniform", {"rounds": 2, "dtau": 0.2},
                SpeculativeSampler(model, window=CosineWindow(0.2), rounds=2)),
    ]  # fmt: skip


def test_samples_have_drawn_lengths_and_measures_leave_pads_out(
    model: SSMD, judge: AutoregressiveModel, data: Path, sweep: Sweep
):
    result = sweep.measure(settings(model)[-1])
    row, arrays = result.row, result.arrays
    assert isinstance(model.lengths, Lengths)
    sizes = model.lengths.draw(row_seeds(0, N)).numpy()
    assert arrays["lengths"].tolist() == sizes.tolist()
    rows = [tokens[:size] for tokens, size in zip(arrays["tokens"], sizes, strict=True)]
    bits = [
        -judge.log_probs(torch.from_numpy(tokens.astype(np.int64))[None]).mean().item() / np.log(2)
        for tokens in rows
    ]
    assert arrays["judge"] == pytest.approx(np.array(bits), rel=1e-5)
    train, test = (RaggedStore(data / f"{split}.bin") for split in ("train", "test"))
    counts = [np.bincount(x, minlength=20) for x in (test.tokens, np.concatenate(rows))]
    assert row.composition == pytest.approx(jensen_shannon(*counts))
    assert row.distinct_kmers == distinct_kmers(rows, 20)
    training = kmers([train[i] for i in range(len(train))], 20)
    assert row.novelty == pytest.approx(np.nanmean(novelty(kmers(rows, 20), training)))
    assert row.word_entropy is None
    alone = SpeculativeSampler(model, window=CosineWindow(0.2), rounds=2).sample(
        torch.full((1, int(sizes[3])), model.mask_id), row_seeds(0, N)[3:4]
    )
    assert alone.tokens[0].tolist() == rows[3].tolist()


def test_data_score_as_themselves(sweep: Sweep, data: Path):
    test, train = (RaggedStore(data / f"{split}.bin") for split in ("test", "train"))
    row = sweep.measure_data(test.excerpt(tiny.LENGTH, 100)).row
    assert (row.n, row.composition) == (12, 0)
    assert row.entropy == pytest.approx(
        np.mean([-(p * np.log(p)).sum() for p in map(shares, map(test.__getitem__, range(12)))])
    )
    assert sweep.measure_data(train.excerpt(tiny.LENGTH, 100)).row.novelty == 0


def shares(tokens: np.ndarray) -> np.ndarray:
    counts = np.bincount(tokens)
    return counts[counts > 0] / len(tokens)


def test_a_sweep_resumes_and_draws_its_figures(model: SSMD, sweep: Sweep, tmp_path: Path):
    first = sweep.run(settings(model), progress=False)
    again = sweep.run(settings(model), progress=False)
    assert [r.row for r in first] == [r.row for r in again]
    found = reductions(first[:2], first[2:], accounts(2, 1), "plain uniform")
    report = write_report(tmp_path / "r.json", first, found, 0, {"judge": {"unit": "bits"}})
    assert [ax.get_title("left") for ax in diversity_figure(report).axes] == [
        "Novelty, share of 6-mers", "Distinct 6-mers, share", "Composition, JSD from data, nats",
    ]  # fmt: skip
    names = {"heldout_bits": heldout_figure, "relatives_bits": relatives_figure}
    titles = []
    for name, draw in names.items():
        rows = [row | {name: 4.0 + i} for i, row in enumerate(report["rows"])]
        titles.append(draw(report | {"rows": rows}).axes[0].get_title("left"))
    assert [title.split(", ")[0] for title in titles] == ["Held-out proteins", "Held-out relatives"]


def test_the_quality_benchmark_runs_on_proteins(
    model: SSMD, judge: AutoregressiveModel, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    from selfspec import checkpoint

    checkpoint.save(model, tmp_path / "model")
    checkpoint.save(judge, tmp_path / "judge", training={"validation": {"judge": 3.0}})
    script = load_script("quality")
    monkeypatch.setattr(script, "load", lambda name, device: checkpoint.load(name, device))
    arguments = {"model": tmp_path / "model", "judge": tmp_path / "judge", "data": data, "n": 4,
                 "heldout": 3, "most": 8, "batch-size": 4, "folder": tmp_path / "rows",
                 "out": tmp_path / "report.json", "relatives": 2, "optimal": 3}  # fmt: skip
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["quality.py", *flags, "--orders", "uniform"])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--seconds", "0"])
    script.main()  # no setting begins
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 1
    sys.argv[-1] = "1000"
    measure = script.Sweep.measure
    monkeypatch.setattr(script, "REPORT_EVERY", 0)
    monkeypatch.setattr(script.Sweep, "measure", dies_after(2, measure))
    with pytest.raises(Killed):
        script.main()
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["sampler"] for row in rows].count("data") == 1
    assert len(rows) == 3  # what is measured is in the report already
    monkeypatch.setattr(script.Sweep, "measure", measure)
    script.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["judges"]["judge"]["unit"] == "bits per residue"
    found = [r for r in report["rows"] if r["settings"].get("dtau") == 0.16]
    test = RaggedStore(data / "test.bin").excerpt(tiny.LENGTH, 3)
    tokens, pad = (torch.from_numpy(f(test)) for f in (np.ma.getdata, np.ma.getmaskarray))
    nats = log_likelihood(model, tokens, window=CosineWindow(0.16), rounds=10, pad=pad, seeds=0)
    bits = (-nats / (~pad).sum(1) / np.log(2)).mean().item()
    assert found[0]["heldout_bits"] == pytest.approx(bits, rel=2e-2)  # the script is in bfloat16
    assert all(row["composition"] > 0 for row in found)
    rows = RaggedStore(data / "relatives.bin").excerpt(tiny.LENGTH, 2)
    law = script.Heldout(model, rows, 0)(
        script.speculative(model, "uniform", 10, CosineWindow(0.16))
    )
    assert found[0]["relatives_bits"] == pytest.approx(law.mean(), rel=1e-3)
    assert report["judges"]["relatives"]["rows"] == 4
    assert {r["score_name"] for r in report["reduction"]} == {
        "judge", "heldout_bits", "relatives_bits"
    }  # fmt: skip
    profile = json.loads(next((tmp_path / "rows").glob("profile-*-3.json")).read_text())
    assert len(profile) == tiny.LENGTH
    assert all(a >= b for a, b in pairwise(profile))
    steps = {r["settings"]["steps"] for r in report["rows"] if "optimal" in r["settings"].values()}
    assert steps == {6, 8}
