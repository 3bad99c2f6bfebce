"""Training the head on the windows of an order, and what the report says of an order."""

import json
from typing import Any

import pytest
from test_readme import REPORT, load_script

README = load_script("readme")


def reduction(ratio: float, low: float | None, high: float | None, bound: str | None = None) -> Any:
    return {"ratio": ratio, "low": low, "high": high, "bound": bound, "unresolved": False}


def test_order_and_verification_multiply_to_the_whole():
    part = README.quotient(reduction(6.0, 5.0, 8.0), reduction(1.5, 1.25, 2.0))
    assert part == reduction(4.0, 2.5, 6.4)


@pytest.mark.parametrize(
    ("whole", "part", "bound"),
    [("at least", None, "at least"), (None, "at least", "at most"), (None, "at most", "at least")],
)
def test_a_bound_of_one_factor_bounds_the_other(whole, part, bound):
    found = README.quotient(reduction(6, 5, None, whole), reduction(2, 1, None, part))
    assert (found["ratio"], found["bound"]) == (3, bound)
    assert found["low"] is None
    assert found["high"] is None


def test_two_bounds_say_nothing_of_the_other_factor():
    bounded = reduction(6, 5, None, "at least")
    assert README.quotient(bounded, bounded) is None
    assert README.quotient(bounded, None) is None


def test_the_attribution_is_read_from_the_records_of_its_row():
    report = json.loads(REPORT.read_text())
    lines = README.attribution(report).splitlines()
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
