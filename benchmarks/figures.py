"""Draw the figures of the documentation from benchmarks/results.

python benchmarks/figures.py
"""

import json
from pathlib import Path

from selfspec.arena.figures import (
    diversity_figure,
    heldout_figure,
    quality_figure,
    relatives_figure,
    save_figure,
    second_figure,
)
from selfspec.arena.speed import latency_figure

ROOT = Path(__file__).parents[1]
FIGURES = {"quality": quality_figure, "heldout": heldout_figure, "diversity": diversity_figure}


def main() -> None:
    for path in sorted((ROOT / "benchmarks/results").glob("*-quality.json")):
        report, data = json.loads(path.read_text()), path.stem.removesuffix("-quality")
        second = {"second-judge": second_figure} if "second_judge" in report["judges"] else {}
        if "relatives" in report["judges"]:
            second["relatives"] = relatives_figure
        for name, draw in (FIGURES | second).items():
            save_figure(draw(report), ROOT / f"docs/figures/{data}-{name}")
    latency = ROOT / "benchmarks/results/latency-h200.json"
    if latency.exists():
        save_figure(latency_figure(json.loads(latency.read_text())), ROOT / "docs/figures/latency")


if __name__ == "__main__":
    main()
