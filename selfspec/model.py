"""Self-speculative masked diffusion: a trunk that drafts and a causal head that verifies.

Shapes: B batch, L positions (natural order), S places (σ order), W places of a window, C channels,
V vocabulary. `revealed` = i is the number of tokens known to the trunk, and the index of the first
masked place when places are counted from 0.

    draft   p_i(d, ·)  for d ≥ i: law of x_σ(d) given the i revealed tokens        (trunk)
    target  q_i(d, ·)  for d ≥ i: law of x_σ(d) given x_σ(0), …, x_σ(d-1),
                       with the trunk still run on the i revealed tokens            (trunk and head)

At d = i both have the same information; there the target is *defined* to be the draft (the tie), so
that a pass always reveals at least one token. `target` is the only place where targets are read,
and applies the tie.
"""

from typing import Any

import torch
from torch import Tensor, nn

from selfspec.data.tokenizers import Tokenizer
from selfspec.interfaces import TrunkProtocol
from selfspec.lengths import Lengths
from selfspec.nn.head import CausalHead
from selfspec.nn.transformer import Trunk
from selfspec.ops import reorder, take, take_along

__all__ = ["SSMD", "AutoregressiveModel"]


class SSMD(nn.Module):
    """A masked diffusion model, with a causal head or (`head=None`) without.

    Args:
        trunk: any module that satisfies `TrunkProtocol`.
        head: the causal head; without it the model can draft only.
    """

    def __init__(self, trunk: nn.Module, head: CausalHead | None = None):
        super().__init__()
        if not isinstance(trunk, TrunkProtocol):
            raise ValueError(f"`trunk` must satisfy TrunkProtocol, got {type(trunk).__name__}")
        self.trunk = trunk
        self.head = head
        self.tokenizer: Tokenizer | None = None
        self.calibration: list[dict[str, Any]] = []
        """Rows of (window, rounds, order) → (NFE, quality), measured for these weights."""
        self.lengths: Lengths | None = None
        """Of the sequences that it was trained on; None where all were as long as the model."""
        self.record: dict[str, Any] = {}
        """JSON values on these weights that go into checkpoints, such as how they were trained."""

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.trunk.vocab_size  # type: ignore[return-value]

    @property
    def mask_id(self) -> int:
        """The token that stands for a masked position."""
        return self.trunk.mask_id  # type: ignore[return-value]

    @property
    def length(self) -> int:
        """The longest sequence."""
        return self.trunk.length  # type: ignore[return-value]

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens that stand before and after every sequence, observed; none for our own trunk."""
        return getattr(self.trunk, "frame", ((), ()))

    @property
    def num_trunk_blocks(self) -> int:
        """Blocks of the trunk."""
        return self.trunk.num_blocks  # type: ignore[return-value]

    @property
    def num_head_blocks(self) -> int:
        """Blocks of the head, 0 without one."""
        return 0 if self.head is None else self.head.config.blocks

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
        """One trunk pass: (B, L) masked tokens, (B, L) pads → (B, L, C), natural order."""
        return self.trunk(tokens, pad)

    def draft(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Draft logits.

        Args:
            hidden: (B, L, C) from `encode`.
            positions: (B, W) where to draft; None for every position.

        Returns:
            (B, W, V), or (B, L, V) in natural order.
        """
        at = hidden if positions is None else take_along(hidden, positions)
        return self.trunk.unembed(at)  # type: ignore[operator]

    def target(
        self,
        hidden: Tensor,
        tokens: Tensor,
        order: Tensor,
        revealed: Tensor,
        places: Tensor | None = None,
    ) -> Tensor:
        """Target logits, tied to the draft at the first masked place: one head pass.

        Args:
            hidden: (B, L, C) from `encode`, natural order.
            tokens: (B, L) revealed and drafted (or true) tokens, natural order.
            order: (B, L) position at each place.
            revealed: (B,) index i of the first masked place.
            places: (B, W) places of σ to read; None for all.

        Returns:
            (B, W, V), or (B, L, V) in σ order. The entry at place d depends on the tokens at
            places below d only.

        Raises:
            ValueError: the model has no head.
        """
        corrected = self.corrected_states(hidden, tokens, order)
        if places is None:
            places = torch.arange(order.shape[1], device=order.device).expand_as(order)
            drafted = reorder(hidden, order)
        else:
            drafted = take_along(hidden, order.gather(1, places))
            corrected = take_along(corrected, places)
        first = (places == revealed.unsqueeze(1)).unsqueeze(-1)
        states = torch.where(first, drafted.to(corrected.dtype), corrected)
        return self.trunk.unembed(states)  # type: ignore[operator]

    def corrected_states(self, hidden: Tensor, tokens: Tensor, order: Tensor) -> Tensor:
        """(B, L, C), σ order, without the tie: for a loss that leaves the tied place out."""
        if self.head is None:
            raise ValueError("`model` must have a causal head to compute targets, got head=None")
        return self.head(hidden, self.trunk.embed(tokens), order)  # type: ignore[operator]


class AutoregressiveModel(nn.Module):
    """A causal trunk with the chain rule: log p(x) = Σ_ℓ log p(x_ℓ | x_0, …, x_(ℓ-1))."""

    def __init__(self, trunk: Trunk):
        super().__init__()
        if not trunk.config.causal:
            raise ValueError("`trunk` must be causal, got causal=False")
        self.trunk = trunk
        self.tokenizer: Tokenizer | None = None
        self.record: dict[str, Any] = {}
        """As of `SSMD`."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens → (B, L, V) logits; entry ℓ predicts token ℓ from those before it."""
        return self.trunk.unembed(self.encode(tokens))

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens → (B, L, C), what `forward` unembeds."""
        begin = torch.full_like(tokens[:, :1], self.trunk.mask_id)
        return self.trunk(torch.cat([begin, tokens[:, :-1]], dim=1))

    def log_probs(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens → (B, L) log-probability of each token, nats.

        Raises:
            ValueError: tokens outside the vocabulary, or more of them than the trunk can read.
        """
        shape = self.trunk.config
        if tokens.shape[1] > shape.length:
            raise ValueError(f"`tokens` may be at most {shape.length} long, got {tokens.shape[1]}")
        unknown = (tokens < 0) | (tokens >= shape.vocab_size)
        if bool(unknown.any()):
            raise ValueError(f"`tokens` must be in 0..{shape.vocab_size - 1}, "
                             f"got {int(tokens[unknown][0])}")  # fmt: skip
        logits = self(tokens)
        precise = torch.promote_types(logits.dtype, torch.float32)
        return take(torch.log_softmax(logits, dim=-1, dtype=precise), tokens)
