"""What the layers agree on: the trunk, the samples, their account and their trace.

**NFE** (number of function evaluations), per sequence:

    NFE = (trunk passes · trunk blocks + head passes · head blocks) / (trunk blocks + head blocks).

The unit is one pass through all blocks. Plain sampling with the trunk of a self-speculative model
therefore costs trunk blocks / all blocks a pass; plain sampling with a separately trained model of
as many blocks costs 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

__all__ = ["Pass", "Round", "Samples", "Trace", "TrunkProtocol"]


@runtime_checkable
class TrunkProtocol(Protocol):
    """A bidirectional masked model, as `SSMD` needs it.

    Tokens that are never to be drafted have logits of -inf. A trunk may also have a `frame`, the
    tokens that stand before and after every sequence and are observed: a pair of tuples.
    """

    vocab_size: int
    """V: it has logits for 0..V-1."""
    mask_id: int
    """V, or a token below it whose logit is -inf."""
    width: int
    """C, channels of the hidden state."""
    length: int
    """The longest sequence."""
    num_blocks: int

    def __call__(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
        """(B, L) tokens, (B, L) bool pads → (B, L, C) hidden states before the final norm."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """(…) tokens → (…, C)."""
        ...

    def unembed(self, hidden: Tensor) -> Tensor:
        """(…, C) hidden states → (…, V) logits: final norm, then unembedding."""
        ...


@dataclass(frozen=True)
class Round:
    """One pass of the causal head over one row."""

    accepted: list[int]
    """Positions accepted, in σ order."""
    rejected: int | None
    """The position of the first rejection."""
    redrawn: int | None
    """The token drawn there from the residual."""


@dataclass(frozen=True)
class Pass:
    """One step over one row, mostly one trunk pass: what was drafted, verified and revealed."""

    positions: list[int]
    """The window, in σ order."""
    drafted: list[int]
    """The tokens drafted there."""
    rounds: list[Round]
    revealed: list[tuple[int, int]]
    """(position, token) pairs that stand after the pass."""
    remasked: list[int] = field(default_factory=list)
    """Positions that were known before and are masked again."""
    trunk_passes: int = 1
    """Sequences that the trunk read for it."""


Trace = list[list[Pass]]
"""The passes of every row, in order; a user interface can replay them."""


@dataclass
class Samples:
    """Generated sequences with their account.

    Attributes:
        tokens: (B, L) int64, natural order; pads keep what they held.
        trunk_passes, head_passes: (B,) int64.
        drafted, accepted: (B,) int64; drafts that were verified or revealed, and those that stand.
        trunk_blocks, head_blocks: of the model that drew them.
        trace: the passes of every row, if asked for.
        text: decoded rows, where a tokenizer is known.
        pad: (B, L) bool, True at pads.
    """

    tokens: Tensor
    trunk_passes: Tensor
    head_passes: Tensor
    drafted: Tensor
    accepted: Tensor
    trunk_blocks: int
    head_blocks: int
    trace: Trace | None = None
    text: list[str] | None = None
    pad: Tensor | None = None

    @property
    def nfe(self) -> Tensor:
        """(B,) float64 function evaluations; see the module's formula."""
        blocks = self.trunk_blocks + self.head_blocks
        work = self.trunk_passes * self.trunk_blocks + self.head_passes * self.head_blocks
        return work.double() / blocks

    @property
    def acceptance(self) -> float:
        """Share of the verified drafts that were accepted; 1 for plain samplers, nan for none."""
        drafted = int(self.drafted.sum())
        return int(self.accepted.sum()) / drafted if drafted else float("nan")

    @property
    def rows(self) -> np.ma.MaskedArray:
        """(B, L) the tokens, masked at pads."""
        pad = np.False_ if self.pad is None else self.pad.cpu().numpy()
        return np.ma.masked_array(self.tokens.cpu().numpy(), mask=pad)

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[str]:
        """The texts."""
        if self.text is None:
            raise ValueError("`text` is not known: decode `tokens` with the model's tokenizer")
        return iter(self.text)

    @classmethod
    def concatenate(cls, parts: list["Samples"]) -> "Samples":
        """The rows of several batches drawn by one sampler."""
        if not parts:
            raise ValueError("`parts` must hold at least one batch, got none")
        tensors = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("tokens", "trunk_passes", "head_passes", "drafted", "accepted")
        }
        pads = [part.pad for part in parts if part.pad is not None]
        return cls(
            **tensors,
            pad=torch.cat(pads) if len(pads) == len(parts) else None,
            trunk_blocks=parts[0].trunk_blocks,
            head_blocks=parts[0].head_blocks,
            trace=_joined([part.trace for part in parts]),
            text=_joined([part.text for part in parts]),
        )


def _joined(lists: list) -> list | None:
    """All rows, or None where a batch has none."""
    return None if any(rows is None for rows in lists) else [row for rows in lists for row in rows]
