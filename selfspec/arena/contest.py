"""The report of the arena: rows with cost in milliseconds and Pareto marks, figures, a page.

To the fields of `Row` come, for every row:

    ms_per_sample   1000 · seconds, of what drew the row (`engine`), or null where fewer than five
                    full batches were timed
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
from selfspec.arena.figures import FAINT, GRID, INK, PALETTE, STYLE
from selfspec.arena.pareto import diverse, front
from selfspec.arena.reduction import frontier
from selfspec.arena.report import write_report
from selfspec.arena.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["contest_figure", "marks", "save_page", "write_contest"]

CURVE = "curve "
"""Begins the id of a curve; its name follows."""
MARKS = {"nfe": "pareto_nfe", "ms_per_sample": "pareto_ms"}
COSTS = {"nfe": "NFE: network evaluations per sample", "ms_per_sample": "Milliseconds per sample"}
ENTROPY = {"word_entropy": "Entropy of words, nats", "entropy": "Entropy of tokens, nats"}


def marks(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The further fields of each row; see the module."""
    rows = [asdict(result.row) for result in results]
    for row in rows:
        row["ms_per_sample"] = row["seconds"] and 1e3 * row["seconds"]
    allowed = diverse(rows, [r for r in rows if (r["sampler"], r["order"]) == BASELINE])
    fronts = {name: front(rows, allowed, cost) for cost, name in MARKS.items()}
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

    Those with a row on a front and the standard sampler have a colour and a name, the same in both
    figures; the others are grey, and tell their name on the page. The scores shown are those of
    diverse rows: what is better than all of them, or worse than the standard sampler at its worst,
    lies outside.

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
    looks = _looks(groups)
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
            for label, rows in groups.items():
                _draw(ax, rows, cost, name, label, looks.get(label))
            _draw_front(ax, shown, cost, name)
            if name == "judge":
                ax.set_ylim(*_limits(shown, next(iter(groups.values()))))
            if real is not None and real[name] is not None:
                _draw_real(ax, real[name])
            ax.set_title(title)
            ax.grid(axis="y", color=GRID, linewidth=0.8)
            ax.set_axisbelow(True)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
        axes[1].set_xlabel(COSTS[cost])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                      frameon=False)  # fmt: skip
    plt.close(figure)
    return figure


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by sampler and order; the standard sampler first."""
    groups: dict[str, list[Mapping[str, Any]]] = {", ".join(BASELINE): []}
    for row in rows:
        label = f"{row['sampler']}, {row['order']}" if row["order"] else row["sampler"]
        groups.setdefault(label, []).append(row)
    return {label: found for label, found in groups.items() if found}


def _looks(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[str, str]]:
    """Colour and marker of the standard sampler, and of those with a row on either front."""
    best = [label for label, rows in groups.items()
            if any(row[mark] for row in rows for mark in MARKS.values())]  # fmt: skip
    named = [label for label in best if label != ", ".join(BASELINE)]
    looks = ((colour, marker) for marker in "osD^vP" for colour in PALETTE)
    return dict(zip(named, looks, strict=False)) | {", ".join(BASELINE): (INK, "o")}


def _limits(
    rows: Sequence[Mapping[str, Any]], standard: Sequence[Mapping[str, Any]]
) -> tuple[float, float]:
    """From the best diverse score to the worst of the standard sampler, if there is one."""
    scores = [row["judge"] for row in rows if row["diverse"]] or [row["judge"] for row in rows]
    low, high = min(scores), min(max(scores), max(row["judge"] for row in standard))
    gap = 0.05 * (high - low) or 0.05
    return low - gap, high + gap


def _draw(
    ax: "Axes",
    rows: Sequence[Mapping[str, Any]],
    cost: str,
    name: str,
    label: str,
    look: tuple[str, str] | None,
) -> None:
    """A line along the sampler's own front of cost and judge score; its other rows are dots.

    Verified samplers are drawn solid and filled, the others dashed and hollow; the scores of named
    ones with their 95 % intervals.
    """
    points = frontier([row[cost] for row in rows], [row["judge"] for row in rows])
    kept = set(zip(points.cost.tolist(), points.score.tolist(), strict=True))
    best = sorted((r for r in rows if (r[cost], r["judge"]) in kept), key=lambda r: r[cost])
    behind = [row for row in rows if row not in best]
    verified = any(row["head_passes"] for row in rows)
    (ink, marker), weak = look or (FAINT, "o"), 1.0 if look else 0.5
    ax.plot(
        [r[cost] for r in best], [r[name] for r in best], color=ink, alpha=weak, gid=CURVE + label,
        label=label if look else None, linewidth=1.8 if look else 0.8,
        linestyle="-" if verified else (0, (4, 2)), marker=marker, markersize=5 if look else 3,
        markerfacecolor=ink if verified else "white", zorder=3 if look else 2,
    )  # fmt: skip
    ax.plot([r[cost] for r in behind], [r[name] for r in behind], ".", color=ink, alpha=0.3 * weak)
    if look and name == "judge":
        low, high = ([row[f"judge_{side}"] for row in best] for side in ("low", "high"))
        ax.vlines([row[cost] for row in best], low, high, color=ink, linewidth=1)


def _draw_front(ax: "Axes", rows: Sequence[Mapping[str, Any]], cost: str, name: str) -> None:
    """Rings around the rows of the front; the legend says what is grey."""
    best = [row for row in rows if row[MARKS[cost]] and row[name] is not None]
    ax.plot([], [], color=FAINT, alpha=0.5, linewidth=0.8, label="not on a Pareto front")
    ax.scatter(
        [row[cost] for row in best], [row[name] for row in best], s=90, facecolors="none",
        edgecolors=INK, linewidths=1.1, zorder=5, label="Pareto front of diverse settings",
    )  # fmt: skip


def _draw_real(ax: "Axes", value: float) -> None:
    """A line at the measure of real text; an arrow where that is far off."""
    low, high = ax.get_ylim()
    where = " ↓" if value < low else " ↑" if value > high else ""
    if not where:
        ax.axhline(value, color=FAINT, linewidth=1)
    at = min(max((value - low) / (high - low), 0), 1)
    ax.annotate(
        f"real text: {value:.3g}{where}", (1, at), xytext=(-4, -11 if at > 0.5 else 4),
        xycoords="axes fraction", textcoords="offset points", ha="right", color=FAINT,
        fontsize="small",
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
