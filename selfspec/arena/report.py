"""The report of a sweep: reductions at equal quality, a JSON file, a table.

    {"rows": [...], "reduction": [...], "machine": {...}, "seed": 0, "n": 8192,
     "command": "…", "commit": "…" or null, "judges": {"judge": {...}}}

A row has the fields of `Row`, a reduction those of `Reduction` after which baseline, account, score
and setting it is of. An interval bound that the baseline's range does not give is null.
"""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfspec.arena.reduction import Baseline, Point
from selfspec.arena.results import Result
from selfspec.files import write_json

__all__ = [
    "accounts",
    "commit",
    "machine",
    "reduction_table",
    "reductions",
    "row_table",
    "running",
    "write_report",
]

WALL_CLOCK = "wall-clock"


def accounts(trunk_blocks: int, head_blocks: int) -> dict[str, float]:
    """What a plain pass costs, in passes of the model under test, in either account of NFE.

    >>> accounts(11, 1)["separate model"]
    1.0
    """
    return {"same trunk": trunk_blocks / (trunk_blocks + head_blocks), "separate model": 1.0}


def reductions(
    baseline: Sequence[Result],
    methods: Sequence[Result],
    accounts: Mapping[str, float],
    name: str = "plain",
    score: str = "judge",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compares every method with a baseline, in every account, and by wall-clock if it is known.

    The spread of the wall-clock itself is not in its interval, only that of the scores.

    Args:
        baseline: results of plain sampling, of one schedule or several.
        methods: results to compare.
        accounts: name of an account → NFE of a plain trunk pass; see `accounts`.
        name: of the baseline.
        score: "judge", "second_judge" or "heldout_bits"; results without it are left out.
        seed: of the bootstrap.

    Returns:
        A record a method and account; none where no baseline has the score.
    """
    baseline, methods = ([r for r in side if score in r.arrays] for side in (baseline, methods))
    costs: dict[str, tuple[str, str, float]] = {
        account: ("trunk_passes", "nfe", pass_cost) for account, pass_cost in accounts.items()
    }
    if all(result.row.seconds for result in [*baseline, *methods]):
        costs[WALL_CLOCK] = ("seconds", "seconds", 1.0)
    records = []
    for account, (of_baseline, of_method, pass_cost) in costs.items() if baseline else ():
        points = [_point(result, of_baseline, score) for result in baseline]
        compared = Baseline(points, pass_cost, seed=seed).reductions(
            [_point(result, of_method, score) for result in methods]
        )
        records += [
            {
                "baseline": name,
                "account": account,
                "score_name": score,
                "model": result.row.model,
                "sampler": result.row.sampler,
                "order": result.row.order,
                "settings": result.row.settings,
                "nfe": result.row.nfe,
                **reduction.to_dict(),
            }
            for result, reduction in zip(methods, compared, strict=True)
        ]
    return records


def write_report(
    path: str | os.PathLike[str],
    results: Sequence[Result],
    reduction: Sequence[Mapping[str, Any]],
    seed: int,
    judges: Mapping[str, Mapping[str, Any]],
    command: str | None = None,
    marks: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Writes the JSON file of a sweep, beside and renamed.

    Args:
        path: of the file.
        results: of the sweep, the data's row included if it was measured.
        reduction: records of `reductions`.
        seed: of the sweep.
        judges: by the name of the field, what is known of each judge: its unit, data and training.
        command: that regenerates the file; by default the one that is running.
        marks: further fields of each row, as of `contest.marks`.

    Returns:
        What was written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(result.row) for result in results]
    report = {
        "rows": [
            {**row, **more} for row, more in zip(rows, marks or [{}] * len(rows), strict=True)
        ],
        "reduction": [dict(record) for record in reduction],
        "machine": machine(),
        "seed": seed,
        "command": command or running(),
        "commit": commit(),
        "n": max((result.row.n for result in results), default=0),
        "judges": {name: dict(facts) for name, facts in judges.items()},
    }
    write_json(path, report)
    return report


def machine() -> dict[str, Any]:
    """What the numbers were obtained on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "devices": torch.cuda.device_count() if cuda else 0,
        "cuda": torch.version.cuda if cuda else None,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def running() -> str:
    """The command that is running, without the folder of its program."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *sys.argv[1:]])


def commit() -> str | None:
    """The commit of this package, with "-dirty" if files differ from it.

    For a copy that has left its history behind, `SELFSPEC_COMMIT` says it; else None.
    """
    if told := os.environ.get("SELFSPEC_COMMIT"):
        return told
    file = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(file.parent), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed copy may lie in another's
        return git("describe", "--always", "--abbrev=40", "--match=", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


def row_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a report as an aligned table of text."""
    header = ["model", "sampler", "order", "settings", "NFE", "judge", "95 %", "second judge",
              "held-out", "spelling", "words", "distinct", "KL", "JSD", "6-mers", "novelty",
              "accept", "ms", "by", "front"]  # fmt: skip
    return _aligned(
        header,
        [
            [
                row.get("model") or "",
                row["sampler"],
                row["order"],
                _knobs(row["settings"]),
                _number(row["nfe"], 1),
                _number(row["judge"], 3),
                f"{row['judge_low']:.3f}–{row['judge_high']:.3f}",
                _number(row.get("second_judge"), 3),
                _number(row["heldout_bits"], 3),
                _number(row["spelling"], 3),
                _number(row["word_entropy"], 2),
                _number(row["distinct_4"], 3),
                _number(row["kl_4gram"], 3),
                _number(row.get("composition"), 4),
                _number(row.get("distinct_kmers"), 3),
                _number(row.get("novelty"), 3),
                _number(row["acceptance"], 2),
                _number(row["seconds"] and 1e3 * row["seconds"], 2),
                row.get("engine") or "",
                _front(row),
            ]
            for row in rows
        ],
        left=4,
    )


def reduction_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The reductions of a report as an aligned table; "?" marks the unresolved ones."""
    signs = {"at least": "≥", "at most": "≤", None: ""}
    header = ["model", "sampler", "order", "settings", "baseline", "account", "score", "cost",
              "value", "baseline needs", "reduction", "95 %"]  # fmt: skip
    return _aligned(
        header,
        [
            [
                record.get("model") or "",
                record["sampler"],
                record["order"],
                _knobs(record["settings"]),
                record["baseline"],
                record["account"],
                record["score_name"],
                f"{record['cost']:.3g}",
                _number(record["score"], 3),
                f"{signs[record['bound']]}{record['baseline_cost']:.3g}",
                f"{signs[record['bound']]}{record['ratio']:.2f}×{' ?' * record['unresolved']}",
                f"{_number(record['low'], 2)}–{_number(record['high'], 2) or '∞'}",
            ]
            for record in records
        ],
        left=7,
    )


def _point(result: Result, cost: str, score: str) -> Point:
    values: Any = result.row.seconds if cost == "seconds" else result.arrays[cost]
    return Point(values, np.asarray(result.arrays[score]))


def _knobs(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _front(row: Mapping[str, Any]) -> str:
    """On which Pareto fronts a marked row is; "less diverse" where it may not be."""
    costs = {"pareto_nfe": "NFE", "pareto_ms": "ms"}
    fronts = " ".join(name for key, name in costs.items() if row.get(key))
    return fronts if row.get("diverse", True) else "less diverse"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width, the first `left` to the left; columns without content are dropped."""
    columns = [c for c in zip(header, *rows, strict=True) if any(c[1:]) or not rows]
    names = [name for name, *_ in columns]
    to_left = set(header[:left])
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(
            cell.ljust(width) if name in to_left else cell.rjust(width)
            for name, cell, width in zip(names, cells, widths, strict=True)
        ).rstrip()
        for cells in zip(*columns, strict=True)
    ]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])
