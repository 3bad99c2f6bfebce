"""The arena's report as one HTML file: figures inlined, a table that sorts and filters itself.

It needs no network, no library and no server: a browser opens the file.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfspec.arena.contenders import BASELINE
from selfspec.arena.figures import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["page"]

COLUMNS = {  # those without content are left out
    "sampler": "sampler",
    "order": "order",
    "settings": "settings",
    "nfe": "NFE",
    "ms_per_sample": "ms",
    "engine": "drawn by",
    "judge": "judge",
    "interval": "95 %",
    "spelling": "spelling",
    "word_entropy": "word entropy",
    "distinct_4": "distinct 4-grams",
    "kl_4gram": "KL 4-grams",
    "distinct_kmers": "distinct 6-mers",
    "composition": "composition",
    "novelty": "novelty",
    "entropy": "entropy",
    "heldout_bits": "held-out",
    "acceptance": "accepted",
    "n": "n",
    "front": "front",
}
DIGITS = {"nfe": 1, "ms_per_sample": 2, "word_entropy": 2, "n": 0}
AMONG = {  # whether the standard sampler was measured
    True: "among the samplers that are no less diverse than the standard sampler (plain, uniform "
    "order) at the same judge score; the others are faint",
    False: "among all samplers, however little diverse: there is no standard sampler (plain, "
    "uniform order) to compare with",
}
TEXT = {"sampler", "order", "settings", "engine", "interval", "front"}

CSS = """
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
figure { margin: 1.5rem 0; background: white; padding: .5rem; overflow-x: auto }
svg { max-width: 100%; height: auto }
.curve:hover path { stroke: #d55e00 !important; stroke-width: 3 !important; opacity: 1 !important }
.table { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap }
th, td { border-bottom: 1px solid #8884 }
th.text, td.text { text-align: left }
th button { all: unset; cursor: pointer; font-weight: 600 }
th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending] button::after { content: " ▲" }
th[aria-sort=descending] button::after { content: " ▼" }
tr.front { background: #d55e0022 } tr.poor { opacity: .5 }
label { margin-right: 1.5rem }
"""

SCRIPT = """
const table = document.querySelector("table"), body = table.tBodies[0];
const value = (row, k) => row.cells[k].dataset.v ?? row.cells[k].textContent;
table.querySelectorAll("th").forEach((th, k) => th.firstChild.addEventListener("click", () => {
  const sign = th.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const text = th.classList.contains("text");
  const order = (a, b) => {
    const [x, y] = [value(a, k), value(b, k)];
    if (text) return sign * x.localeCompare(y);
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (x - y);
  };
  body.append(...[...body.rows].sort(order));
}));
const only = document.querySelector("#front"), diverse = document.querySelector("#diverse");
const show = () => [...body.rows].forEach(row => {
  row.hidden = only.checked && !row.classList.contains("front")
    || diverse.checked && row.classList.contains("poor");
});
[only, diverse].forEach(box => box.addEventListener("change", show));
"""


def page(report: Mapping[str, Any], figures: "Sequence[Figure]") -> str:
    """The report as HTML, self-contained.

    Args:
        report: from `contest.write_contest`.
        figures: shown above the table.
    """
    unit = report["judges"].get("judge", {}).get("unit", "bits per token")
    measured = any((row["sampler"], row["order"]) == BASELINE for row in report["rows"])
    facts = (
        f"{report['n']:,} samples a setting, seed {report['seed']}, on "
        f"{report['machine']['device']}; commit {report['commit'] or 'unknown'}. Judge: {unit}, "
        f"lower is better. The front is that of cost and judge score {AMONG[measured]}. "
        f"{_timing(report['rows'])}Point at a grey curve for its name."
    )
    shown = [_shown(row) for row in report["rows"]]
    columns = [name for name in COLUMNS if any(row[name] not in (None, "") for row, _ in shown)]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Arena of samplers</title>
<style>{CSS}</style>
</head>
<body>
<h1>Arena of samplers</h1>
<p>{html.escape(facts)}</p>
<p><code>{html.escape(report["command"])}</code></p>
{"".join(f"<figure>{_svg(figure, i)}</figure>" for i, figure in enumerate(figures))}
<p><label><input type="checkbox" id="front"> only the front</label>
<label><input type="checkbox" id="diverse"> only the diverse</label></p>
<div class="table"><table>
<thead><tr>{"".join(_head(name, COLUMNS[name]) for name in columns)}</tr></thead>
<tbody>
{"".join(_row(row, kind, columns) for row, kind in shown)}</tbody>
</table></div>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _timing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whose milliseconds they are, if there are any; older reports know the reference only."""
    timed = [row for row in rows if row["ms_per_sample"]]
    if any(row.get("engine") == "engine" for row in timed):
        return "Milliseconds are those of the engine where it can, else of the reference. "
    return "Milliseconds are those of the reference samplers. " if timed else ""


def _svg(figure: "Figure", index: int) -> str:
    """A figure as an SVG element that refers to ids of its own; its curves say their names."""
    import matplotlib.pyplot as plt

    text = io.StringIO()
    metadata: Any = {"Date": None}
    with plt.rc_context(STYLE | {"svg.hashsalt": f"selfspec {index}"}):
        figure.savefig(text, format="svg", metadata=metadata)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(r'<g id="curve ([^"]*)">', r'<g class="curve"><title>\1</title>', svg)


def _head(name: str, title: str) -> str:
    kind = ' class="text"' if name in TEXT else ""
    return f"<th{kind}><button>{html.escape(title)}</button></th>"


def _shown(row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The cells of a row by column, and its class."""
    fronts = [name for key, name in (("pareto_nfe", "NFE"), ("pareto_ms", "ms")) if row[key]]
    poor = not row["diverse"] and row["sampler"] != "data"
    cells = {
        **row,
        "settings": " ".join(f"{key}={value}" for key, value in row["settings"].items()),
        "interval": f"{row['judge_low']:.3f}–{row['judge_high']:.3f}",
        "front": " ".join(fronts) or ("less diverse" if poor else ""),
    }
    return {name: cells.get(name) for name in COLUMNS}, "front" if fronts else "poor" * poor


def _row(cells: Mapping[str, Any], kind: str, columns: Sequence[str]) -> str:
    return f'<tr class="{kind}">{"".join(_cell(name, cells[name]) for name in columns)}</tr>\n'


def _cell(name: str, value: Any) -> str:
    if name in TEXT:
        return f'<td class="text">{html.escape(value or "")}</td>'
    if value is None:
        return '<td data-v=""></td>'
    return f'<td data-v="{value}">{value:,.{DIGITS.get(name, 3)}f}</td>'
