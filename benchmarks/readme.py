"""Write the results of benchmarks/results into README, docs/results.md and docs/samplers.md.

python benchmarks/readme.py            writes what stands between the two result marks
python benchmarks/readme.py --check    only says whether they are up to date
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import subwords
from attribution import attribution, chosen, tuned
from remasking import remasking
from tables import (
    KEYS,
    MEASURES,
    SEPARATE,
    Record,
    filled,
    judged,
    key,
    measures,
    nfe,
    number,
    ratio,
    settings,
    table,
)

from selfspec.files import write_bytes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
APART = 1.2
"""Each row of the README's table has at least so many times the NFE of the one before."""
BUDGETS = (8, 15, 25, 45, 60, 120)
DIVERSITY = {"word_entropy": 2, "distinct_4": 4, "kl_4gram": 3, "spelling": 3}
BASELINES = {("plain uniform", "same trunk"), (SEPARATE, "separate model")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for name, blocks in PAGES.items():
        path = ROOT / name
        old = new = path.read_text(encoding="utf-8")
        for mark, (report, content) in blocks.items():
            new = filled(new, mark, content(json.loads((RESULTS / report).read_text())))
        if not args.check:
            write_bytes(path, new.encode())
        elif new != old:
            sys.exit(f"{name} is not up to date: run benchmarks/readme.py")


def summary(report: Mapping[str, Any]) -> str:
    """What the README shows, as Markdown."""
    return "\n".join([headline(report), "", conditions(report), ""])


def page(report: Mapping[str, Any]) -> str:
    """Every row, as Markdown."""
    rows = report["rows"]
    others = [r for r in rows if r["order"] not in ("uniform", "")]
    return "\n".join(
        [
            conditions(report) + " A setting is the number of rounds R and the window: cosine "
            "with this Δτ, unless it says `linear`; for plain sampling it is the schedule and the "
            "number of steps.",
            "",
            "## Self-speculative sampling in uniform order",
            "",
            published(report),
            "",
            "## Best judge score within a budget, by order",
            "",
            "The best row of each sampler and order that costs at most so many NFE; its word "
            "entropy in brackets; the best of a line in bold.",
            "",
            budgets(report),
            "",
            "## Diversity at the same judge score",
            "",
            "Each cell is self-speculative sampling / plain sampling in uniform order, "
            "interpolated to the same judge score. For real text the word entropy and the KL of "
            "character 4-grams are "
            + real_text(report)
            + "; misspelled words raise both, so nearer to real text is better here.",
            "",
            diversity(report),
            "",
            "## Other orders, against plain sampling in uniform order",
            "",
            table(
                ["sampler", "order", "settings", *MEASURES, "reduction, judge"],
                [[r["sampler"], r["order"], *measures(r), ratios(report, r)[0]]
                 for r in sorted(others, key=lambda r: (r["order"], r["sampler"], nfe(r)))],
            ),
            "",
            "## Plain sampling in uniform order",
            "",
            table(
                ["schedule, steps", *MEASURES],
                [measures(r) for r in sorted(rows, key=nfe)
                 if (r["sampler"], r["order"]) == ("plain", "uniform")],
            ),
            "",
            "## The separately trained plain model, in uniform order",
            "",
            table(
                ["schedule, steps", *MEASURES],
                [measures(r) for r in sorted(rows, key=nfe) if r["sampler"] == SEPARATE],
            ),
            "",
        ]
    )  # fmt: skip


def conditions(report: Mapping[str, Any]) -> str:
    """How it was measured, and what the columns mean."""
    data = [r for r in report["rows"] if r["sampler"] == "data"]
    heldout = report["judges"].get("heldout")
    law = f" (exact, of {heldout['rows']} sequences of the test books)" if heldout else ""
    real = f" Real text scores {data[0]['judge']:.2f} by the judge." if data else ""
    return (
        f"{report['n']:,} texts per row, on {report['machine']['device']}. Judge and held-out "
        f"likelihood{law} in bits per character, lower is better; 95 % intervals in brackets."
        f"{real} *Reduction*: the NFE that plain masked diffusion with the same trunk needs for "
        "the same score, divided by the NFE of the row. *Separate model*: the same against a "
        "plain model of as many blocks that was trained by itself, by the judge. `?`: the plain "
        "curve is too flat to resolve the ratio (an error of .01 bits would move it by more than "
        "a tenth); ≥: plain sampling does not reach the score within the NFE measured."
    )


def headline(report: Mapping[str, Any]) -> str:
    """The table of the README: a few rows of the front of the published comparison."""
    plain = [r for r in report["rows"] if (r["sampler"], r["order"]) == ("plain", "uniform")]
    return table(
        ["NFE", "settings", "judge", "reduction, judge", "reduction, held-out",
         "reduction, separate model", "word entropy: this / plain"],
        [[f"{nfe(r):.1f}", spelled(r), f"{r['judge']:.3f}", *ratios(report, r),
          beside(r, plain, "word_entropy", 2)] for r in compared(report, APART)],
    )  # fmt: skip


def spelled(row: Record) -> str:
    """Rounds and window in full."""
    knobs = row["settings"]
    return f"R = {knobs['rounds']}, {knobs.get('schedule', 'cosine')} {knobs['dtau']}"


def compared(report: Mapping[str, Any], apart: float = 1.0) -> list[Record]:
    """The self-speculative rows in uniform order, by NFE.

    With `apart` above 1 only rows of the front, each of at least so many times the evaluations of
    the one before.
    """
    rows = [r for r in report["rows"]
            if (r["sampler"], r["order"]) == ("self-speculative", "uniform")]  # fmt: skip
    shown: list[Record] = []
    for row in sorted(rows, key=nfe) if apart == 1 else chosen(rows, [True] * len(rows)):
        if not shown or nfe(row) >= apart * nfe(shown[-1]):
            shown.append(row)
    return shown


def published(report: Mapping[str, Any]) -> str:
    """Every row of the published comparison."""
    return table(
        ["R, window", *MEASURES, "reduction, judge", "reduction, held-out", "separate model"],
        [[*measures(r), *ratios(report, r)] for r in compared(report)],
    )


def real_text(report: Mapping[str, Any]) -> str:
    """Its measures, under the same protocol."""
    data = [r for r in report["rows"] if r["sampler"] == "data"]
    return " and ".join(number(r[name], 2) for r in data for name in ("word_entropy", "kl_4gram"))


def diversity(report: Mapping[str, Any]) -> str:
    """Self-speculative rows beside plain ones that are as good by the judge, uniform order."""
    plain = [r for r in report["rows"] if (r["sampler"], r["order"]) == ("plain", "uniform")]
    lines = [
        [settings(row), f"{nfe(row):.1f}", number(row["judge"], 3),
         *(beside(row, plain, name, digits) for name, digits in DIVERSITY.items())]
        for row in compared(report)
    ]  # fmt: skip
    names = ["words (nats)", "distinct 4-grams", "4-gram KL", "spelling"]
    return table(["R, window", "NFE", "judge", *names], lines)


def beside(row: Record, plain: Sequence[Record], name: str, digits: int) -> str:
    """A measure of a row / of plain sampling, interpolated to the judge score of the row."""
    curve = sorted((r["judge"], r[name]) for r in plain if r[name] is not None)  # of all or none
    scores, values = [point[0] for point in curve], [point[1] for point in curve]
    other = float(np.interp(row["judge"], scores, values)) if curve else None
    return " / ".join(number(x, digits) for x in (row[name], other)).strip(" /")


def budgets(report: Mapping[str, Any]) -> str:
    """The row of best judge score, with its diversity, of those that are within a budget."""
    rows = [r for r in report["rows"] if r["sampler"] in ("plain", "self-speculative")]
    curves = sorted(
        {(r["order"], r["sampler"]) for r in rows}, key=lambda c: (c[0] != "uniform", c)
    )
    header = ["NFE at most", *(f"{sampler}, {order}" for order, sampler in curves)]
    lines = []
    for budget in BUDGETS:
        found = [
            min((r for r in rows if (r["order"], r["sampler"]) == curve and nfe(r) <= budget),
                key=lambda r: r["judge"], default=None)
            for curve in curves
        ]  # fmt: skip
        best = min((r["judge"] for r in found if r is not None), default=None)
        lines.append([str(budget), *(best_of(row, best) for row in found)])
    return table(header, lines)


def seconds(report: Mapping[str, Any]) -> str:
    """Samples per second of every method, plain ones as often as makes them as good."""
    found: dict[tuple, dict[tuple[str, str], Record]] = {}
    for row in report["rows"]:
        if "error" not in row:
            about = row["model"], settings(row), row["batch"]
            found.setdefault(about, {})[row["method"], row["equal"]] = row
    return "\n".join(
        [
            f"On {report['machine']['device']}, torch {report['machine']['torch']}; medians of "
            "five runs after warm-up. The four columns of methods are samples per second; plain "
            "sampling and MDLM's loop take as many passes as they need for the judge score of the "
            "self-speculative row. *A pass*: time of one pass of the engine over the time of the "
            "trunk alone. *Evaluations* and *seconds*: plain sampling of the engine over "
            "self-speculative sampling, at that equal score.",
            "",
            table(
                ["model", "R, window", "batch", "self-speculative", "plain", "MDLM's loop",
                 "autoregressive", "a pass", "evaluations", "seconds", "ms a sample"],
                [speeds(about, rows) for about, rows in found.items()],
            ),
            "",
        ]
    )  # fmt: skip


def speeds(about: tuple, rows: Mapping[tuple[str, str], Record]) -> list[str]:
    """A line of `seconds`."""
    ours, bare = rows["engine-speculative", "nfe"], rows.get(("trunk-only", "nfe"))
    methods = [("engine-plain", "quality"), ("mdlm-loop", "quality"), ("ar-kv", "nfe")]
    rates = [number(r["samples_per_s"] if r else None, 0) for r in map(rows.get, methods)]
    plain = rows.get(("engine-plain", "quality"))
    ratios = [
        ours["ms_per_pass"] / bare["ms_per_pass"] if bare else None,
        nfe(plain) / nfe(ours) if plain else None,
        ours["samples_per_s"] / plain["samples_per_s"] if plain else None,
    ]
    model, knobs, batch = about
    return [model, knobs, str(batch), number(ours["samples_per_s"], 0), *rates,
            *("" if ratio is None else f"{ratio:.2f}×" for ratio in ratios),
            number(ours["ms_per_sample"], 2)]  # fmt: skip


def antibodies(report: Mapping[str, Any]) -> str:
    """Every row of both trunks, with reductions against plain sampling of the same trunk."""
    judges = report["judges"]
    [data] = [row for row in report["rows"] if row["sampler"] == "data"]
    rows = [row for row in report["rows"] if row["sampler"] != "data"]
    trunks = [*dict.fromkeys(row["model"] for row in rows)]
    lines = []
    for row in sorted(rows, key=lambda r: (trunks.index(r["model"]), r["sampler"], nfe(r))):
        same = [r for r in report["reduction"] if key(r) == key(row) and r["model"] == row["model"]]
        found = {r["score_name"]: ratio(r) for r in same}
        ratios = [found.get(score, "") for score in ("judge", "heldout_bits")]
        lines.append([row["model"], row["sampler"], *protein_measures(row), *ratios])
    return "\n".join(
        [
            f"{report['n']:,} sequences per row, on {report['machine']['device']}. Judges and "
            f"held-out likelihood ({judges['heldout']['rows']:,} sequences) in bits per residue; "
            f"what IgLM itself draws scores {data['judge']:.3f} by the judge, "
            f"{data['second_judge']:.3f} by IgLM, its novelty is {data['novelty']:.2f} and its "
            f"share of distinct 6-mers {data['distinct_kmers']:.2f}. *Reduction*: as above, "
            "against plain sampling of the same trunk.",
            "",
            table(
                ["trunk", "sampler", "settings", "NFE", "judge", "IgLM", "held-out", "novelty",
                 "distinct 6-mers", "reduction, judge", "reduction, held-out"],
                lines,
            ),
            "",
        ]
    )  # fmt: skip


def proteins(report: Mapping[str, Any]) -> str:
    """Every row, with reductions by the judge and the likelihood of both kinds of proteins."""
    judges, scores = report["judges"], {"judge": 3, "heldout_bits": 4, "relatives_bits": 4}
    relatives = judges["relatives"]
    lines = []
    for row in sorted(report["rows"], key=lambda r: (r["sampler"], nfe(r))):
        found = {r["score_name"]: ratio(r) for r in report["reduction"] if key(r) == key(row)}
        measures = [number(row[score], digits) for score, digits in scores.items()]
        diversity = [number(row[name], 3) for name in ("novelty", "distinct_kmers")]
        ratios = [found.get(score, "") for score in scores]
        lines.append([row["sampler"], settings(row), f"{nfe(row):.1f}",
                      *measures, *ratios, *diversity])  # fmt: skip
    return "\n".join(
        [
            f"{report['n']:,} proteins per row, on {report['machine']['device']}. *Held-out* and "
            f"*relatives*: likelihood of {judges['heldout']['rows']} proteins of clusters that "
            f"training has not seen, and of {relatives['likelihood']} whose families it has, in "
            f"bits per residue. The judge gives the relatives {relatives['judge']:.2f}; their "
            f"novelty is {relatives['novelty']:.2f}. *Reduction*: as above.",
            "",
            table(
                ["sampler", "settings", "NFE", "judge", "held-out", "relatives",
                 "reduction, judge", "held-out", "relatives", "novelty", "distinct 6-mers"],
                lines,
            ),
            "",
        ]
    )  # fmt: skip


def protein_measures(row: Record) -> list[str]:
    """Settings, cost, quality and diversity of a row of proteins."""
    found = {"second_judge": 3, "heldout_bits": 3, "novelty": 2, "distinct_kmers": 2}
    return [*judged(row), *(number(row[name], digits) for name, digits in found.items())]


def blocks(report: Mapping[str, Any]) -> str:
    """Bits of held-out text against evaluations, for each division of the blocks."""
    names = [name for name in report if "+" in name]
    found = {
        name: {
            (row["rounds"], row["schedule"], row["dtau"]): row
            for row in report[name]["rows"]
            if row["sampler"] == "self-speculative"
        }
        for name in names
    }
    widths = {"cosine": (0.04, 0.083, 0.16), "linear": (0.03, 0.06, 0.125)}
    lines = [
        [
            ", ".join(map(str, knobs)),
            *(cell for rows in found.values() for cell in cells(rows[knobs])),
        ]
        for knobs in found[names[0]]
        if knobs[0] < 4 and knobs[2] in widths[knobs[1]]
    ]
    last = {name: report[name]["validations"][-1] for name in names}
    losses = "; ".join(
        f"{name} {v['draft_bits']:.3f} and {v['target_bits']:.3f}" for name, v in last.items()
    )
    header = [f"{name}, {what}" for name in names for what in ("NFE", "bits", "reduction")]
    return "\n".join(
        [
            f"{report['steps']:,} steps of {report['rows_a_step']:,} texts from scratch on "
            f"{report['machine']['device']}, trunk and head together. Bits per character of "
            f"{report['n']} held-out texts under the exact distribution of each setting. "
            "*Reduction*: the NFE at which plain sampling with the same trunk gives as many bits, "
            f"over the NFE of the setting. Validation loss of draft and target: {losses} bits.",
            "",
            table(["R, window", *header], lines),
            "",
        ]
    )


def cells(row: Record) -> list[str]:
    """Evaluations, bits and reduction of a setting of `windows.py`."""
    times = row["ratio"]
    return [number(row["nfe"], 1), number(row["bits"], 3), "" if times is None else f"{times:.2f}×"]


def best_of(row: Record | None, best: float | None) -> str:
    """A cell of `budgets`."""
    if row is None:
        return ""
    bold = "**" if row["judge"] == best else ""
    return f"{bold}{row['judge']:.3f}{bold} ({number(row['word_entropy'], 2)})"


def ratios(report: Mapping[str, Any], row: Record) -> list[str]:
    """Reductions of a row against plain sampling in uniform order, in the table's three columns.

    The second account is of a separately trained model alone: its own curve, a pass at 1.
    """
    found = {
        (record["account"], record["score_name"]): record
        for record in report["reduction"]
        if all(record[key] == row[key] for key in KEYS)
        and (record["baseline"], record["account"]) in BASELINES
    }
    columns = [("same trunk", "judge"), ("same trunk", "heldout_bits"), ("separate model", "judge")]
    return [ratio(found.get(column)) for column in columns]


CURVE, SECONDS, ANTIBODIES = "books27-quality.json", "latency-h200.json", "antibody-quality.json"
PROTEINS = "proteins-quality.json"
TUNED, REMASKED = "books27-order.json", "books27-remasking.json"
BLOCKS = "books27-blocks.json"
SUBWORDS, MORE = "books-bpe-quality.json", "books-bpe-256.json"
PAGES = {
    "README.md": {"results": (CURVE, summary)},
    "docs/results.md": {
        "results": (CURVE, page),
        "seconds": (SECONDS, seconds),
        "blocks": (BLOCKS, blocks),
        "antibodies": (ANTIBODIES, antibodies),
        "proteins": (PROTEINS, proteins),
        "subwords": (SUBWORDS, subwords.every),
        "subwords-more": (MORE, subwords.more),
    },
    "docs/samplers.md": {
        "order": (CURVE, attribution),
        "tuned": (TUNED, tuned),
        "remasking": (REMASKED, remasking),
    },
}

if __name__ == "__main__":
    main()
