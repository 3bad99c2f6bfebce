"""A row of results, the arrays behind it, and both on disk.

Bits are per token (per character for 27-symbol text), entropies and divergences in nats.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from selfspec.files import replacing, write_json

__all__ = ["Result", "Row", "load_result", "save_result"]


@dataclass(frozen=True)
class Row:
    """What was measured at one setting; means over n samples."""

    sampler: str
    settings: dict[str, Any]
    nfe: float
    trunk_passes: float
    head_passes: float
    judge: float
    """Bits per token, with its 95 % bootstrap interval."""
    judge_low: float
    judge_high: float
    heldout_bits: float | None
    """-log2 p(x | σ) per token of held-out text."""
    spelling: float | None
    word_entropy: float | None
    """Nats, over all samples."""
    distinct_4: float | None
    kl_4gram: float | None
    """Nats, data to samples."""
    entropy: float
    """Nats, of the tokens of a sample."""
    n: int
    order: str
    acceptance: float | None
    """Accepted drafts / drafts verified."""
    seconds: float | None
    """Wall-clock a sample at the sweep's batch size: median over its full batches without the
    first, which warms up; None where fewer than five are left, or rows have their own lengths."""
    composition: float | None = None
    """Of proteins: nats from the data's frequencies of residues, see `metrics.proteins`."""
    distinct_kmers: float | None = None
    novelty: float | None = None
    model: str | None = None
    """Which of several models; of data, what drew them where they are not real."""
    second_judge: float | None = None
    """Bits per token of another judge, with its interval."""
    second_judge_low: float | None = None
    second_judge_high: float | None = None
    engine: str | None = None
    """What drew the samples and took `seconds`, "engine" or "reference"; None for data, and in
    reports from before, whose samples are all of the reference."""
    commit: str | None = None
    """Of the package that drew and timed them, which a resumed run may have left behind."""


@dataclass(frozen=True)
class Result:
    """A row and what it was computed from.

    Attributes:
        row: the means.
        arrays: by name, (n,) each: `judge` (bits), `nfe`, `trunk_passes`, `head_passes`, and where
            they exist `second_judge` (bits), `known_words`, `words`, `novelty`, (m,)
            `heldout_bits`, (n, L) `tokens`, and their `lengths` where there are pads.
    """

    row: Row
    arrays: dict[str, np.ndarray]


def save_result(path: Path, result: Result) -> None:
    """Writes `<path>.npz`, then `<path>.json`: where there is a row there are its arrays."""
    with replacing(path.with_name(path.name + ".npz")) as file:
        np.savez_compressed(file, **result.arrays)  # pyright: ignore[reportArgumentType]
    write_json(path.with_name(path.name + ".json"), asdict(result.row))


def load_result(path: Path) -> Result | None:
    """The result that `save_result` wrote; None if there is none.

    Raises:
        ValueError: files that are damaged, incomplete, or of another version.
    """
    row, arrays = (path.with_name(f"{path.name}.{kind}") for kind in ("json", "npz"))
    if not row.exists():
        return None
    try:
        with np.load(arrays) as kept:
            return Result(Row(**json.loads(row.read_text())), dict(kept))
    except (OSError, BadZipFile, TypeError, ValueError) as error:
        raise ValueError(
            f"{row}: not a readable result ({error}); without it, it is measured again"
        ) from error
