"""A small network that gives every position a number: one block over all positions.

    b_ℓ = w · norm(block(input(x)))_ℓ

With tokens as inputs it is the error predictor of guided star-shaped sampling, with statistics of
the drafts the policy of `PolicySampler`. w starts at zero: untrained, it prefers no position.

Shapes: B batch, L positions (natural order), F features, C channels.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from selfspec.files import write_bytes
from selfspec.nn.attention import RMSNorm, rotation
from selfspec.nn.transformer import Block, reset_block

__all__ = ["Scorer", "ScorerConfig"]


@dataclass(frozen=True)
class ScorerConfig:
    """Shape of a scorer: exactly one of `vocab_size` and `features` is above 0.

    Attributes:
        vocab_size: V, for tokens as inputs.
        features: F, for numbers as inputs.
        width: C.
        heads: attention heads.
    """

    vocab_size: int = 0
    features: int = 0
    width: int = 128
    heads: int = 4

    def __post_init__(self):
        if (self.vocab_size > 0) == (self.features > 0):
            raise ValueError(f"one of `vocab_size` and `features` must be above 0, "
                             f"got {self.vocab_size} and {self.features}")  # fmt: skip


class Scorer(nn.Module):
    """Tokens (B, L), or features (B, L, F), to (B, L) numbers."""

    def __init__(self, config: ScorerConfig):
        super().__init__()
        self.config = config
        width = config.width
        if config.vocab_size:
            self.input: nn.Module = nn.Embedding(config.vocab_size, width)
        else:
            self.input = nn.Linear(config.features, width)
        self.block = Block(width, config.heads)
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, 1, bias=False)
        reset_block(self.block)
        nn.init.zeros_(self.output.weight)

    @property
    def vocab_size(self) -> int:
        """V, 0 where the inputs are numbers."""
        return self.config.vocab_size

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """One pass.

        Args:
            x: (B, L) int64 tokens, or (B, L, F).
            pad: (B, L) bool, True at pads: no position attends to them.

        Returns:
            (B, L).
        """
        if not self.config.vocab_size:
            x = x.to(self.output.weight.dtype)
        channels = self.config.width // self.config.heads
        positions = torch.arange(x.shape[1], device=x.device)
        angles = rotation(positions, channels, self.output.weight.dtype)
        mask = None if pad is None else ~pad[:, None, None, :]
        return self.output(self.norm(self.block(self.input(x), angles, angles, mask))).squeeze(-1)

    def share(self, width: int, blocks: int) -> float:
        """Its cost in passes of a trunk of so many `blocks` of a `width`: (C / width)² / blocks."""
        return (self.config.width / width) ** 2 / blocks

    def save(self, folder: Path, **extra: Any) -> None:
        """Write `scorer.safetensors`, with its shape and JSON values for people."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"scorer": json.dumps(asdict(self.config)), "extra": json.dumps(extra)}
        weights = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        write_bytes(folder / "scorer.safetensors", safetensors.torch.save(weights, about))

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "Scorer":
        """Read what `save` wrote; evaluation mode.

        Raises:
            ValueError: a missing, corrupt or foreign file.
        """
        path = Path(folder) / "scorer.safetensors"
        try:
            with safe_open(path, "pt") as file:
                config = ScorerConfig(**json.loads(file.metadata()["scorer"]))
                scorer = cls(config)
                scorer.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path}: not a readable scorer ({error})") from error
        return scorer.to(device).eval()
