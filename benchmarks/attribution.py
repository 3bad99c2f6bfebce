"""What the order and what verification are worth: the tables of docs/samplers.md.

A row's reduction against plain sampling in uniform order, the standard sampler, is a product:

    total = order · verification

of the reduction of plain sampling in the row's order against the standard sampler, and of the row
against that. The second and the whole are records of the report; the first is their quotient.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from tables import KEYS, SEPARATE, Record, judged, key, nfe, number, ratio, table

from selfspec.arena.pareto import diverse, front

FACTORS = ["total", "order", "verification"]
MOST = 50
OPPOSITE = {"at least": "at most", "at most": "at least", None: None}


def attribution(report: Mapping[str, Any]) -> str:
    """What the order and what verification are worth, as Markdown."""
    rows = [row for row in report["rows"] if row["sampler"] != SEPARATE]
    allowed = diverse(rows, [r for r in rows if key(r)[:2] == ("plain", "uniform")])
    orders = sorted({r["order"] for r in rows if r["order"]}, key=lambda o: (o != "uniform", o))
    own = [row for order in orders for row in chosen(rows, [
        ok and key(r)[:2] == ("self-speculative", order)
        for r, ok in zip(rows, allowed, strict=True)
    ])]  # fmt: skip
    header = ["settings", "NFE", "judge", "words (nats)", *FACTORS]
    return "\n".join(
        [
            "Only settings that are no less diverse than the standard sampler (plain, uniform "
            "order) at the same judge score. All three factors are at the judge score of the row. "
            "*Total*: NFE of the standard sampler over NFE of the row. It is the product of "
            "*order*, NFE of the standard sampler over that of plain sampling in the row's order, "
            "and *verification*, NFE of plain sampling in the row's order over that of the row; "
            "below 1, verification costs more than it gives. Brackets: 95 % intervals, for "
            "*order* the widest that the other two allow. ≥ or ≤: a plain curve ends before the "
            "score; `?`: it is too flat to resolve the ratio.",
            "",
            "**The Pareto front over all samplers and orders:**",
            "",
            table(
                ["order σ", "sampler", *header],
                [[r["order"], r["sampler"], *cells(r), *shares(report, r)]
                 for r in chosen(rows, allowed)],
            ),
            "",
            f"**The Pareto front of self-speculative sampling in each order, up to {MOST} NFE:**",
            "",
            table(
                ["order σ", *header],
                [[r["order"], *cells(r), *shares(report, r)] for r in own if nfe(r) <= MOST],
            ),
            "",
        ]
    )  # fmt: skip


def tuned(report: Mapping[str, Any]) -> str:
    """What heads tuned on an order's windows add under each order, as Markdown.

    Settings that were measured with the model's own head and with a tuned one.
    """
    rows = [row for row in report["rows"] if row["sampler"] == "self-speculative"]
    own, *names = dict.fromkeys(row["model"] for row in rows)
    heads = {own: "own", **{name: name.removeprefix(f"{own}, ") for name in names}}
    losses, training = report["judges"]["losses"], report["judges"]["training"]
    steps = ", ".join(f"{training[name]['step']:,} steps in {heads[name]}" for name in names)
    lines = [
        f"Columns are heads: *own* is the bundled head, trained on uniform orders; the others are "
        f"named by the order that they were tuned in ({steps}; trunk frozen). *Verification*: as "
        "above, against plain sampling in the same order with the same trunk.",
        "",
    ]
    for order in losses[own]:
        here = {name: [r for r in rows if (r["model"], r["order"]) == (name, order)]
                for name in heads}  # fmt: skip
        measured = {name: found for name, found in here.items() if found}
        if set(measured) <= {own}:
            continue
        window = ", ".join(
            f"{heads[name]} {losses[name][order]['window']:.3f}" for name in measured
        )
        lines += [
            f"**In {order} order.** Loss of the target in its windows (bits per character): "
            f"{window}.",
            "",
            _compared(report, {heads[name]: found for name, found in measured.items()}),
            "",
        ]
    return "\n".join(lines)


def _compared(report: Mapping[str, Any], measured: Mapping[str, Sequence[Record]]) -> str:
    """Rows of several heads in one order, as a table: a line for what two heads have."""
    columns = [f"{head}: {c}" for head in measured for c in ("NFE", "judge", "verification")]
    lines = []
    for row in sorted(measured["own"], key=nfe):
        same = [next((r for r in rows if key(r) == key(row)), None) for rows in measured.values()]
        if sum(found is not None for found in same) > 1:
            lines.append([judged(row)[0], *chain(*(_tried(report, found) for found in same))])
    return table(["settings", *columns], lines)


def _tried(report: Mapping[str, Any], row: Record | None) -> list[str]:
    """NFE, judge with diversity, and what verification gains; dashes for what was not measured."""
    if row is None:
        return ["–"] * 3
    score = f"{row['judge']:.3f} ({number(row['word_entropy'], 2)})"
    return [number(nfe(row), 1), score, ratio(gain(report, row))]


def gain(report: Mapping[str, Any], row: Record) -> Record | None:
    """The reduction of a row of this model against plain sampling in its order, by the judge."""
    own = [r for r in report["reduction"] if r["model"] == row["model"]]
    return against({"reduction": own}, row, f"plain {row['order']}")


def chosen(rows: Sequence[Record], allowed: Sequence[bool]) -> list[Record]:
    """The front of those that are allowed, by rising NFE."""
    kept = zip(rows, front(rows, allowed, "nfe"), strict=True)
    return sorted((row for row, keep in kept if keep), key=nfe)


def cells(row: Record) -> list[str]:
    """Settings, cost, score and diversity."""
    return [*judged(row), number(row["word_entropy"], 2)]


def shares(report: Mapping[str, Any], row: Record) -> list[str]:
    """The cells of `FACTORS`."""
    whole, given = (against(report, row, f"plain {order}") for order in ("uniform", row["order"]))
    if whole is None:
        return ["–"] * len(FACTORS)
    if row["sampler"] == "plain":
        return [ratio(whole), ratio(whole), "1"]
    if row["order"] == "uniform":
        return [ratio(whole), "1", ratio(whole)]
    return [ratio(whole), ratio(quotient(whole, given)), ratio(given)]


def quotient(whole: Record, part: Record | None) -> Record | None:
    """The other factor of a ratio; None where two bounds say nothing."""
    if part is None or (whole["bound"] and part["bound"]):
        return None
    return {
        "ratio": whole["ratio"] / part["ratio"],
        "low": whole["low"] / part["high"] if part["high"] else None,
        "high": whole["high"] / part["low"] if whole["high"] and part["low"] else None,
        "bound": whole["bound"] or OPPOSITE[part["bound"]],
        "unresolved": whole["unresolved"] or part["unresolved"],
    }


def against(report: Mapping[str, Any], row: Record, baseline: str) -> Record | None:
    """The reduction of a row by the judge, in evaluations of the same trunk."""
    wanted = (*key(row), baseline, "same trunk", "judge")
    of = (*KEYS, "baseline", "account", "score_name")
    return next((r for r in report["reduction"] if tuple(r[k] for k in of) == wanted), None)
