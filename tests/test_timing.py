"""Timing on a clock that only the timed call moves."""

import time

import pytest
import torch

from selfspec.metrics import median_seconds


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A record of what happened; each `run` lasts as many seconds as runs have been made."""
    record: list[str] = []

    def clock() -> float:
        record.append("clock")
        runs = record.count("run")
        return runs * (runs + 1) / 2

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: record.append("wait"))
    return record


def test_the_median_leaves_out_the_warm_up(events: list[str]) -> None:
    timing = median_seconds(lambda: events.append("run"), repeats=5, warmup=3)
    assert timing.seconds == (4, 5, 6, 7, 8)
    assert timing.median == 6
    assert events.count("run") == 8


def test_the_device_is_waited_for_before_either_look_at_the_clock(events: list[str]) -> None:
    median_seconds(lambda: events.append("run"), device="cuda", warmup=1)
    assert events == ["wait", "clock", "run", "wait", "clock"] * 6


def test_too_few_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="`repeats` must be at least 5, got 4"):
        median_seconds(lambda: None, repeats=4)
    with pytest.raises(ValueError, match="`warmup` must be at least 1, got 0"):
        median_seconds(lambda: None, warmup=0)
