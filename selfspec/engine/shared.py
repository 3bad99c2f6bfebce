"""Engines that are kept between calls, where making one costs time.

Threads share them: one draws at a time, on whatever GPU, and the others wait. Two at once would
hardly be faster on one GPU, and an engine a thread would be a copy of the weights a thread.
"""

from collections import OrderedDict
from threading import RLock
from typing import Any

from selfspec.engine.engine import Engine
from selfspec.interfaces import Samples
from selfspec.model import SSMD

__all__ = ["engine_for"]

KEPT = 4
KEPT_ON = "cuda"
"""Where making one costs time."""
_engines: OrderedDict[Any, Engine] = OrderedDict()
"""The last used, by model, slots, length, precision and state of the weights."""
_turn = RLock()
"""Held while one of them draws, and while one is looked for."""


class Shared(Engine):
    """An engine that draws when no other shared one does."""

    def sample(self, *args: Any, **options: Any) -> Samples:
        """As `Engine.sample`, after what other threads draw."""
        with _turn:
            return super().sample(*args, **options)


def engine_for(model: SSMD, rows: int, length: int, bfloat16: bool | None = None) -> Engine:
    """An idle engine of this model for so many rows of a length; `bfloat16` as in `Engine`.

    On CUDA the last four are kept, with the graphs that they have recorded, and slots are a power
    of two; a model whose weights or buffers have changed since gets another one, and those of its
    old weights are dropped. What was made in inference mode may change unseen: such a model gets a
    new one each time.

    Any thread may ask, and call `sample`: a kept engine is idle again when it is its turn.
    """
    if model.device.type != KEPT_ON:
        return Engine(model, rows, length, bfloat16=bfloat16)
    slots = 1 << (rows - 1).bit_length()
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return Engine(model, slots, length, bfloat16=bfloat16)
    weights = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
    key = (id(model), slots, length, bfloat16 is not False, weights)
    with _turn:
        for other in [other for other in _engines if other[0] == key[0] and other[-1] != weights]:
            del _engines[other]
        if key not in _engines or not _engines[key].idle:
            _engines[key] = Shared(model, slots, length, bfloat16=bfloat16)
        _engines.move_to_end(key)
        while len(_engines) > KEPT:
            _engines.popitem(last=False)
        return _engines[key]
