"""Give a checkpoint the calibration table of a finished benchmark, without drawing anything again.

    python benchmarks/calibrate.py --report benchmarks/results/books27-quality.json books27

The table is that of `selfspec benchmark CHECKPOINT --calibrate`, with the report's samples and
judge: of the model's own sampling all self-speculative rows, and the plain rows that
`measuring.worthwhile` keeps.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfspec import calibration, measuring

REPORT = Path(__file__).parent / "results" / "books27-quality.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default="books27", help="a folder or a name")
    parser.add_argument("--report", type=Path, default=REPORT, help="of `quality.py`")
    args = parser.parse_args()
    rows = table(json.loads(args.report.read_text()))
    print(f"{len(rows)} rows written to {calibration.store(args.checkpoint, rows)}")


def table(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a report that a table keeps, by rising NFE, as `calibration` wants them."""
    rows = [
        {
            **sampler(row),
            "nfe": round(row["nfe"], 2),
            "judge": round(row["judge"], 4),
            "n": row["n"],
            "word_entropy": row["word_entropy"] and round(row["word_entropy"], 3),
        }
        for row in report["rows"]
        if row["sampler"] in ("self-speculative", "plain")
    ]
    return sorted(measuring.worthwhile(rows), key=lambda row: row["nfe"])


def sampler(row: Mapping[str, Any]) -> dict[str, Any]:
    """What drew a row of a report, as `calibration.describe` says it."""
    order, settings = row["order"], row["settings"]
    if row["sampler"] == "plain":
        return {"sampler": "plain", "order": order, **settings}
    window = {"kind": settings.get("schedule", "cosine"), "dtau": settings["dtau"]}
    rounds = settings["rounds"]
    return {"sampler": "speculative", "order": order, "window": window, "rounds": rounds}


if __name__ == "__main__":
    main()
