"""Give a checkpoint the calibration table of a finished benchmark, without drawing anything again.

    python benchmarks/calibrate.py books27 --report benchmarks/results/books27-quality.json \
        --more benchmarks/results/{arena-books27,books27-order-cells}.json

The table is that of `selfspec benchmark CHECKPOINT --calibrate`, with the report's samples and
judge: of the model's own sampling all self-speculative rows, and the plain rows that
`measuring.worthwhile` keeps.

--more are reports of the same model that have orders which the first one lacks; of these its
settings are taken, and those of `measuring.REMASKED_SWEEP`. The judge may be another: scores are
moved by the mean difference over the rows that are known by then. Rows of other heads are left out.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import Record, key

from selfspec import calibration, measuring
from selfspec.sampling.remasked import PASSES

REPORT = Path(__file__).parent / "results" / "books27-quality.json"
REMASKED = "self-speculative, remasked"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default="books27", help="a folder or a name")
    parser.add_argument("--report", type=Path, default=REPORT, help="of `quality.py`")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="of further orders")
    args = parser.parse_args()
    rows = table(*(json.loads(path.read_text()) for path in (args.report, *args.more)))
    print(f"{len(rows)} rows written to {calibration.store(args.checkpoint, rows)}")


def table(report: Mapping[str, Any], *more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of reports that a table keeps, by rising NFE, as `calibration` wants them."""
    found = first = own_rows(report)
    for other in more:
        found = found + further(found, own_rows(other), first)
    rows = [
        {
            **sampler(row),
            "nfe": round(row["nfe"], 2),
            "judge": round(row["judge"], 4),
            "n": row["n"],
            "word_entropy": row["word_entropy"] and round(row["word_entropy"], 3),
        }
        for row in found
    ]
    return sorted(measuring.worthwhile(rows), key=lambda row: row["nfe"])


def own_rows(report: Mapping[str, Any]) -> list[Record]:
    """Of the model's own sampling, as far as a table can say it."""
    return [row for row in report["rows"] if row["order"] in calibration.ORDERS
            and ", " not in (row.get("model") or "")  # behind it `order.py` names a tuned head
            and (row["sampler"] == "self-speculative" or remasked(row)
                 or (row["sampler"] == "plain" and "steps" in row["settings"]))]  # fmt: skip


def remasked(row: Record) -> bool:
    """Whether it is one of those that `measure` sweeps with remasking."""
    swept = [{**measuring.knobs(*pair), "eta": measuring.ETA} for pair in measuring.REMASKED_SWEEP]
    return (row["sampler"], row["order"]) == (REMASKED, measuring.REMASKED_ORDER) and (
        row["settings"] in swept
    )


def further(
    rows: Sequence[Record], more: Sequence[Record], first: Sequence[Record]
) -> list[Record]:
    """What is not among `rows`, of orders that `first` lacks and settings that it has.

    On the scale of the judge of `rows`.
    """
    known, orders = {named(row): row for row in rows}, {row["order"] for row in first}
    swept = {named({**row, "order": ""}) for row in first}
    shared = [row for row in more if named(row) in known]
    if not shared:
        raise ValueError("`more` must share rows with `report`, got none that are in both")
    shift = statistics.mean(known[named(row)]["judge"] - row["judge"] for row in shared)
    new = [row for row in more if row["order"] not in orders and named(row) not in known
           and (remasked(row) or named({**row, "order": ""}) in swept)]  # fmt: skip
    return [{**row, "judge": row["judge"] + shift} for row in new]


def named(row: Record) -> str:
    """The same in every report, whatever the order of its settings."""
    return json.dumps(key(row), sort_keys=True)


def sampler(row: Record) -> dict[str, Any]:
    """What drew a row of a report, as `calibration.describe` says it."""
    order, settings = row["order"], row["settings"]
    if row["sampler"] == "plain":
        return {"sampler": "plain", "order": order, **settings}
    window = {"kind": settings.get("schedule", "cosine"), "dtau": settings["dtau"]}
    verified = {"order": order, "window": window, "rounds": settings["rounds"]}
    if row["sampler"] == REMASKED:
        return {"sampler": "remasked", **verified, "eta": settings["eta"], "passes": PASSES}
    return {"sampler": "speculative", **verified}


if __name__ == "__main__":
    main()
