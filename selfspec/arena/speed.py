"""The figure of `benchmarks/latency.py`, from its JSON alone: samples per second against batch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selfspec.arena.figures import BLUE, FAINT, GREEN, GRID, ORANGE, PURPLE, STYLE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["latency_figure"]

METHODS = {
    "trunk-only": ("trunk alone, no sampling", FAINT, (0, (1, 2))),
    "engine-speculative": ("engine, self-speculative", VERMILION, "-"),
    "engine-plain": ("engine, plain", BLUE, (0, (4, 2))),
    "reference-speculative": ("reference, self-speculative", ORANGE, "-"),
    "mdlm-loop": ("MDLM's loop", PURPLE, (0, (4, 2))),
    "ar-kv": ("autoregressive, KV cache", GREEN, "-."),
}
"""Label, colour and line; plain ones are dashed."""

USUAL_SETTINGS = {"rounds": 4, "dtau": 0.083}


def latency_figure(
    report: Mapping[str, Any], settings: Mapping[str, Any] = USUAL_SETTINGS
) -> "Figure":
    """A panel for each model; plain methods with the passes that they need for equal judge score.

    Args:
        report: as `benchmarks/latency.py` writes it.
        settings: of the rows that are drawn.

    Raises:
        ValueError: the report has no row of these settings.
    """
    import matplotlib.pyplot as plt

    rows = [row for row in report["rows"] if _drawn(row, settings)]
    models = list(dict.fromkeys(row["model"] for row in rows))
    if not models:
        raise ValueError(f"`report` must have rows of the settings {dict(settings)}, got none")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(models), figsize=(6.4 * len(models), 4.2), layout="constrained", squeeze=False
        )
        drawn = [_panel(ax, [row for row in rows if row["model"] == model], model)
                 for ax, model in zip(axes[0], models, strict=True)]  # fmt: skip
        figure.draw_without_rendering()  # fixes the layout, which the labels measure
        for ax, lines in zip(axes[0], drawn, strict=True):
            _name_ends(ax, lines)
    plt.close(figure)
    return figure


def _name_ends(ax: "Axes", lines: "Sequence[Line2D]") -> None:
    """Writes each label behind the last point of its line; moved up where they would touch."""
    point = ax.figure.dpi / 72  # pixels
    ends = [(float(x[-1]), float(y[-1]), line) for line in lines
            for x, y in [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))]]  # fmt: skip
    taken = -float("inf")
    for x, y, line in sorted(ends, key=lambda end: end[1]):
        height = float(ax.transData.transform((x, y))[1])
        taken = max(height, taken + 11 * point)
        ax.annotate(
            str(line.get_label()), (x, y), xytext=(7, (taken - height) / point),
            textcoords="offset points", va="center", color=line.get_color(), fontsize="small",
            annotation_clip=False,
        )  # fmt: skip


def _drawn(row: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """At equal quality; a method that comes once is as good as it is."""
    plain = row["method"] in ("engine-plain", "mdlm-loop")
    return (
        "error" not in row
        and row["method"] in METHODS
        and row["settings"] == settings
        and row["equal"] == ("quality" if plain else "nfe")
    )


def _panel(ax: "Axes", rows: list[Mapping[str, Any]], model: str) -> "list[Line2D]":
    from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator, StrMethodFormatter

    lines = []
    for method, (label, colour, style) in METHODS.items():
        own = sorted((r for r in rows if r["method"] == method), key=lambda r: r["batch"])
        if own:
            lines += ax.plot(
                [r["batch"] for r in own], [r["samples_per_s"] for r in own], color=colour,
                linestyle=style, linewidth=1.6, marker="o", markersize=4, label=label,
            )  # fmt: skip
    batches = sorted({row["batch"] for row in rows})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(batches))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))  # within a decade
    ax.set_xlabel("Batch size")
    ax.set_ylabel("Samples per second")
    ax.set_title(f"{model}: plain sampling at equal judge score")
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    return lines
