"""Figures of a report, drawn from its JSON alone: quality, held-out likelihood and diversity
against NFE.

Colour says the order, or the model where there are several; line and marker say the sampler: dashed
and hollow for plain sampling, solid and filled for self-speculative. A curve runs along the
frontier of its settings (see `reduction`); the settings behind it are faint dots. The band is the
95 % bootstrap interval over samples, the grey line real held-out text. The colours are those of
Okabe and Ito, which the colour-blind can tell apart.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec.arena.labels import label_curves
from selfspec.arena.reduction import frontier
from selfspec.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = [
    "Curve",
    "curves",
    "diversity_figure",
    "heldout_figure",
    "quality_figure",
    "relatives_figure",
    "save_figure",
    "second_figure",
]

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
)  # fmt: skip
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK, FAINT, GRID = "#333333", "#8a8a8a", "#ececec"

STYLE: Any = {
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.hashsalt": "selfspec",  # the same figure gives the same file
}

ORDERS = {"van-der-corput": "van der Corput", "respaced": "re-spaced"}
DIVERSITY = {
    "text": {
        "word_entropy": "Entropy of words, nats",
        "distinct_4": "Distinct word 4-grams, share",
        "kl_4gram": "KL from data, 4-grams, nats",
    },
    "proteins": {
        "novelty": "Novelty, share of 6-mers",
        "distinct_kmers": "Distinct 6-mers, share",
        "composition": "Composition, JSD from data, nats",
    },
}
"""What is drawn of diversity, by what was sampled."""
MOST_LABELS = 6
"""Curves that have room for their names beside them; more are named in the corner."""


@dataclass(frozen=True)
class Curve:
    """The rows of one sampler, order and model."""

    sampler: str
    order: str
    model: str | None
    rows: list[Mapping[str, Any]]
    colour: str

    @property
    def plain(self) -> bool:
        """Whether no head pass was made."""
        return not any(row["head_passes"] for row in self.rows)

    def best(self, score: str) -> list[Mapping[str, Any]]:
        """The rows on the frontier of NFE and a score, by NFE; rows without the score left out."""
        rows = [row for row in self.rows if row[score] is not None]
        points = frontier([row["nfe"] for row in rows], [row[score] for row in rows])
        kept = set(zip(points.cost.tolist(), points.score.tolist(), strict=True))
        return sorted((r for r in rows if (r["nfe"], r[score]) in kept), key=lambda r: r["nfe"])


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The rows of each sampler, real text left out; an order of a model has one colour.

    So has what follows the comma in a sampler's name, as in "plain, separate model".
    """
    groups: dict[tuple[str, str, str | None], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["sampler"] != "data":
            groups.setdefault((row["sampler"], row["order"], row.get("model")), []).append(row)
    kinds = {key: (key[0].partition(", ")[2], *key[1:]) for key in groups}
    every = enumerate(dict.fromkeys(kinds.values()))
    colours = {kind: PALETTE[i % len(PALETTE)] for i, kind in every}
    return [Curve(*key, group, colours[kinds[key]]) for key, group in groups.items()]


def quality_figure(report: Mapping[str, Any]) -> "Figure":
    """The judge's bits per token against NFE, with intervals and one reduction drawn in."""
    unit = report["judges"].get("judge", {}).get("unit", "bits per token")
    note = f"{report['n']:,} samples a point"
    return _figure(report, "judge", f"Judge, {unit}: lower is better", note)


def second_figure(report: Mapping[str, Any]) -> "Figure":
    """As `quality_figure`, by the second judge."""
    facts = report["judges"]["second_judge"]
    title = f"{facts['name']}, {facts['unit']}: lower is better"
    return _figure(report, "second_judge", title, f"{report['n']:,} samples a point")


def heldout_figure(report: Mapping[str, Any]) -> "Figure":
    """Exact bits per token of held-out text under each sampler's own law, against NFE."""
    unit = report["judges"].get("judge", {}).get("unit", "bits per token")
    return _figure(
        report, "heldout_bits", f"Held-out {_kind(report['rows'])}, {unit}: lower is better"
    )


def relatives_figure(report: Mapping[str, Any]) -> "Figure":
    """As `heldout_figure`, of proteins that have relatives among those of training."""
    unit = report["judges"].get("judge", {}).get("unit", "bits per token")
    return _figure(report, "relatives_bits", f"Held-out relatives, {unit}: lower is better")


def diversity_figure(report: Mapping[str, Any]) -> "Figure":
    """Diversity and nearness to data against NFE, at the settings of the frontier."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE | {"font.size": 9.5}):
        figure, axes = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained")
        drawn = []
        for ax, (name, title) in zip(axes, DIVERSITY[_kind(report["rows"])].items(), strict=True):
            drawn.append(_draw(ax, report["rows"], name, score="judge"))
            ax.set_title(title)
            ax.set_xlabel("NFE")
        figure.legend(handles=drawn[0][0], loc="outside lower center", ncols=2, frameon=False)
        figure.draw_without_rendering()
        for ax, (lines, data) in zip(axes, drawn, strict=True):
            label_curves(ax, data, clear=lines, fontsize="small")
    plt.close(figure)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes `<path>.svg` and, at twice the resolution of a screen, `<path>.png`."""
    import matplotlib.pyplot as plt

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        metadata: Any = {"Date": None} if kind == "svg" else None
        with plt.rc_context(STYLE), replacing(path.with_name(f"{path.name}.{kind}")) as file:
            figure.savefig(file, format=kind, dpi=200, metadata=metadata)


def _kind(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was sampled."""
    return "proteins" if any(row.get("composition") is not None for row in rows) else "text"


def _figure(report: Mapping[str, Any], name: str, title: str, note: str = "") -> "Figure":
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
        lines, data = _draw(ax, report["rows"], name, score=name)
        ax.set_title(title)
        ax.set_title(note, loc="right", color=FAINT, fontsize="small")
        ax.set_xlabel("NFE: network evaluations per sample")
        figure.draw_without_rendering()  # fixes the layout, which the labels measure
        _draw_reduction(ax, report, name)
        if len(lines) > MOST_LABELS:
            ax.legend(handles=lines, loc="upper right", frameon=False, fontsize="small")
            lines = []
        label_curves(ax, [*lines, *data], fontsize="small")
    plt.close(figure)
    return figure


def _draw(
    ax: "Axes", rows: Sequence[Mapping[str, Any]], name: str, score: str
) -> "tuple[list[Line2D], list[Line2D]]":
    """The lines of the samplers, at the settings that are best by `score`, and of real data."""
    found = [curve for curve in curves(rows) if any(row[name] is not None for row in curve.rows)]
    if not found:
        raise ValueError(f"`report` must have rows with a number for {name!r}, got none")
    colours = [curve.colour for curve in found]
    found.sort(key=lambda curve: colours.index(curve.colour))  # those of a colour side by side
    lines = [_draw_curve(ax, curve, name, score) for curve in found]
    found_data = [row for row in rows if row["sampler"] == "data" and row[name] is not None]
    real = [row[name] for row in found_data]
    names = [row.get("model") or f"real {_kind(rows)}" for row in found_data]
    limits = _limits(ax, found, name, real)
    data = []
    for value, label in zip(real, names, strict=True):
        if limits[0] <= value <= limits[1]:
            data.append(ax.axhline(value, color=FAINT, linewidth=1, zorder=1, label=label))
            continue
        low = value < limits[0]  # curves fall: there is room below on the left, above on the right
        ax.annotate(
            f"{label}: {value:.3g} {'↓' if low else '↑'}", (0, 0) if low else (1, 1),
            xytext=(5, 5) if low else (-4, -12), xycoords="axes fraction",
            textcoords="offset points", ha="left" if low else "right", color=FAINT,
            fontsize="small",
        )  # fmt: skip
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=3)
    return lines, data


def _draw_curve(ax: "Axes", curve: Curve, name: str, score: str) -> "Line2D":
    best = [row for row in curve.best(score) if row[name] is not None]
    nfe, value = [row["nfe"] for row in best], [row[name] for row in best]
    if name == score:
        behind = [row for row in curve.rows if row not in best and row[name] is not None]
        ax.plot(
            [row["nfe"] for row in behind], [row[name] for row in behind], ".",
            color=curve.colour, alpha=0.3, markersize=5, markeredgewidth=0, zorder=2,
        )  # fmt: skip
    if any(f"{name}_low" in row for row in best):
        low, high = ([row[f"{name}_{side}"] for row in best] for side in ("low", "high"))
        ax.fill_between(nfe, low, high, color=curve.colour, alpha=0.2, linewidth=0)
    (line,) = ax.plot(
        nfe, value, color=curve.colour, zorder=3, label=_label(curve),
        linewidth=1.3 if curve.plain else 2, linestyle=(0, (4, 2)) if curve.plain else "-",
        marker="o", markersize=4.5, markeredgewidth=1.1,
        markerfacecolor="white" if curve.plain else curve.colour,
    )  # fmt: skip
    return line


def _label(curve: Curve) -> str:
    if curve.model:
        return f"{curve.model}: {curve.sampler}"
    order = ORDERS.get(curve.order, curve.order)
    return f"{curve.sampler}, {order} order" if order else curve.sampler


def _draw_reduction(ax: "Axes", report: Mapping[str, Any], name: str) -> None:
    """An arrow from baseline to method at equal score: the middle one of the resolved reductions.

    Only those of the first baseline count, in the account in which NFE is drawn.
    """
    records = [r for r in report["reduction"] if r["account"] == "same trunk"]
    records = [r for r in records if r["baseline"] == records[0]["baseline"]]
    records = [r for r in records if r.get("model") == records[0].get("model")]
    records = [r for r in records if r["order"] == records[0]["order"] and r["score_name"] == name]
    records = sorted(
        (r for r in records if r["bound"] is None and not r["unresolved"]), key=lambda r: r["ratio"]
    )
    if not records:
        return
    middle = records[len(records) // 2]
    ax.annotate(
        "", (middle["cost"], middle["score"]), xytext=(middle["baseline_cost"], middle["score"]),
        arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 4},
        zorder=5,
    )  # fmt: skip
    ax.annotate(
        f"{middle['ratio']:.1f}× fewer passes", (middle["baseline_cost"], middle["score"]),
        xytext=(9, 1), textcoords="offset points", va="center", fontsize="small", fontweight="bold",
    )  # fmt: skip


def _limits(
    ax: "Axes", found: Sequence[Curve], name: str, real: list[float]
) -> tuple[float, float]:
    """Shows the range of the methods: plain curves may leave it on the left, where they are worst.

    Real data are shown where they are not so far off that the curves would lie on each other. The x
    axis is logarithmic with ticks at powers of two.
    """
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    shown = [row for curve in found for row in curve.rows if row[name] is not None]
    methods = [row for curve in found if not curve.plain for row in curve.rows]
    left = 0.7 * min(row["nfe"] for row in methods or shown)
    right = 1.15 * max(row["nfe"] for row in shown)
    values = [row[name] for row in shown if row["nfe"] >= left]
    low, high = min(values), max(values)
    reach = 0.5 * (high - low)
    values += [value for value in real if low - reach <= value <= high + reach]
    gap = 0.06 * (max(values) - min(values)) or 0.05
    limits = min(values) - gap, max(values) + gap
    ax.set_xscale("log", base=2)
    ax.set_xlim(left, right)
    ax.set_ylim(*limits)
    ax.xaxis.set_major_locator(FixedLocator([2**k for k in range(24) if left <= 2**k <= right]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return limits
