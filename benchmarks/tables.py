"""Rows of a report as cells and tables of Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

KEYS = ("sampler", "order", "settings")
"""What names a row, here and in the reductions."""
SEPARATE = "plain, separate model"
"""The sampler of the second account, whose weights are others."""
MEASURES = ["NFE", "judge", "held-out", "spelling", "words (nats)"]
SIGNS = {"at least": "≥ ", "at most": "≤ ", None: ""}


def filled(page: str, mark: str, content: str) -> str:
    """The page with this between the marks of that name."""
    block = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    return block.sub(lambda m: m[1] + content + m[2], page)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "--:") -> str:
    """A Markdown table; all columns but the first as `align` says, empty ones left out."""
    columns = [c for c in zip(header, *rows, strict=True) if set(c[1:]) - {"", "–"}]
    header, *rows = zip(*columns, strict=True) if columns else [header]
    lines = [header, ["---", *[align] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def judged(row: Record) -> list[str]:
    """Settings, cost and the judge's score of a row."""
    interval = f"{row['judge_low']:.3f}–{row['judge_high']:.3f}"
    return [settings(row), f"{nfe(row):.1f}", f"{row['judge']:.3f} ({interval})"]


def measures(row: Record) -> list[str]:
    """Settings, cost and quality of a row."""
    return [
        *judged(row),
        number(row["heldout_bits"], 3),
        number(row["spelling"], 3),
        number(row["word_entropy"], 2),
    ]


def ratio(record: Record | None) -> str:
    """A reduction with its interval; an open end of the interval is left empty."""
    if record is None:
        return "–"
    interval = f"{number(record['low'], 2)}–{number(record['high'], 2)}"
    mark = " ?" if record["unresolved"] else ""
    return f"{SIGNS[record['bound']]}{record['ratio']:.2f}× ({interval}){mark}"


def key(row: Record) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEYS)


def settings(row: Record) -> str:
    return ", ".join(f"{value}" for value in row["settings"].values())


def nfe(row: Record) -> float:
    return row["nfe"]


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
