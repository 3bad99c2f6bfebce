"""The report of the arena: rows with cost in milliseconds and Pareto marks, figures, a page.

To the fields of `Row` come, for every row:

    ms_per_sample   1000 · seconds, or null where fewer than five full batches were timed
    diverse         no less diverse than the standard sampler at its judge score, see `pareto`
    pareto_nfe      on the Pareto front of NFE and judge score among the diverse rows
    pareto_ms       on that of milliseconds and judge score
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec.arena.contenders import BASELINE
from selfspec.arena.figures import FAINT, GRID, INK, STYLE, VERMILION
from selfspec.arena.pareto import diverse, front
from selfspec.arena.reduction import frontier
from selfspec.arena.report import write_report
from selfspec.arena.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["contest_figure", "marks", "save_page", "write_contest"]

COSTS = {"nfe": "NFE: passes of the network per sample", "ms_per_sample": "Milliseconds a sample"}
ENTROPY = {"word_entropy": "Entropy of words, nats", "entropy": "Entropy of tokens, nats"}


def marks(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The further fields of each row; see the module."""
    rows = [asdict(result.row) for result in results]
    for row in rows:
        row["ms_per_sample"] = row["seconds"] and 1e3 * row["seconds"]
    allowed = diverse(rows, [r for r in rows if (r["sampler"], r["order"]) == BASELINE])
    fronts = {name: front(rows, allowed, cost) for name, cost in
              (("pareto_nfe", "nfe"), ("pareto_ms", "ms_per_sample"))}  # fmt: skip
    return [
        {
            "ms_per_sample": row["ms_per_sample"],
            "diverse": allowed[i],
            **{name: on_front[i] for name, on_front in fronts.items()},
        }
        for i, row in enumerate(rows)
    ]


def write_contest(
    path: str | os.PathLike[str],
    results: Sequence[Result],
    seed: int,
    judges: Mapping[str, Mapping[str, Any]],
    reduction: Sequence[Mapping[str, Any]] = (),
    command: str | None = None,
) -> dict[str, Any]:
    """Writes the JSON report; arguments as in `write_report`."""
    return write_report(path, results, reduction, seed, judges, command, marks(results))


def contest_figure(report: Mapping[str, Any], cost: str = "nfe") -> "Figure":
    """Judge score and entropy of every sampler against a cost, the Pareto front marked.

    The front is that of the rows that are diverse; curves that are not may run below it.

    Args:
        report: from `write_contest`.
        cost: "nfe" or "ms_per_sample".

    Raises:
        ValueError: no row has the cost.
    """
    import matplotlib.pyplot as plt

    shown = [row for row in report["rows"] if row["sampler"] != "data" and row[cost]]
    if not shown:
        raise ValueError(f"`report` must have rows with a number for {cost!r}, got none")
    groups = _groups(shown)
    words = all(row["word_entropy"] is not None for row in shown)
    spread = "word_entropy" if words else "entropy"
    unit = report["judges"].get("judge", {}).get("unit", "bits per token")
    real = next((row for row in report["rows"] if row["sampler"] == "data"), None)
    with plt.rc_context(STYLE | {"font.size": 9.5}):
        figure, axes = plt.subplots(
            2, 1, figsize=(9.5, 9), sharex=True, layout="constrained", height_ratios=(3, 2)
        )
        for ax, name, title in (
            (axes[0], "judge", f"Judge, {unit}: lower is better"),
            (axes[1], spread, ENTROPY[spread]),
        ):
            for k, (label, rows) in enumerate(groups.items()):
                _draw(ax, rows, cost, name, label, k)
            if real is not None and real[name] is not None:
                ax.axhline(real[name], color=FAINT, linewidth=1, label="real text")
            _draw_front(ax, report["rows"], cost, name)
            ax.set_title(title)
            ax.grid(axis="y", color=GRID, linewidth=0.8)
            ax.set_axisbelow(True)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
        axes[1].set_xlabel(COSTS[cost])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=7.5, frameon=False)
    plt.close(figure)
    return figure


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by sampler and order; the standard sampler first."""
    groups: dict[str, list[Mapping[str, Any]]] = {", ".join(BASELINE): []}
    for row in rows:
        label = f"{row['sampler']}, {row['order']}" if row["order"] else row["sampler"]
        groups.setdefault(label, []).append(row)
    return {label: found for label, found in groups.items() if found}


def _draw(
    ax: "Axes", rows: Sequence[Mapping[str, Any]], cost: str, name: str, label: str, k: int
) -> None:
    """A line along the sampler's own front of cost and judge score; its other rows are dots.

    Verified samplers are drawn solid and filled, the others dashed and hollow.
    """
    import matplotlib.pyplot as plt

    points = frontier([row[cost] for row in rows], [row["judge"] for row in rows])
    kept = set(zip(points.cost.tolist(), points.score.tolist(), strict=True))
    best = sorted((r for r in rows if (r[cost], r["judge"]) in kept), key=lambda r: r[cost])
    standard, verified = label == ", ".join(BASELINE), any(row["head_passes"] for row in rows)
    colour = INK if standard else plt.get_cmap("tab20").colors[k % 20]  # type: ignore[attr-defined]
    ax.plot(
        [r[cost] for r in best], [r[name] for r in best], color=colour, label=label,
        linewidth=2 if verified or standard else 0.9, linestyle="-" if verified else (0, (4, 2)),
        marker="osD^vP*X"[k % 8], markersize=5, markerfacecolor=colour if verified else "white",
        zorder=3 if verified or standard else 2,
    )  # fmt: skip
    behind = [row for row in rows if row not in best]
    ax.plot([r[cost] for r in behind], [r[name] for r in behind], ".", color=colour, alpha=0.3)


def _draw_front(ax: "Axes", rows: Sequence[Mapping[str, Any]], cost: str, name: str) -> None:
    """Rings around the rows of the front."""
    mark = "pareto_nfe" if cost == "nfe" else "pareto_ms"
    best = [row for row in rows if row[mark] and row[name] is not None]
    ax.scatter(
        [row[cost] for row in best], [row[name] for row in best], s=90, facecolors="none",
        edgecolors=VERMILION, linewidths=1.4, zorder=5,
        label="Pareto front of the diverse" if name == "judge" else None,
    )  # fmt: skip


def save_page(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the page of the report, see `page`, with a figure for each cost that was measured."""
    from selfspec.arena.page import page
    from selfspec.files import write_bytes

    figures = [
        contest_figure(report, cost)
        for cost in COSTS
        if any(row[cost] for row in report["rows"] if row["sampler"] != "data")
    ]
    write_bytes(Path(path), page(report, figures).encode())
