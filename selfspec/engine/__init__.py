"""The engine: the law of `sampling/`, several times the speed.

It draws what the samplers draw, number by number, but computes only what a pass needs, never waits
for the device, and hands a finished row's place on at once.
"""

from selfspec.engine.engine import Engine
from selfspec.engine.offline import draw_shards, read_shards
from selfspec.engine.shared import engine_for
from selfspec.engine.state import unsupported
from selfspec.engine.step import Variant

__all__ = ["Engine", "Variant", "draw_shards", "engine_for", "read_shards", "unsupported"]
