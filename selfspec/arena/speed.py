"""The figure of `benchmarks/latency.py`, from its JSON alone: samples per second against batch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from selfspec.arena.figures import BLUE, FAINT, GREEN, GRID, ORANGE, PURPLE, STYLE, VERMILION
from selfspec.arena.labels import label_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["latency_figure"]

METHODS = {
    "trunk-only": ("bare trunk passes", FAINT, (0, (1, 2))),
    "engine-speculative": ("engine, self-speculative", VERMILION, "-"),
    "engine-plain": ("engine, plain", BLUE, (0, (4, 2))),
    "reference-speculative": ("reference, self-speculative", ORANGE, "-"),
    "mdlm-loop": ("MDLM's loop", PURPLE, (0, (4, 2))),
    "ar-kv": ("autoregressive, cached", GREEN, "-."),
}
"""Label, colour and line; plain ones are dashed."""

USUAL_SETTINGS = {"rounds": 4, "dtau": 0.083}


def latency_figure(
    report: Mapping[str, Any], settings: Mapping[str, Any] = USUAL_SETTINGS
) -> "Figure":
    """A panel a model; plain methods with as many passes as make them as good.

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
            1, len(models), figsize=(5.2 * len(models), 4.4), layout="constrained", squeeze=False
        )
        drawn = [_panel(ax, [row for row in rows if row["model"] == model], model)
                 for ax, model in zip(axes[0], models, strict=True)]  # fmt: skip
        figure.draw_without_rendering()  # fixes the layout, which the labels measure
        for ax, lines in zip(axes[0], drawn, strict=True):
            label_curves(ax, lines, fontsize="small")
    plt.close(figure)
    return figure


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
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

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
    ax.set_xlabel("batch")
    ax.set_title(f"{model}: samples per second, plain ones as good")
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    return lines
