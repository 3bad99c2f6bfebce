"""Work that is shared by the processes of torchrun: each does its part, all get the whole.

Rank r of w takes the rows ⌊r·n/w⌋ … ⌊(r+1)·n/w⌋ - 1. Without torchrun there is one rank.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["Ranks", "ranks"]

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def share(self, n: int, work: Callable[[slice], T]) -> list[T]:
        """What `work` makes of the parts of n rows, in their order; every rank gets them all.

        Ranks that have no rows are left out. Results are sent by pickling: keep them on the CPU.

        Raises:
            Exception: on every rank, what was raised on any.
        """
        part = slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)
        own: Any = None
        try:
            if part.start < part.stop:
                own = (work(part),)
        except Exception as error:
            if self.world == 1:
                raise
            own = error
        found = [own]
        if self.world > 1:
            found = [None] * self.world
            dist.all_gather_object(found, own)
        for result in found:
            if isinstance(result, Exception):
                raise result
        return [result[0] for result in found if result is not None]


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes that torchrun has started, joined for the block; one where it has not."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
