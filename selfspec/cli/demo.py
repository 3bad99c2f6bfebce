"""`selfspec demo`: the method beside plain masked diffusion, at the same cost, in half a minute.

One trunk draws all texts, so that a plain pass costs the trunk's share of all blocks. The order of
the positions is uniform on both sides, as published; a last row has the order that the checkpoint's
calibration table finds best for the method.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from selfspec.checks import whole
from selfspec.cli.common import Run, note, table, to_json

if TYPE_CHECKING:
    from selfspec.model import SSMD, AutoregressiveModel
    from selfspec.sampling import Sampler

LEGEND = """
NFE: passes through all blocks per text · judge: bits per character under an autoregressive model,
lower is better · spelling: share of known words · words: their entropy in nats, higher is richer"""


def demo(run: Run, num: int = 8, nfe: float = 14.0) -> None:
    """Plain masked diffusion and self-speculative sampling beside each other, at the same cost.

    Args:
        run: where and from which seed.
        num: texts a row.
        nfe: function evaluations a text, at most; enough for a row of the uniform order.
    """
    from selfspec import api
    from selfspec.arena import accounts
    from selfspec.calibration import Point, by_budget
    from selfspec.orders import UniformOrder
    from selfspec.sampling import FixedCountSampler

    whole("num", num, least=1)
    model = api.load("books27", run.where())
    judge = api.load_judge("books27-judge", run.where())
    points = [Point.from_row(row) for row in model.calibration]
    verified = [point for point in points if point.verified]
    uniform = [point for point in verified if isinstance(point.order, UniformOrder)]
    published = by_budget(uniform, nfe).sampler(model)
    note(f"{num} texts a row, at most {nfe:g} function evaluations each ...")
    row = measure("self-speculative", published, model, judge, num, run.seed)
    pass_cost = accounts(model.num_trunk_blocks, model.num_head_blocks)["same trunk"]
    plain = FixedCountSampler(model, steps=max(1, round(row["nfe"] / pass_cost)))
    rows = [measure("plain masked diffusion", plain, model, judge, num, run.seed), row]
    best = by_budget(verified, nfe).sampler(model)
    if not isinstance(best.order, UniformOrder):
        rows.append(measure("self-speculative, best setting", best, model, judge, num, run.seed))
    print(to_json({"rows": rows}) if run.json else show(rows))


def measure(
    name: str, sampler: Sampler, model: SSMD, judge: AutoregressiveModel, num: int, seed: int
) -> dict[str, Any]:
    """Draw texts and score them."""
    from selfspec import api
    from selfspec.calibration import describe
    from selfspec.checkpoint import BUNDLED
    from selfspec.metrics import judge_nll, load_vocabulary, spelling_accuracy, word_entropy

    start = time.perf_counter()
    samples = api.generate(model, num, sampler=sampler, seed=seed, progress=True)
    seconds = time.perf_counter() - start
    texts = list(samples)
    words = load_vocabulary(BUNDLED / "books27" / "vocabulary.txt.xz")
    return {
        "name": name,
        **describe(sampler),
        "nfe": float(samples.nfe.mean()),
        "seconds": seconds,
        "judge": float(judge_nll(samples.tokens, judge.log_probs).bits.mean()),
        "spelling": spelling_accuracy(texts, words),
        "word_entropy": word_entropy(texts),
        "texts": texts,
    }


def show(rows: list[dict[str, Any]]) -> str:
    """One text of each row, then a table."""
    texts = [f"{row['name']}, {row['nfe']:.1f} NFE:\n  {row['texts'][0]}\n" for row in rows]
    header = ["", "order", "NFE", "seconds", "judge", "spelling", "words"]
    cells = [
        [row["name"], row["order"], f"{row['nfe']:.1f}", f"{row['seconds']:.1f}",
         f"{row['judge']:.2f}", f"{row['spelling']:.3f}", f"{row['word_entropy']:.2f}"]
        for row in rows
    ]  # fmt: skip
    return "\n".join([*texts, table(header, cells), LEGEND])
