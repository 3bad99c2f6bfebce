"""Arguments that cannot be parsed: the library's box of advice, folded into one line.

╭─ Unrecognized options ────────────────────╮
│ Unrecognized options: --nfee              │
│ ───────────────────────────────────────── │
│ Perhaps you meant:                        │     Unrecognized options: --nfee (perhaps you
│     --nfe FLOAT                           │  →  meant --nfe FLOAT); see selfspec sample
│         the most function evaluations     │     --help
│ ───────────────────────────────────────── │
│ For full helptext, run selfspec --help    │
╰───────────────────────────────────────────╯
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial, wraps
from io import StringIO
from itertools import takewhile
from typing import Any

ENTRY = re.compile(r" {4}\S")
"""A line that names an option; what it means is indented further."""


def later(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that is parsed as `verb` is, and returns the call instead of making it."""

    @wraps(verb)
    def parsed(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return partial(verb, *args, **kwargs)

    return parsed


@contextmanager
def one_line() -> Iterator[None]:
    """What parsing writes to standard error before it exits becomes a `ValueError`."""
    box = StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as exit:
        if not exit.code:
            raise
        raise ValueError(folded(box.getvalue())) from exit


def folded(box: str) -> str:
    """The fault, what may have been meant, and where the help is."""
    drawn = box.startswith("╭")  # elsewhere there is a title and a rule of hyphens
    lines = [line[2:].rstrip("│ ") for line in box.splitlines() if not line.startswith("╰")]
    lines = lines[1 if drawn else 2 :]
    first = list(takewhile(lambda line: line and not line.startswith(("─", "---")), lines))
    fault = " ".join(line for line in first if not line.startswith(" ")).rstrip(".")
    fault = re.sub(r"(?<=Expected one of )\([^()]*\)", _choices, fault)
    named = ", ".join(_entries(first))
    meant = next(_entries(lines[len(first) :]), None) if "Perhaps you meant:" in lines else None
    found = re.findall(r"selfspec[ \w-]* --help", " ".join(map(str.strip, lines)))
    return (
        " ".join(filter(None, (fault, named, meant and f"(perhaps you meant {meant})")))
        + f"; see {found[-1] if found else 'selfspec --help'}"
    )


def _choices(listed: re.Match[str]) -> str:
    """What may be given, in the same order each time; `None` stands for an absent option."""
    return ", ".join(sorted(set(re.findall(r"'([^']+)'", listed[0])) - {"None"}))


def _entries(lines: list[str]) -> Iterator[str]:
    return (line.strip() for line in lines if ENTRY.match(line))
