"""Rows that are filled, on their way from the device to who asked for them.

A row travels as 2 L + 5 integers, so that rows that finish together need one copy: on a GPU a call
costs the host tens of microseconds, and some row finishes in almost every pass.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfspec.engine.state import Rows
from selfspec.interfaces import Samples
from selfspec.model import SSMD
from selfspec.sampling.base import check_filled

__all__ = ["Finished", "as_samples", "packed", "unpacked"]

COUNTS = ("index", "trunk_passes", "head_passes", "drafted", "accepted")


class Finished(NamedTuple):
    """Rows that are filled, each field with a leading axis; on the CPU."""

    tokens: Tensor
    pad: Tensor
    index: Tensor
    """The numbers of the requests."""
    trunk_passes: Tensor
    head_passes: Tensor
    drafted: Tensor
    accepted: Tensor

    def rows(self, kept: Tensor) -> "Finished":
        """Those where `kept` (B,) is True."""
        return Finished(*(column[kept] for column in self))


def packed(rows: Rows, at: Tensor) -> Tensor:
    """The rows `at` (B,) as integers, (B, 2 L + 5) int64."""
    counts = torch.stack([getattr(rows, name) for name in COUNTS], 1)
    return torch.cat([rows.tokens[at], rows.pad[at].long(), counts[at]], 1)


def unpacked(integers: Tensor) -> Finished:
    """The rows that `packed` gave."""
    length = (integers.shape[1] - len(COUNTS)) // 2
    tokens, pad, counts = integers.split([length, length, len(COUNTS)], 1)
    return Finished(tokens, pad.bool(), *counts.unbind(1))


def as_samples(model: SSMD, parts: list[Finished], tokens: Tensor, pad: Tensor | None) -> Samples:
    """Finished rows of one call, in the order of their requests, on the device of `tokens`.

    Raises:
        ValueError: a position stays masked, as where the model's logits were NaN.
    """
    order = torch.cat([rows.index for rows in parts]).argsort()
    names = ("tokens", "trunk_passes", "head_passes", "drafted", "accepted")
    columns = {
        name: torch.cat([getattr(rows, name) for rows in parts])[order].to(tokens.device)
        for name in names
    }
    drawn = columns["tokens"][:, : tokens.shape[1]]
    pad = torch.zeros_like(drawn, dtype=torch.bool) if pad is None else pad.to(tokens.device)
    check_filled(model, drawn, pad)
    columns |= {"tokens": torch.where(pad, tokens, drawn), "pad": pad}
    blocks: dict[str, Any] = {
        "trunk_blocks": model.num_trunk_blocks,
        "head_blocks": model.num_head_blocks,
    }
    return Samples(**columns, **blocks)
