"""Training the head on the windows of an order, and what the report says of an order."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from test_readme import load_script

from selfspec import checkpoint
from selfspec.arena import Sweep
from selfspec.data.corpus import write_corpus
from selfspec.data.tokenizers import CharTokenizer
from selfspec.model import SSMD

README, ATTRIBUTION = load_script("readme"), load_script("attribution")


def reduction(ratio: float, low: float | None, high: float | None, bound: str | None = None) -> Any:
    return {"ratio": ratio, "low": low, "high": high, "bound": bound, "unresolved": False}


def test_order_and_verification_multiply_to_the_whole():
    part = ATTRIBUTION.quotient(reduction(6.0, 5.0, 8.0), reduction(1.5, 1.25, 2.0))
    assert part == reduction(4.0, 2.5, 6.4)


@pytest.mark.parametrize(
    ("whole", "part", "bound"),
    [("at least", None, "at least"), (None, "at least", "at most"), (None, "at most", "at least")],
)
def test_a_bound_of_one_factor_bounds_the_other(whole, part, bound):
    found = ATTRIBUTION.quotient(reduction(6, 5, None, whole), reduction(2, 1, None, part))
    assert (found["ratio"], found["bound"]) == (3, bound)
    assert found["low"] is None
    assert found["high"] is None


def test_an_open_interval_leaves_the_other_open():
    found = ATTRIBUTION.quotient(reduction(6, 5, 8), reduction(2, 0.0, 4, "at most"))
    assert (found["low"], found["high"]) == (1.25, None)


def test_two_bounds_say_nothing_of_the_other_factor():
    bounded = reduction(6, 5, None, "at least")
    assert ATTRIBUTION.quotient(bounded, bounded) is None
    assert ATTRIBUTION.quotient(bounded, None) is None


def test_the_attribution_is_read_from_the_records_of_its_row():
    report = json.loads((README.RESULTS / README.CURVE).read_text())
    lines = ATTRIBUTION.attribution(report).splitlines()
    row = next(r for r in report["rows"] if r["order"] == "respaced" and r["settings"]
               == {"rounds": 3, "schedule": "linear", "dtau": 0.125})  # fmt: skip
    whole, given = (
        next(r["ratio"] for r in report["reduction"]
             if (r["order"], r["settings"]) == (row["order"], row["settings"])
             and (r["baseline"], r["score_name"]) == (f"plain {order}", "judge"))
        for order in ("uniform", "respaced")
    )  # fmt: skip
    line = next(
        x for x in lines if x.startswith(f"| respaced | 3, linear, 0.125 | {row['nfe']:.1f} |")
    )
    for factor in (whole, whole / given, given):
        assert f"{factor:.2f}× (" in line
    assert all(" – |" not in x for x in lines if x.startswith("| uniform"))
    assert not any("separate" in line for line in lines)


@pytest.fixture
def script() -> ModuleType:
    return load_script("order")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a judge that says how good it is, and a corpus."""
    place = tmp_path_factory.mktemp("order")
    checkpoint.save(tiny.model(), place / "model")
    judge = {"validation": {"judge": 3.0}}
    checkpoint.save(tiny.judge(), place / "judge", training=judge)
    text = "it was the best of times it was the worst of times " * 20
    write_corpus(place / "data", {s: [text] for s in ("train", "valid", "test")}, CharTokenizer())
    return place


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path, *more: str) -> None:
    places = {"--model": "model", "--data": "data", "--runs": "runs", "--judge": "judge",
              "--folder": "q", "--out": "report.json"}  # fmt: skip
    given = [part for name, at in places.items() for part in (name, str(place / at))]
    monkeypatch.setattr(sys, "argv", ["order.py", *given, "--tiny", *more])
    script.main()


def test_a_head_is_tuned_measured_and_reported(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path
):
    run(script, monkeypatch, place, "train", "measure")
    drawn = {path: path.stat().st_mtime_ns for path in (place / "q").iterdir()}
    monkeypatch.setattr(Sweep, "measure", None)  # nothing is drawn again
    run(script, monkeypatch, place, "measure", "report")
    assert drawn == {path: path.stat().st_mtime_ns for path in (place / "q").iterdir()}
    report = json.loads((place / "report.json").read_text())
    own, tuned = str(place / "model"), f"{place / 'model'}, van-der-corput"
    curves = {(r["model"], r["sampler"], r["order"]) for r in report["rows"]}
    *spaced, _ = orders = ("van-der-corput", "respaced", "cells", "uniform")
    assert {(own, s, o) for o in orders for s in ("plain", "self-speculative")} - curves == {
        (own, "self-speculative", "uniform")  # none of so few passes
    }
    assert {(tuned, "self-speculative", order) for order in spaced} <= curves
    assert (tuned, "plain", "van-der-corput") not in curves
    assert all(
        (r["heldout_bits"] is None) == (r["order"] in ("respaced", "cells", ""))
        for r in report["rows"]
    )
    compared = {(r["model"], r["order"]) for r in report["reduction"]
                if r["baseline"] == f"plain {r['order']}"}  # fmt: skip
    assert compared == {(name, order) for name in (own, tuned) for order in spaced}
    losses = report["judges"]["losses"]
    for order in orders:
        draft = losses[own][order]["draft"]  # the trunk's, but for its storage in int8
        assert losses[tuned][order]["draft"] == pytest.approx(draft, rel=5e-3)
        assert losses[own][order]["window"] != losses[tuned][order]["window"]
    assert report["judges"]["training"][tuned]["step"] == 2


def test_the_tuned_model_has_the_trunk_of_its_start(place: Path):
    before = tiny.model()
    after = checkpoint.load(place / "runs" / "van-der-corput" / "model")
    assert isinstance(after, SSMD)
    assert after.head is not None
    assert before.head is not None
    pairs = zip(before.trunk.parameters(), after.trunk.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(before.head.parameters(), after.head.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_time_that_is_over_leaves_the_rest_for_the_next_call(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path
):
    elsewhere = ("--folder", str(place / "none"))
    run(script, monkeypatch, place, "--seconds", "0", *elsewhere, "measure")
    assert not (place / "none").exists()
