"""Collect the validations of training runs, so that the log's figures have their file.

    python benchmarks/runs.py --runs RUNS --device "NVIDIA H200"

Reads RUNS/*/log.jsonl and writes benchmarks/results/books27-training.json: a row for each
validation, losses in bits per character.
"""

import argparse
import json
from pathlib import Path

from selfspec.arena.report import running
from selfspec.files import write_json

RESULT = Path(__file__).parent / "results" / "books27-training.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--device", required=True, help="what the runs ran on")
    parser.add_argument("--commit", default=None, help="of the code that ran")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    rows = [row for log in sorted(args.runs.glob("*/log.jsonl")) for row in validations(log)]
    report = {
        "rows": rows,
        "machine": {"device": args.device},
        "seed": 0,
        "command": running(),
        "commit": args.commit,
    }
    write_json(args.out, report)


def validations(log: Path) -> list[dict]:
    """One row for each step that was validated."""
    lines = {line["step"]: line for line in map(json.loads, log.read_text().splitlines())
             if any(key.startswith("valid_") for key in line)}  # fmt: skip
    return [
        {"run": log.parent.name, "step": step, "seconds": line["elapsed"]}
        | {k.removeprefix("valid_"): v for k, v in line.items() if k.endswith("_bits")}
        for step, line in lines.items()
    ]


if __name__ == "__main__":
    main()
