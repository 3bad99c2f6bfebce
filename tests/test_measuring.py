"""The making of a calibration table: what is measured, and what is kept."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

import selfspec as ss
from selfspec import calibration, measuring


def test_calibrating_measures_what_sampling_costs(tmp_path: Path):
    made = tiny.model()
    ss.save(made, tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    samplers = [
        ss.SpeculativeSampler(made, ss.UniformOrder(), ss.CosineWindow(0.3), 2),
        ss.SpeculativeSampler(made, ss.RespacedOrder(), ss.ConstantWindow(3), 1),
        ss.FixedCountSampler(made, ss.VanDerCorputOrder(), ss.LinearSchedule(), 5),
    ]
    rows = ss.calibrate(
        made, tiny.judge(), tmp_path, samplers=samplers, n=6, seed=2, progress=False
    )
    assert [row["nfe"] for row in rows] == sorted(row["nfe"] for row in rows)
    assert {row["sampler"] for row in rows} == {"speculative", "plain"}
    for row in rows:
        point = calibration.Point.from_row(row)
        samples = ss.generate(made, 6, seed=2, sampler=point.sampler(made))
        assert row["nfe"] == pytest.approx(float(samples.nfe.mean()), abs=0.01)
        bits = ss.metrics.judge_nll(samples.tokens, tiny.judge().log_probs).bits
        assert row["judge"] == pytest.approx(bits.mean(), abs=1e-3)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert ss.load(tmp_path).calibration == rows


@pytest.mark.parametrize("name", ["n", "batch_size"])
def test_a_calibration_without_samples_is_refused(name: str):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        ss.calibrate(tiny.model(), tiny.judge(), **{name: 0})  # type: ignore[arg-type]


def test_plain_sampling_is_swept_in_every_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measuring, "SWEEP", measuring.SWEEP[:1])
    monkeypatch.setattr(measuring, "worthwhile", lambda rows: rows)
    rows = measuring.measure(tiny.model(), tiny.judge().log_probs, n=1, progress=False)
    plain = [(row["order"], row["steps"]) for row in rows if row["sampler"] == "plain"]
    expected = [(order, k) for order in calibration.ORDERS for k in measuring.PLAIN_SWEEP]
    assert sorted(plain) == sorted(expected)
    back = [row for row in rows if row["sampler"] == "remasked"]
    assert {(row["order"], row["eta"]) for row in back} == {("cells", 0.05)}
    assert len(rows) == len(expected) + len(calibration.ORDERS) + len(measuring.REMASKED_SWEEP)


def test_a_table_keeps_plain_rows_that_add_to_the_verified_ones():
    verified = [
        tiny.row(8, 5.0, "respaced"), tiny.row(9, 5.5, "respaced"), tiny.row(12, 4.2, "respaced"),
        tiny.row(8, 3.0, "uniform"),
    ]  # fmt: skip
    good = [
        tiny.plain_row(5, 5.0, steps=5),  # no worse than the cheapest verified row
        tiny.plain_row(7, 4.8, steps=7),
        tiny.plain_row(14, 4.1, steps=14),
        tiny.plain_row(3, 9.0, "cells", steps=3),  # where nothing of its order is verified
    ]
    bad = [
        tiny.plain_row(4, 5.1, steps=4),  # worse than verification at its cheapest
        tiny.plain_row(7, 4.9, steps=6),  # no better than another of the same cost
        tiny.plain_row(13, 4.3, steps=13),  # beaten by a verified row
        tiny.plain_row(7, 3.1, "uniform", steps=7),
        tiny.plain_row(4, 9.5, "cells", steps=4),
    ]
    rows = [*bad, *verified, *good]
    assert measuring.worthwhile(rows) == [*verified, *good]
    assert measuring.worthwhile(verified) == verified
    assert measuring.worthwhile([]) == []


def test_measuring_keeps_what_is_worthwhile():
    made, bits = tiny.model(), iter((3.0, 5.0, 1.0, 2.0))

    def judge(tokens: Tensor) -> Tensor:
        return torch.full(tokens.shape, -next(bits) * math.log(2))

    samplers = [ss.FixedCountSampler(made, steps=k) for k in (2, 4, 8, 16)]
    rows = measuring.measure(made, judge, samplers, n=4, progress=False)
    assert [(row["steps"], row["judge"]) for row in rows] == [(2, 3.0), (8, 1.0)]
