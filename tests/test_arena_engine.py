"""What the arena draws with: the engine where it can run a sampler, else the sampler itself."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from selfspec.arena import (
    Reference,
    Setting,
    Sweep,
    contenders,
    row_table,
    save_page,
    write_contest,
)
from selfspec.engine import Engine
from selfspec.measuring import SWEEP, knobs
from selfspec.model import SSMD
from selfspec.sampling import (
    AncestralSampler,
    FixedCountSampler,
    KLASSSampler,
    PlainSampler,
    Sampler,
    SpeculativeSampler,
    ThresholdSampler,
    TopKSampler,
)
from selfspec.schedules import CosineWindow
from selfspec.selection import CellOrder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from arena import interleaved  # type: ignore[import-not-found]  # noqa: E402

N, BATCH = 11, 4
RESULTS = BENCHMARKS / "results"
RUN: dict[str, Callable[[SSMD], Sampler]] = {
    "plain": lambda model: FixedCountSampler(model, steps=5),
    "ancestral": lambda model: AncestralSampler(model, steps=5),
    "self-speculative": lambda model: SpeculativeSampler(model, window=CosineWindow(0.2), rounds=2),
    "top-k": lambda model: TopKSampler(model, steps=5),
    "plain in cells": lambda model: PlainSampler(model, CellOrder(), CosineWindow(0.2)),
    "self-speculative in cells": lambda model: SpeculativeSampler(
        model, CellOrder(), CosineWindow(0.2), 2
    ),
}
LEFT = {"klass": KLASSSampler, "threshold": lambda model: ThresholdSampler(model, 0.3)}
COUNTS = ("tokens", "nfe", "trunk_passes", "head_passes")


def sweep(model: SSMD, folder: Path, **options: Any) -> Sweep:
    judge = tiny.judge(vocab=model.vocab_size).log_probs
    return Sweep(model, judge, Reference(), folder, **{"n": N, "batch_size": BATCH, **options})


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Which engine drew, and how many rows, batch by batch."""
    found, draw = [], Engine.sample

    def counted(self: Engine, sampler: Sampler, tokens: torch.Tensor, *rest: Any) -> Any:
        found.append((id(self), len(tokens)))
        return draw(self, sampler, tokens, *rest)

    monkeypatch.setattr(Engine, "sample", counted)
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", RUN)
def test_engine_and_reference_draw_the_same_rows(name: str, dtype: torch.dtype, tmp_path: Path):
    model = tiny.model().to(dtype)
    setting = Setting(name, "", {}, RUN[name](model))
    fast = sweep(model, tmp_path).measure(setting)
    slow = sweep(model, tmp_path, engine="reference").measure(setting)
    assert (fast.row.engine, slow.row.engine) == ("engine", "reference")
    for count in COUNTS:
        np.testing.assert_array_equal(fast.arrays[count], slow.arrays[count])
    assert replace(fast.row, engine=None) == replace(slow.row, engine=None)
    assert len({*map(bytes, fast.arrays["tokens"])}) == N


@pytest.mark.parametrize("name", ["plain", "self-speculative"])
def test_rows_of_their_own_lengths_are_drawn_by_the_engine(
    name: str, tmp_path: Path, batches: list[tuple[int, int]]
):
    model = tiny.protein().double()
    setting = Setting(name, "", {}, RUN[name](model))
    fast = sweep(model, tmp_path, lengths=model.lengths).measure(setting)
    assert len(batches) == 3
    slow = sweep(model, tmp_path, lengths=model.lengths, engine="reference").measure(setting)
    assert len(batches) == 3
    assert len({*fast.arrays["lengths"]}) > 2
    for count in (*COUNTS, "lengths"):
        np.testing.assert_array_equal(fast.arrays[count], slow.arrays[count])


def test_one_engine_draws_all_batches_of_a_setting(tmp_path: Path, batches: list[tuple[int, int]]):
    model = tiny.model()
    sweep(model, tmp_path).measure(Setting("plain", "", {}, RUN["plain"](model)))
    engines, rows = zip(*batches, strict=True)
    assert rows == (4, 4, 3)
    assert len({*engines}) == 1


@pytest.mark.parametrize("name", LEFT)
def test_what_the_engine_cannot_run_is_drawn_by_the_sampler(
    name: str, tmp_path: Path, batches: list[tuple[int, int]]
):
    model = tiny.model()
    found = sweep(model, tmp_path).measure(Setting(name, "", {}, LEFT[name](model)))
    assert found.row.engine == "reference"
    assert not batches


def test_half_precision_reaches_the_engine(tmp_path: Path):
    model = tiny.model()
    setting = Setting("plain", "", {}, RUN["plain"](model))
    exact = sweep(model, tmp_path).measure(setting).arrays["tokens"]
    half = sweep(model, tmp_path, autocast=True).measure(setting)
    assert half.row.engine == "engine"
    share = (half.arrays["tokens"] == exact).mean()
    assert 0.5 < share < 1  # a draw in a hundred falls otherwise, and the rest of its row with it


def test_only_none_and_reference_are_choices(tmp_path: Path):
    with pytest.raises(ValueError, match="`engine` must be \"reference\" or None, got 'auto'"):
        sweep(tiny.model(), tmp_path, engine="auto")


def test_reports_say_what_drew_a_row_and_whose_milliseconds_they_are(tmp_path: Path):
    model = tiny.model()
    runs = [Setting("plain", "uniform", {}, RUN["plain"](model)),
            Setting("klass", "", {}, KLASSSampler(model))]  # fmt: skip
    told = {}
    for engine in (None, "reference"):
        of = sweep(model, tmp_path, engine=engine, n=12, batch_size=2)
        found = [*of.run(runs, progress=False), of.measure_data(np.zeros((2, 24), int))]
        report = write_contest(tmp_path / "r.json", found, 0, {})
        save_page(report, tmp_path / "r.html")
        by = [row["engine"] for row in report["rows"]]
        assert by == [engine or "engine", "reference", None]
        told[engine] = (tmp_path / "r.html").read_text()
        assert told[engine].count('<td class="text">reference</td>') == by.count("reference")
        assert by[0] in row_table(report["rows"]).splitlines()[2].split()
    assert "Milliseconds are those of the engine where it can" in told[None]
    assert "Milliseconds are those of the reference samplers" in told["reference"]


def test_a_report_from_before_is_still_read(tmp_path: Path):
    """It has no word on what drew its rows: the reference did."""
    report = json.loads((RESULTS / "arena-books27.json").read_text())
    untold = {"ms_per_sample": None, "pareto_ms": False}
    report["rows"] = [row | untold for row in report["rows"]]
    for row in report["rows"]:
        del row["engine"]
    timed = [row | {"ms_per_sample": 2.0} for row in report["rows"][:3]]
    for rows in (report["rows"][:3], timed):
        save_page(report | {"rows": rows}, tmp_path / "r.html")
        page = (tmp_path / "r.html").read_text()
        assert ("Milliseconds are those of the reference samplers" in page) == (rows is timed)
        assert "drawn by" not in page
        assert "by" not in row_table(rows).splitlines()[0].split()


def test_a_run_that_is_cut_off_has_the_cheap_points_of_every_curve():
    model = tiny.model()
    settings = contenders(model, ["plain", "maskgit", "self-speculative"], ["uniform"], [4, 8, 16])
    drawn = interleaved(settings)
    assert sorted(s.label for s in drawn) == sorted(s.label for s in settings)
    first = [s for s in settings if s.settings.get("steps") == 4]
    assert {s.label for s in first} <= {s.label for s in drawn[: len(settings) // 2]}
    assert len(first) == 5  # two schedules, three noises
    windows = [s.settings for s in drawn if s.sampler == "self-speculative"]
    assert windows == [knobs(rounds, window) for rounds, window in SWEEP], "one curve, cheap first"
    assert drawn[:5] == first
