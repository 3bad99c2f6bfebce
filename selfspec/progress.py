"""Progress bars, and the one rule for when they are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["tracked", "watched"]


def tracked(items: Iterable[Any] | None = None, *, progress: bool = True, **options: Any) -> tqdm:
    """A bar of tqdm, over `items` or to be moved by hand; shown if wanted and watched."""
    from tqdm import tqdm

    return tqdm(items, disable=not (progress and watched()), **options)


def watched() -> bool:
    """Whether somebody sees a bar: in a terminal or a notebook; in a file it would be noise."""
    notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    return notebook or sys.stderr.isatty()
