"""The wall-clock benchmark: its rows, its baselines, its figure."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import make_toy
from reference import Puzzle, ancestral_law, p_value

from selfspec.arena.speed import METHODS, latency_figure
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.schedules import LinearSchedule

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from baselines import CachedDecoder, mdlm_loop  # type: ignore[import-not-found]  # noqa: E402

FIELDS = {"model", "settings", "acceptance", "batch", "method", "equal", "nfe", "trunk_passes",
          "head_passes", "ms_per_sample", "samples_per_s", "peak_mib"}  # fmt: skip


def histogram(tokens: torch.Tensor, vocab: int = 3) -> torch.Tensor:
    powers = vocab ** torch.arange(tokens.shape[1]).flip(0)
    return torch.bincount((tokens * powers).sum(1), minlength=vocab ** tokens.shape[1])


def test_the_published_loop_has_the_ancestral_law():
    torch.manual_seed(0)
    model = make_toy(length=3)
    law = ancestral_law(model, Puzzle("???"), LinearSchedule(), steps=4)
    drawn, passes = mdlm_loop(model, 30_000, 3, steps=4)
    assert passes == 5
    assert p_value(histogram(drawn).numpy(), law) > 1e-3


def test_the_cached_decoder_has_the_law_of_its_trunk():
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(3, 3, width=8, blocks=2, heads=2, causal=True)).double().eval()
    torch.nn.init.normal_(trunk.unembedding.weight, std=0.5)
    drawn = CachedDecoder(trunk, 30_000, fast=False).sample()
    every = torch.tensor(list(product(range(3), repeat=3)))
    begun = torch.cat([torch.full((27, 1), trunk.mask_id), every[:, :-1]], dim=1)
    with torch.no_grad():
        logp = trunk.unembed(trunk(begun)).log_softmax(-1)
    law = logp.gather(-1, every.unsqueeze(-1)).sum((1, 2)).exp()
    assert p_value(histogram(drawn).numpy(), law.numpy()) > 1e-3


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("latency") / "latency.json"
    command = [sys.executable, "benchmarks/latency.py", "--tiny", "--models", "150M-1024",
               "--batches", "2", "1", "--waves", "2", "--out", str(out)]  # fmt: skip
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    for _ in range(2):  # the second finds every row there
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return json.loads(out.read_text())


def test_a_report_has_every_row_once(report: dict):
    rows = [
        (r["method"], r["equal"], tuple(r["settings"].items()), r["batch"]) for r in report["rows"]
    ]
    assert len(rows) == len(set(rows)) == 9 * 3 * 2
    for row in report["rows"]:
        assert row.keys() >= FIELDS
        assert row["ms_per_sample"] * row["samples_per_s"] == pytest.approx(1000)


def test_the_figure_shows_every_method(report: dict):
    (ax,) = latency_figure(report).axes
    assert [line.get_label() for line in ax.lines] == [label for label, *_ in METHODS.values()]
    with pytest.raises(ValueError, match="`report` must have rows of the settings"):
        latency_figure(report, {"rounds": 1, "dtau": 0.5})
