"""Engines that are kept between calls, where making one costs time."""

from collections import OrderedDict
from typing import Any

from selfspec.engine.engine import Engine
from selfspec.model import SSMD

__all__ = ["engine_for"]

KEPT = 4
_engines: OrderedDict[Any, Engine] = OrderedDict()
"""The last used, by model, slots, length, precision and state of the weights."""


def engine_for(model: SSMD, rows: int, length: int, bfloat16: bool | None = None) -> Engine:
    """An idle engine of this model for so many rows of a length; `bfloat16` as in `Engine`.

    On CUDA the last four are kept, with the graphs that they have recorded, and slots are a power
    of two; a model whose weights or buffers have changed since gets another one, and those of its
    old weights are dropped. What was made in inference mode may change unseen: such a model gets a
    new one each time.
    """
    if model.device.type != "cuda":
        return Engine(model, rows, length, bfloat16=bfloat16)
    slots = 1 << (rows - 1).bit_length()
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return Engine(model, slots, length, bfloat16=bfloat16)
    weights = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
    key = (id(model), slots, length, bfloat16 is not False, weights)
    for other in [other for other in _engines if other[0] == key[0] and other[-1] != weights]:
        del _engines[other]
    if key not in _engines or not _engines[key].idle:
        _engines[key] = Engine(model, slots, length, bfloat16=bfloat16)
    _engines.move_to_end(key)
    while len(_engines) > KEPT:
        _engines.popitem(last=False)
    return _engines[key]
