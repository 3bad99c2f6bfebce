"""Several processes compute what one does, and survive what one survives."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

import selfspec as ss
from selfspec.data.corpus import write_corpus
from selfspec.data.tokenizers import CharTokenizer
from selfspec.files import locked
from selfspec.train.state import checkpoints

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(world: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`arguments` on so many processes of this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run(
        [*launch, *map(str, arguments)], env=ENV, timeout=300, capture_output=True, text=True
    )


def on_ranks(world: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A scenario of `ranks.py`."""
    return torchrun(world, Path(__file__).parent / "ranks.py", *arguments)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ranks.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def one(data: Path) -> dict[str, list[dict[str, float]]]:
    """What one process measures."""
    return {job: ranks.measure(job, data) for job in ranks.JOBS}


def measured(world: int, data: Path) -> dict:
    """What so many processes measure."""
    done = on_ranks(world, "measure", data)
    assert done.returncode == 0, done.stderr
    return json.loads((data / f"measured-{world}.json").read_text())


@pytest.fixture(scope="module")
def two(data: Path) -> dict:
    return measured(2, data)


def assert_equal(lines: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(lines) == len(expected)
    for step, (line, other) in enumerate(zip(lines, expected, strict=True)):
        assert line == pytest.approx(other, rel=1e-9, abs=0), step


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("job", ranks.JOBS)
def test_two_processes_compute_what_one_does(job, kind, one, two):
    assert_equal(two[kind][job], one[job])


@pytest.mark.slow
def test_four_processes_compute_what_one_does(data, one):
    four = measured(4, data)
    for job, kind in itertools.product(ranks.JOBS, ("ddp", "fsdp")):
        assert_equal(four[kind][job], one[job])


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_gradients_travel_once_a_step(kind, two):
    whole, in_two_pieces = two[f"{kind} reductions"]
    assert whole == in_two_pieces > 0


def test_sharding_halves_the_state(two):
    whole, parts = two["ddp bytes"], two["fsdp bytes"]
    assert whole.keys() == parts.keys() == {"weights", "gradients", "moments"}
    assert whole["gradients"] == whole["weights"]
    assert sum(parts.values()) <= 0.55 * sum(whole.values())


def test_a_full_disk_on_one_rank_ends_all_with_one_error_and_the_checkpoint_before(data, two):
    first, second = json.loads((data / "told-2.json").read_text())
    assert first == second
    assert first[0] == "CheckpointError"
    assert re.search(r"state could not be written \(.*too large.*\(rank 1\)\); the one", first[1])
    assert [path.name for path in checkpoints(data / "full-2" / "state")] == ["00000003"]
    assert not list((data / "full-2").rglob("*.part"))
    assert_resumes(data, data / "full-2", 3, steps=9)


def test_a_rank_that_is_asked_to_end_ends_all_with_a_checkpoint(data, two):
    steps = json.loads((data / "stopped-2.json").read_text())
    assert steps[0] == steps[1] < 9
    assert_resumes(data, data / "stopped-2", steps[0], steps=9)


def test_a_folder_that_rank_0_alone_sees_is_refused(data, two):
    first, second = json.loads((data / "apart-2.json").read_text())
    assert first == second
    assert first[0] == "RankError"
    assert re.match(r"`folder` must be one that all processes see: .*apart-1 is not", first[1])


def assert_resumes(data: Path, folder: Path, step: int, steps: int) -> None:
    """On one process from `step`, and ends as a run that was never stopped."""
    resumed = ranks.trainer("joint", data, folder, steps=steps)
    resumed.resume()
    assert resumed.step == step
    whole = ranks.trainer("joint", data, steps=steps)
    assert resumed.run(progress=False)
    assert whole.run(progress=False)
    for name, param in whole.params.items():
        torch.testing.assert_close(resumed.params[name], param, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "phase"),
    [
        ("fsdp", "step"),
        pytest.param("ddp", "step", marks=pytest.mark.slow),
        pytest.param("fsdp", "save", marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_costs_at_most_one_save_interval(kind, phase, data):
    folder = data / f"{kind}-{phase}"
    die_at = random.randrange(4, 12)
    done = on_ranks(2, "train", folder, kind, 12, die_at, phase)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "told: " in line]
    # torchrun may end the other rank before it has noticed.
    assert len(told) <= 1, done.stderr
    assert all("rank 0 lost another process" in line for line in told)
    every = ranks.CONFIG.save_every
    # The batch of the next step is read during a step.
    saved = die_at // every * every if phase == "step" else (die_at - 1) // every * every
    found = [int(path.name) for path in checkpoints(folder / "state")]
    assert found[0] in {saved, saved - every}, die_at
    assert_resumes(data, folder, found[0], steps=12)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_processes_that_share_otherwise(data):
    folder = data / "fewer"
    assert on_ranks(4, "train", folder, "fsdp", 12, 8, "step").returncode != 0
    assert checkpoints(folder / "state")[0].name == "00000006"
    done = on_ranks(2, "train", folder, "ddp", 12, 99, "step")
    assert done.returncode == 0, done.stderr
    assert_resumes(data, folder, 12, steps=12)


# The command line


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    text = "the cat sat on the mat and the dog saw it " * 40
    write_corpus(folder, {"train": [text], "valid": [text[:300]]}, CharTokenizer())
    return folder


def command(corpus: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    flags = ["--data", corpus, "--out", out, "--device", "cpu", "--batch-size", "2", *more]
    return torchrun(2, "-m", "selfspec", "train", "books27-small-judge", "--steps", "1", *flags)


def test_rank_0_alone_tells(corpus, tmp_path):
    done = command(corpus, tmp_path, "--parallel", "fsdp")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith(f"{tmp_path / 'model'}: step 1, validation")
    assert done.stderr.count("step 1 of 1, ") == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert ss.load_judge(tmp_path / "model").trunk.vocab_size == 27


@pytest.mark.slow
def test_rank_0_alone_tells_what_all_could_not_do(corpus, tmp_path):
    with locked(tmp_path):
        done = command(corpus, tmp_path)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("selfspec: ")]
    assert told == [f"selfspec: another run is at work in {tmp_path}"]
