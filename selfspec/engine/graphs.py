"""Steps, made fast: compiled, and on CUDA recorded once and replayed.

A variant's first passes run as they are and warm up kernels and allocator; the next is recorded as
a CUDA graph, and from then on a pass is one launch. Where that is not possible passes keep running
as they are, and a warning says why.
"""

import copy
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from selfspec.engine.state import Pool
from selfspec.engine.step import Step, Variant
from selfspec.model import SSMD
from selfspec.nn.transformer import Block, Trunk, aligned

__all__ = ["Steps", "copied"]

WARM = 2
"""Passes of a variant before it is recorded."""
log = logging.getLogger("selfspec.engine")


class Steps:
    """The passes of an engine, one step a variant.

    Args:
        model: an `SSMD`; compiled in place if `compile`.
        pool: whose rows they advance.
        compile: by `torch.compile`: a minute a variant, for long runs.
        graphs: record CUDA graphs.
        autocast: matrix products in bfloat16.
    """

    def __init__(self, model: SSMD, pool: Pool, compile: bool, graphs: bool, autocast: bool):
        self.model, self.pool, self.autocast = model, pool, autocast
        self.compile, self.graphs = compile, graphs
        self.reason: str | None = None
        """Why graphs or compiling were given up."""
        self.passes = 0
        """Passes run so far."""
        self._made: dict[Variant, Step] = {}
        self._uses: dict[Variant, int] = {}
        self._recorded: dict[Variant, torch.cuda.CUDAGraph] = {}
        if compile:
            # A step is compiled anew for every variant; beyond the limit it would run uncompiled.
            from torch._dynamo import config

            config.recompile_limit = max(256, config.recompile_limit)
            for block in _blocks(model):
                block.compile(dynamic=False)

    def __call__(self, variant: Variant) -> None:
        """One pass."""
        self.passes += 1
        graph = self._recorded.get(variant)
        if graph is not None:
            return graph.replay()
        uses = self._uses[variant] = self._uses.get(variant, 0) + 1
        if self.graphs and uses > WARM and self._record(variant):
            return self._recorded[variant].replay()
        self._run(variant)

    def forget(self) -> None:
        """Drop what was made for the pool's present shape."""
        self._made.clear()
        self._uses.clear()
        self._recorded.clear()

    def _run(self, variant: Variant) -> None:
        try:
            with self._settings():
                self._step(variant)(self.pool)
        except RuntimeError as error:
            if not (self.compile and _is_of_the_compiler(error)):
                raise
            self._give_up("compiling", error)
            self._run(variant)

    def _record(self, variant: Variant) -> bool:
        graph = torch.cuda.CUDAGraph()
        memory = next(iter(self._recorded.values())).pool() if self._recorded else None
        stream = torch.cuda.current_stream()
        try:
            with (
                self._settings(),
                torch.cuda.graph(graph, memory, stream, capture_error_mode="thread_local"),
            ):
                self._step(variant)(self.pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._give_up("graphs", error)
            return False
        self._recorded[variant] = graph
        return True

    def _step(self, variant: Variant) -> Step:
        if variant not in self._made:
            early = self.pool.slots.device.type != "cuda"
            wrap: Callable = self._compiled if self.compile else lambda function: function
            self._made[variant] = Step(self.model, variant, early, wrap)
        return self._made[variant]

    def _compiled(self, function: Callable) -> Any:
        # Indices are right by construction, and torch 2.11 checks those of threads without work.
        return torch.compile(function, dynamic=False, options={"assert_indirect_indexing": False})

    def _settings(self) -> AbstractContextManager[Any]:
        if not self.autocast:
            return nullcontext()
        # Weights are lowered once, not cast in every pass, so there is nothing to cache.
        device = self.pool.slots.device.type
        return torch.autocast(device, torch.bfloat16, cache_enabled=False)

    def _give_up(self, what: str, error: Exception) -> None:
        self.reason = f"no {what}: {_said(error)}"
        log.warning("the engine is slower than it could be (%s)", self.reason)
        if what == "graphs":
            self.graphs = False
            return
        self.compile = False
        self.forget()
        for block in _blocks(self.model):
            block._compiled_call_impl = None  # `Module.compile` has no inverse


def _is_of_the_compiler(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def _said(error: Exception) -> str:
    """What it says, in one line."""
    inner = error
    while isinstance(further := getattr(inner, "inner_exception", None), Exception):
        inner = further
    said = _lines(inner)
    # "An exception occurred in a subprocess:", its traceback, and last of all what it was.
    return said[-1] if said[0].endswith(":") else _lines(error)[0]


def _lines(error: Exception) -> list[str]:
    lines = (line.strip() for line in str(error).splitlines())
    return [line for line in lines if line] or [type(error).__name__]


def _blocks(model: SSMD) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def copied(model: SSMD, bfloat16: bool) -> SSMD:
    """A copy; in bfloat16 only its matrices, as autocast would make them in every pass.

    Norms, embeddings and the residual stream stay as they are.
    """
    made = copy.deepcopy(model)
    for module in made.modules():
        if bfloat16 and isinstance(module, nn.Linear):
            low = {name: p.to(torch.bfloat16) for name, p in module.named_parameters(recurse=False)}
            for name, value in low.items():  # new ones: an embedding may be tied to the old
                setattr(module, name, nn.Parameter(value))
    if bfloat16 and isinstance(made.trunk, Trunk):  # once, not in every pass
        last = made.trunk.unembedding
        last.weight = nn.Parameter(aligned(last.weight))
    return made.eval().requires_grad_(False)
