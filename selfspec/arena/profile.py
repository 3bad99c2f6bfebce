"""An information profile takes two passes a token, so it is measured once and kept."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from selfspec.arena.sweep import fingerprint
from selfspec.files import write_json

__all__ = ["kept_profile"]


def kept_profile(
    folder: Path, model: object, seed: int, num: int, measure: Callable[[], Iterable[float]]
) -> list[float]:
    """The profile of a model, from its file in the folder or else measured.

    Args:
        folder: where it is kept, by the model's weights, `seed` and `num`.
        model: whose it is.
        seed: of the orders, and of the samples if they are its own.
        num: sequences that it is measured on.
        measure: gives a number a token.
    """
    path = folder / f"profile-{fingerprint(model)}-{seed}-{num}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, list(measure()))
    return json.loads(path.read_text())
