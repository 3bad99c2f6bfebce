"""The results of books_bpe.py as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from tables import Record, key, nfe, number, ratio, settings, table

SCORES = ("judge", "second_judge", "heldout_bits")
REDUCTIONS = ["reduction, judge", "second judge", "held-out"]
MEASURES = ["judge", "second judge", "held-out", "entropy", "words", "distinct 4-grams"]


def published(report: Mapping[str, Any]) -> str:
    """Both samplers at the NFE of the published table."""
    rows = [
        [f"{nfe(row):.0f}", row["sampler"], between(row), *measures(row), *reductions(row)]
        for row in report["table"]
    ]
    return table(["NFE", "sampler", "between", *MEASURES, *REDUCTIONS], rows) + "\n"


def reductions(row: Record) -> list[str]:
    """Of a row of the table, by each score; none for plain sampling."""
    found = row.get("reduction", {})
    return [ratio(found[score]) if score in found else "" for score in SCORES]


def between(row: Record) -> str:
    """The two settings that a row of the table lies between."""
    fixed = {name: value for name, value in row["settings"].items() if name != "between"}
    values = "–".join(f"{value:.4g}" for value in row["settings"]["between"])
    return ", ".join([*map(str, fixed.values()), values])


def measures(row: Record) -> list[str]:
    """Quality and diversity."""
    interval = f"{row['judge_low']:.3f}–{row['judge_high']:.3f}"
    second = f"{row['second_judge_low']:.2f}–{row['second_judge_high']:.2f}"
    digits = {"heldout_bits": 3, "entropy": 2, "word_entropy": 2, "distinct_4": 3}
    return [
        f"{row['judge']:.3f} ({interval})",
        f"{row['second_judge']:.2f} ({second})",
        *(number(row[name], places) for name, places in digits.items()),
    ]


def conditions(report: Mapping[str, Any]) -> str:
    """What was measured, and what real text scores."""
    judges, model = report["judges"], report["judges"]["model"]
    [data] = [row for row in report["rows"] if row["sampler"] == "data"]
    losses = ", ".join(f"{name} {nats:.2f}" for name, nats in model["validation_nats"].items())
    length = f"{judges['data']['characters_per_token']:.2f} characters"
    return (
        f"{report['n']:,} texts of 1,024 tokens per row, on {report['machine']['device']}; a token "
        f"is {length}. The model has {model['parameters'] / 1e6:.0f}M parameters and was trained "
        f"for {model['steps']:,} steps of {model['tokens_a_step']:,} tokens, "
        f"{model['seconds']:.0f} s; its validation losses are {losses} nats per token. *Judge*: "
        "bits per character by the small judge of `books27`. *Second judge*: bits per token by an "
        "autoregressive model of the same tokens. *Held-out*: the exact likelihood of "
        f"{judges['heldout']['rows']} texts of the test books under the distribution of the "
        "sampler, bits per token. Entropies in nats: of a text's tokens, and of the words of all "
        f"texts. Real text scores {data['judge']:.3f}, {data['second_judge']:.2f}, entropy "
        f"{data['entropy']:.2f}, words {data['word_entropy']:.2f}. *Reduction*: as above, same "
        "trunk."
    )


def every(report: Mapping[str, Any]) -> str:
    """The table, and every setting."""
    return "\n".join([conditions(report), "", published(report), *rows(report), ""])


def more(report: Mapping[str, Any]) -> str:
    """The table of a report with more samples of the cheaper settings."""
    return f"{report['n']:,} texts per row, otherwise the same:\n\n" + published(report)


def rows(report: Mapping[str, Any]) -> Sequence[str]:
    """Every setting that was drawn, by rising NFE."""
    found = {(*key_of(r), r["score_name"]): r for r in report["reduction"]}
    lines = []
    for row in sorted(report["rows"], key=nfe):
        if row["sampler"] == "data":
            continue
        ratios = [found.get((*key_of(row), score)) for score in SCORES]
        cells = [ratio(record) if record else "" for record in ratios]
        lines.append([row["sampler"], settings(row), f"{nfe(row):.1f}", *measures(row), *cells])
    header = ["sampler", "settings", "NFE", *MEASURES, *REDUCTIONS]
    return ["Every setting:", "", table(header, lines)]


def key_of(row: Record) -> tuple[str, ...]:
    """What names a row, hashable."""
    return tuple(map(str, key(row)))
