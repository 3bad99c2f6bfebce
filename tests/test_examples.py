"""The examples run, print what they promise, and fit a screen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from selfspec import checkpoint

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EXPECTED = {
    "infill": "log p = ",
    "likelihood": "one token a pass",
    "own_order": "EvenFirst: ",
    "sample": "self-speculative: ",
    "train_from_scratch": "evaluations for 32 characters",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that is long enough for the examples' texts."""
    folder = tmp_path_factory.mktemp("small")
    checkpoint.save(tiny.model(length=64), folder)
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, small: Path, tmp_path: Path):
    argument = "3" if example.stem == "train_from_scratch" else str(small)
    done = subprocess.run(
        [sys.executable, str(example), argument],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert EXPECTED[example.stem] in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_there_are_five_of_at_most_sixty_lines():
    assert {path.stem for path in EXAMPLES} == set(EXPECTED)
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 60
