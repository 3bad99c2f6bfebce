"""Progress bars: shown where somebody sees them."""

import ast
import io
import sys
from pathlib import Path

import pytest

import selfspec
from selfspec.progress import tracked

ROOT = Path(selfspec.__file__).parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
SEEN = [(io.StringIO, False), (Terminal, True), (Notebook, True)]


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(("stream", "seen"), SEEN)
def test_a_bar_is_shown_where_it_is_wanted_and_seen(
    stream: type[io.StringIO], seen: bool, progress: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(tracked(range(3), progress=progress, desc="count")) == [0, 1, 2]
    assert ("count" in sys.stderr.getvalue()) == (seen and progress)  # type: ignore[attr-defined]


def test_every_bar_keeps_to_the_rule():
    makers = set()
    for path in ROOT.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(node, ast.Call) and ast.unparse(node.func) == "tqdm" for node in nodes):
            makers.add(path.relative_to(ROOT).as_posix())
    assert makers == {"progress.py"}
