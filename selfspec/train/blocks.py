"""The blocks of a model for as long as a run lasts: compiled, or recomputed for the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from selfspec.cross_entropy import token_nll
from selfspec.nn.head import CausalHead
from selfspec.nn.transformer import Block
from selfspec.train.parallel import trained_blocks


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Within the block the model's transformer blocks, its head with inputs and residual, and the
    unembedding with the cross-entropy are compiled, for shapes that stay the same.

    There are few: one width or, with pads, one a bucket; of trunk and head, with and without
    gradients.
    Afterwards they are not compiled: a sampler's batches have another shape at every pass.
    """
    parts = [module for module in model.modules() if isinstance(module, Block | CausalHead)]
    for part in (*parts, token_nll):
        part.compile(dynamic=False)
    try:
        # Beyond the limit blocks would run eagerly; under DDP they would be cut where buckets end.
        with torch._dynamo.config.patch(recompile_limit=64, optimize_ddp=False):
            yield
    finally:
        for part in (*parts, token_nll):
            part._compiled_call_impl = None  # `Module.compile` has no inverse


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Within the block, gradients recompute what is inside a block instead of keeping it."""
    blocks = trained_blocks(model)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # back to that of its class
