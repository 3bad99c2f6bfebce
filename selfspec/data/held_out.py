"""What of a corpus without a validation split is held out.

    LastDocuments(100_000)    the last documents, as MDLM does on OpenWebText (2406.07524)
    Blocks(1024, every=50)    one block of tokens in 50: 2 %, as MD4 does (2406.04329)

MD4 shuffles all blocks and holds 2 % of them out; here one of every 50 neighbours is drawn, so that
the corpus is read once and the rest stays in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from selfspec.checks import whole


class HoldOut(Protocol):
    """A rule that divides documents."""

    whole: ClassVar[bool]
    """Whether it must see each as one array; else a document may come in several."""

    def rest(self, documents: Iterable[np.ndarray], held: list[np.ndarray]) -> Iterator[np.ndarray]:
        """What stays, in order; what is held out has been put into `held` at the end.

        Args:
            documents: (n_k,) ids of each.
            held: an empty list.

        Raises:
            ValueError: the corpus is too small for the rule.
        """
        ...


@dataclass(frozen=True)
class LastDocuments:
    """The last `count` documents; they are kept in memory until the others are written."""

    count: int
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("count", self.count, least=1)

    def rest(self, documents: Iterable[np.ndarray], held: list[np.ndarray]) -> Iterator[np.ndarray]:
        """All but the last; see `HoldOut`."""
        last: deque[np.ndarray] = deque()
        kept = 0
        for document in documents:
            last.append(document)
            if len(last) > self.count:
                kept += 1
                yield last.popleft()
        if not kept:
            raise ValueError(f"`count` must leave documents to train on, got {self.count} to "
                             f"hold out of {len(last)}")  # fmt: skip
        held += last


@dataclass(frozen=True)
class Blocks:
    """One block of `length` tokens in `every`, drawn among neighbours by the seed."""

    length: int = 1024
    every: int = 50
    seed: int = 0
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("length", self.length, least=1)
        whole("every", self.every, least=2)

    def rest(self, documents: Iterable[np.ndarray], held: list[np.ndarray]) -> Iterator[np.ndarray]:
        """All other tokens; see `HoldOut`."""
        size = self.length * self.every
        left = np.empty(0, np.uint8)
        for group, piece in enumerate(_pieces(documents, size)):
            if len(piece) < size:
                left = piece
                break
            start = self.length * np.random.default_rng([self.seed, group]).integers(self.every)
            held.append(piece[start : start + self.length].copy())
            yield np.delete(piece, slice(start, start + self.length))
        if not held:
            raise ValueError(f"`every` must be at most {len(left) // self.length} for this corpus, "
                             f"got {self.every}")  # fmt: skip
        yield left


def _pieces(documents: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The concatenation of all in pieces of `size`, and what is left."""
    waiting, count = [], 0
    for document in documents:
        waiting.append(document)
        count += len(document)
        if count >= size:
            whole = np.concatenate(waiting)
            full = count // size * size
            yield from whole[:full].reshape(-1, size)
            waiting, count = [whole[full:]], count - full
    if count:
        yield np.concatenate(waiting)
