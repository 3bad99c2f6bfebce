"""Several processes compute what one does, and survive what one survives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks

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


@pytest.fixture(scope="module")
def two(data: Path) -> dict:
    """What two processes measure."""
    done = on_ranks(2, "measure", data)
    assert done.returncode == 0, done.stderr
    return json.loads((data / "measured-2.json").read_text())


def assert_equal(lines: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(lines) == len(expected)
    for step, (line, other) in enumerate(zip(lines, expected, strict=True)):
        assert line == pytest.approx(other, rel=1e-9, abs=0), step


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("job", ranks.JOBS)
def test_two_processes_compute_what_one_does(job, kind, one, two):
    assert_equal(two[kind][job], one[job])
