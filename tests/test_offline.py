"""Shards: complete, resumable, and the same by any number of processes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from selfspec.api import generate
from selfspec.engine import Engine, draw_shards, offline, read_shards
from selfspec.interfaces import Samples
from selfspec.lengths import Lengths
from selfspec.model import SSMD
from selfspec.sampling import SpeculativeSampler
from selfspec.schedules import ConstantWindow

ROWS = 23


@pytest.fixture(scope="module")
def sampler(ternary: SSMD) -> SpeculativeSampler:
    return SpeculativeSampler(ternary, window=ConstantWindow(3), rounds=1)


@pytest.fixture(scope="module")
def expected(sampler: SpeculativeSampler) -> Samples:
    return sampler.sample(torch.full((ROWS, 6), 3), 9)


def run(sampler: SpeculativeSampler, folder: Path, num: int = ROWS, slots: int = 4, **more) -> int:
    return draw_shards(Engine(sampler.model, slots), sampler, folder, num, 9, shard=5, **more)


def whole(folder: Path) -> Samples:
    return Samples.concatenate(list(read_shards(folder)))


def test_shards_hold_the_rows_of_a_run(
    sampler: SpeculativeSampler, expected: Samples, tmp_path: Path
):
    assert run(sampler, tmp_path / "new" / "run", progress=True) == ROWS
    found = whole(tmp_path / "new" / "run")
    for name in ("tokens", "nfe", "drafted", "accepted"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert [len(part) for part in read_shards(tmp_path / "new" / "run")] == [5, 5, 5, 5, 3]


def test_processes_share_the_shards(sampler: SpeculativeSampler, expected: Samples, tmp_path: Path):
    drawn = [run(sampler, tmp_path, slots=k + 1, rank=k, world=3) for k in (2, 0, 1)]
    assert drawn == [5, 10, 8]
    assert torch.equal(whole(tmp_path).tokens, expected.tokens)


def test_a_run_is_completed(sampler: SpeculativeSampler, expected: Samples, tmp_path: Path):
    run(sampler, tmp_path)
    kept = (tmp_path / "00001.safetensors").stat().st_mtime_ns
    (tmp_path / "00002.safetensors").unlink()
    (tmp_path / "00004.safetensors").rename(tmp_path / "00004.safetensors.1.part")  # was killed
    assert run(sampler, tmp_path) == 5 + 3
    assert torch.equal(whole(tmp_path).tokens, expected.tokens)
    assert (tmp_path / "00001.safetensors").stat().st_mtime_ns == kept
    assert run(sampler, tmp_path) == 0


@pytest.mark.parametrize("kept", [0, 5, -9])
def test_a_truncated_shard_is_drawn_again(
    kept: int, sampler: SpeculativeSampler, expected: Samples, tmp_path: Path
):
    run(sampler, tmp_path)
    path = tmp_path / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert run(sampler, tmp_path) == 5
    assert torch.equal(whole(tmp_path).tokens, expected.tokens)


def test_another_run_is_refused(sampler: SpeculativeSampler, tmp_path: Path):
    run(sampler, tmp_path, num=5)
    with pytest.raises(ValueError, match=r"`num` must be 5, as in .*run.json, got 6"):
        run(sampler, tmp_path, num=6)
    with pytest.raises(ValueError, match=r"`rounds` must be None, as in .* got 2"):
        run(sampler, tmp_path, num=5, about={"rounds": 2})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r": must be empty or hold a run\.json"):
        run(sampler, tmp_path / "other")
    with pytest.raises(ValueError, match="`num` must be at least 1, got 0"):
        run(sampler, tmp_path, num=0)
    with pytest.raises(ValueError, match=r"`folder` must hold a run\.json"):
        next(read_shards(tmp_path / "other"))


def test_a_broken_description_is_named(sampler: SpeculativeSampler, tmp_path: Path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: not a readable JSON file"):
        run(sampler, tmp_path)


def test_a_truncated_shard_is_named(sampler: SpeculativeSampler, tmp_path: Path):
    run(sampler, tmp_path)
    path = sorted(tmp_path.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-9])
    shards = read_shards(tmp_path)
    next(shards)
    with pytest.raises(ValueError, match=rf"{path.name}: not a readable shard \("):
        next(shards)


def test_processes_may_begin_together(
    sampler: SpeculativeSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    about = offline._about

    def read_before_another_began(folder: Path) -> dict[str, Any] | None:
        monkeypatch.undo()
        known = about(folder)
        run(sampler, folder, rank=1, world=2)
        return known

    monkeypatch.setattr(offline, "_about", read_before_another_began)
    assert run(sampler, tmp_path, rank=0, world=2) == 5 + 5 + 3
    assert len(whole(tmp_path)) == ROWS


def test_by_default_a_run_has_several_shards(sampler: SpeculativeSampler, tmp_path: Path):
    """So that a killed process on a CPU has kept something; a begun run keeps its own size."""
    draw_shards(Engine(sampler.model, 8), sampler, tmp_path / "new", 130, 9)
    assert [len(part) for part in read_shards(tmp_path / "new")] == [64, 64, 2]
    run(sampler, tmp_path / "begun")
    (tmp_path / "begun/00001.safetensors").unlink()
    assert draw_shards(Engine(sampler.model, 8), sampler, tmp_path / "begun", ROWS, 9) == 5
    with pytest.raises(ValueError, match="`num` must be at least 1, got 0"):
        draw_shards(Engine(sampler.model, 8), sampler, tmp_path / "none", 0)


def test_what_is_no_run_is_named(sampler: SpeculativeSampler, tmp_path: Path):
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run.json: must be a JSON object, got \[\]"):
        run(sampler, tmp_path)


def test_rows_are_those_of_generate(ternary: SSMD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = copy.deepcopy(ternary)
    model.lengths = Lengths.of([1, 2, 2, 3, 4], 4)
    monkeypatch.setattr(type(model), "frame", ((0,), (1,)))
    sampler = SpeculativeSampler(model, window=ConstantWindow(3), rounds=1)
    for length in (None, 3):
        folder = tmp_path / str(length)
        draw_shards(Engine(model, 4), sampler, folder, ROWS, 9, length, shard=ROWS)
        found = whole(folder)
        same = generate(
            model, ROWS, sampler=sampler, length=length, seed=9, engine="reference", batch_size=ROWS
        )
        assert found.pad is not None
        assert same.pad is not None
        assert torch.equal(found.pad, same.pad)
        assert torch.equal(found.tokens[~found.pad], same.tokens[~same.pad])
        assert torch.equal(found.nfe, same.nfe)
