"""From a budget to a sampler: which row is taken, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import selfspec as ss
from selfspec import calibration


@pytest.fixture
def calibrated() -> ss.SSMD:
    made = tiny.model()
    made.calibration = [
        tiny.row(8, 5.0, dtau=0.3),
        tiny.row(12, 4.2),
        tiny.row(14, 4.3, dtau=0.05),
        tiny.row(20, 4.0, dtau=0.01),
        tiny.row(13, 4.1, "respaced", rounds=3),
    ]
    return made


def chosen(model: ss.SSMD, **request) -> tuple[str, float, int]:
    sampler = calibration.choose(model, **request)
    settings = calibration.describe(sampler)
    return settings["order"], settings["window"]["dtau"], settings["rounds"]


@pytest.mark.parametrize(
    ("nfe", "row"),
    [
        (8, ("uniform", 0.3, 2)),
        (12.9, ("uniform", 0.1, 2)),
        (13, ("respaced", 0.1, 3)),
        (19, ("respaced", 0.1, 3)),  # 14 NFE measured worse than 13
        (1000, ("uniform", 0.01, 2)),
    ],
)
def test_a_budget_takes_the_best_row_that_it_affords(calibrated: ss.SSMD, nfe: float, row: tuple):
    assert chosen(calibrated, nfe=nfe) == row


def test_an_order_restricts_the_table(calibrated: ss.SSMD):
    assert chosen(calibrated, nfe=19, order=ss.UniformOrder()) == ("uniform", 0.1, 2)
    assert chosen(calibrated, order=ss.RespacedOrder()) == ("respaced", 0.1, 3)
    with pytest.raises(ValueError, match="needs a calibration table for VanDerCorputOrder"):
        calibration.choose(calibrated, nfe=19, order=ss.VanDerCorputOrder())


def test_a_rule_with_another_score_has_no_rows_and_is_the_one_that_draws(calibrated: ss.SSMD):
    calibrated.calibration.append(tiny.row(9, 3.0, "cells"))
    rule = ss.CellOrder(ss.Margin())
    sampler = calibration.choose(calibrated, order=rule)
    assert sampler.order is rule
    assert calibration.describe(sampler)["order"] == "CellOrder"  # not what a row calls cells
    with pytest.raises(ValueError, match=r"table for CellOrder\(score=Margin\(\)\), which"):
        calibration.choose(calibrated, nfe=19, order=rule)
    assert chosen(calibrated, order=ss.CellOrder()) == ("cells", 0.1, 2)


def test_a_budget_below_the_table_names_the_lowest(calibrated: ss.SSMD):
    with pytest.raises(ValueError, match="`nfe` must be at least 8 for this checkpoint, got 3"):
        ss.generate(calibrated, nfe=3)


def test_half_of_the_way_is_balanced():
    model = tiny.model()
    model.calibration = [tiny.row(8, 5.0), tiny.row(12, 4.6), tiny.row(16, 4.5), tiny.row(20, 4.0)]
    table = [calibration.Point.from_row(row) for row in model.calibration]
    assert calibration.by_quality(table, "balanced").nfe == 16


@pytest.fixture
def mixed() -> ss.SSMD:
    """With plain rows that are worse, better and far cheaper than the verified ones."""
    made = tiny.model()
    made.calibration = [
        tiny.row(8, 5.0, dtau=0.3),
        tiny.row(12, 4.2),
        tiny.row(20, 4.0, "respaced", dtau=0.01),
        tiny.plain_row(2, 9.0, steps=3),
        tiny.plain_row(7, 4.6, steps=10),
        tiny.plain_row(7, 6.0, "uniform", steps=11),
        tiny.plain_row(11, 4.14, "van-der-corput", steps=16),
        tiny.plain_row(11, 4.1, steps=16),
    ]
    return made


@pytest.mark.parametrize(
    ("nfe", "steps"), [(2, 3), (6.9, 3), (7, 10), (10, 10), (11, 16), (19, 16)]
)
def test_a_budget_takes_a_plain_row_where_it_measured_best(mixed: ss.SSMD, nfe: float, steps: int):
    sampler = calibration.choose(mixed, nfe, temperature=0.7, top_p=0.9)
    settings = {"sampler": "plain", "order": "respaced", "schedule": "linear", "steps": steps}
    assert calibration.describe(sampler) == settings
    assert (sampler.temperature, sampler.top_p) == (0.7, 0.9)
    assert calibration.describe(calibration.choose(mixed, 20))["sampler"] == "speculative"
    plain = ss.FixedCountSampler(mixed, ss.RespacedOrder(), ss.LinearSchedule(), steps)
    drawn, expected = ss.generate(mixed, 3, nfe=nfe), ss.generate(mixed, 3, sampler=plain)
    assert torch.equal(drawn.tokens, expected.tokens)
    assert torch.equal(drawn.nfe, expected.nfe)


def test_fast_costs_no_more_than_the_cheapest_verified_row_and_is_no_worse(mixed: ss.SSMD):
    table = [calibration.Point.from_row(row) for row in mixed.calibration]
    found = [calibration.by_quality(table, quality) for quality in ("fast", "balanced", "best")]
    # Not the plain row at 2 NFE. From 4.6 to 4.0, half of the way is 4.3; at 11 NFE 4.1 is best.
    assert [(point.nfe, point.judge) for point in found] == [(7, 4.6), (11, 4.1), (20, 4.0)]
    assert [point.verified for point in found] == [False, False, True]
    assert chosen(mixed, quality="fast", order=ss.UniformOrder()) == ("uniform", 0.3, 2)
    plain = [point for point in table if not point.verified]
    assert calibration.by_quality(plain, "fast").nfe == 2


def test_raw_settings_and_orders_pass_plain_rows_by(mixed: ss.SSMD):
    assert chosen(mixed, order=ss.RespacedOrder(), window=ss.CosineWindow(0.2)) == (
        "respaced", 0.2, 1
    )  # fmt: skip
    assert chosen(mixed, nfe=12, order=ss.UniformOrder()) == ("uniform", 0.1, 2)
    sampler = calibration.choose(mixed, 7, order=ss.UniformOrder())
    assert calibration.describe(sampler)["steps"] == 11
    message = "`nfe` must be at least 7 for this checkpoint with UniformOrder, got 6"
    with pytest.raises(ValueError, match=message):
        calibration.choose(mixed, 6, order=ss.UniformOrder())


def test_best_is_the_cheapest_of_what_cannot_be_told_apart():
    rows = [tiny.row(8, 4.6), tiny.row(20, 4.006), tiny.row(30, 4.004), tiny.row(60, 4.0)]
    table = [calibration.Point.from_row(row) for row in rows]
    assert calibration.by_quality(table, "best").nfe == 30


@pytest.mark.parametrize("order", calibration.ORDERS)
def test_what_describes_a_sampler_makes_it_again(order: str):
    model, rule = tiny.model(), calibration.ORDERS[order]()
    windows = (ss.CosineWindow(0.2), ss.LinearWindow(0.3), ss.ConstantWindow(3))
    schedules = (ss.CosineSchedule(), ss.LinearSchedule())
    for sampler in (
        *(ss.SpeculativeSampler(model, rule, window, 3) for window in windows),
        ss.SpeculativeSampler(model, rule, ss.UnboundedWindow()),
        *(ss.FixedCountSampler(model, rule, schedule, 7) for schedule in schedules),
        ss.RemaskedSpeculativeSampler(model, rule, windows[0], 2, 0.3, 5),
    ):
        row = json.loads(json.dumps(calibration.describe(sampler) | {"nfe": 7, "judge": 4}))
        again = calibration.Point.from_row(row).sampler(model, 0.5, 0.9)
        assert type(again) is type(sampler)
        assert (again.temperature, again.top_p) == (0.5, 0.9)
        assert calibration.describe(again) == calibration.describe(sampler)
        assert (again.window.table(24) == sampler.window.table(24)).all()
        names = ("eta", "passes")
        assert [getattr(again, n, 0) for n in names] == [getattr(sampler, n, 0) for n in names]


@pytest.mark.parametrize(
    ("head", "asked"),
    [(True, {}), (True, {"nfe": 12}), (True, {"quality": "best"}), (True, {"window": 3}),
     (False, {}), (False, {"nfe": 12}), (False, {"nfe": 1000})],
)  # fmt: skip
def test_temperature_and_nucleus_reach_every_sampler(
    calibrated: ss.SSMD, head: bool, asked: dict[str, Any]
):
    model = calibrated if head else tiny.model(head=False)
    sampler = calibration.choose(model, **asked, temperature=0.7, top_p=0.9)
    assert (sampler.temperature, sampler.top_p) == (0.7, 0.9)


def test_the_named_qualities(calibrated: ss.SSMD):
    assert chosen(calibrated, quality="fast") == ("uniform", 0.3, 2)
    assert chosen(calibrated, quality="best") == ("uniform", 0.01, 2)
    # From 5.0 to 4.0, half of the way is 4.5: the rows at 12, 13 and 20 NFE reach it.
    assert chosen(calibrated, quality="balanced") == ("uniform", 0.1, 2)
    assert chosen(calibrated) == chosen(calibrated, quality="balanced")
    with pytest.raises(ValueError, match="`quality` must be one of"):
        calibration.choose(calibrated, quality="good")  # type: ignore[arg-type]


def test_raw_settings_pass_the_table_by(calibrated: ss.SSMD):
    sampler = calibration.choose(calibrated, window=ss.CosineWindow(0.2), rounds=7)
    assert calibration.describe(sampler) == {
        "sampler": "speculative",
        "order": "uniform",
        "window": {"kind": "cosine", "dtau": 0.2},
        "rounds": 7,
    }


def test_without_a_head_a_budget_is_a_number_of_passes():
    plain = tiny.model(head=False)
    assert ss.generate(plain, nfe=5.9).nfe.tolist() == [5]
    assert ss.generate(plain, nfe=float("inf")).nfe.tolist() == [tiny.LENGTH]
    with pytest.raises(ValueError, match="must have a causal head"):
        ss.generate(plain, quality="best")


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": "magic"},
        {"order": "alphabetical"},
        {"window": {"kind": "cosine", "dtau": 2}},
        {"window": {"kind": "round"}},
        {"window": 3},
        {"nfe": "many"},
        {"rounds": None},
        {"rounds": 0},
        {"sampler": "plain"},
    ],
)
def test_a_bad_row_is_named(change: dict):
    made = tiny.model()
    made.calibration = [tiny.row(8, 5.0) | change]
    with pytest.raises(ValueError, match="`calibration` has a bad row"):
        ss.generate(made)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sampler": "speculative"}, "KeyError('window')"),
        ({"schedule": "square"}, "KeyError('square')"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"steps": 2.5}, "`steps` must be a whole number, got 2.5"),
        ({"order": ["uniform"]}, "TypeError"),
    ],
)
def test_a_bad_plain_row_is_named_with_the_reason(change: dict, reason: str):
    row = tiny.plain_row(8, 5.0) | change
    with pytest.raises(ValueError, match="`calibration` has a bad row") as error:
        calibration.Point.from_row(row)
    assert repr(row) in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"eta": "much"}, "`eta` must be a number, got 'much'"),
        ({"passes": -1}, "`passes` must be at least 0, got -1"),
        ({"passes": None}, "`passes` must be a whole number, got None"),
    ],
)
def test_a_bad_remasked_row_is_named_with_the_reason(change: dict, reason: str):
    row = tiny.remasked_row(8, 5.0) | change
    with pytest.raises(ValueError, match="`calibration` has a bad row") as error:
        calibration.Point.from_row(row)
    assert reason in str(error.value)


def test_a_remasked_row_is_verified_and_has_no_likelihood(calibrated: ss.SSMD):
    calibrated.calibration.append(tiny.remasked_row(19, 3.0))
    sampler = calibration.choose(calibrated, nfe=19)
    assert isinstance(sampler, ss.RemaskedSpeculativeSampler)
    assert (sampler.eta, sampler.passes) == (0.1, 9)
    assert calibration.Point.from_row(calibrated.calibration[-1]).verified
    kept = calibration.choose(calibrated, nfe=19, likelihood=True)
    assert calibration.describe(kept)["order"] == "respaced"


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    ss.save(tiny.model(), tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="bad row"):
        calibration.store(tmp_path, [tiny.row(8, 5.0), {"sampler": "speculative"}])
    assert (tmp_path / "config.json").read_text() == before
