"""Small random models for tests of what surrounds them."""

from pathlib import Path

import torch

from selfspec import checkpoint
from selfspec.data.tokenizers import CharTokenizer
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig

LENGTH = 24


def model(head: bool = True, seed: int = 0) -> SSMD:
    """A trunk of two blocks and a head whose target differs from the draft."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        trunk = Trunk(TrunkConfig(vocab_size=27, length=LENGTH, width=16, blocks=2, heads=2))
        made = SSMD(trunk, CausalHead(HeadConfig(heads=2), 16) if head else None).eval()
        torch.nn.init.normal_(trunk.unembedding.weight)
        if made.head is not None:
            torch.nn.init.normal_(made.head.project.weight)
    made.tokenizer = CharTokenizer()
    return made


def judge(seed: int = 1) -> AutoregressiveModel:
    """An autoregressive model of the same tokens."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        shape = TrunkConfig(vocab_size=27, length=LENGTH, width=16, blocks=1, heads=2, causal=True)
        made = AutoregressiveModel(Trunk(shape)).eval()
    made.tokenizer = CharTokenizer()
    return made


def row(nfe: float, judge: float, order: str = "uniform", **window: float) -> dict:
    """A row of a calibration table."""
    window = window or {"dtau": 0.1}
    return {
        "sampler": "speculative",
        "order": order,
        "window": {"kind": "cosine", **window},
        "rounds": 2,
        "nfe": nfe,
        "judge": judge,
    }


def save(folder: Path, made: SSMD | AutoregressiveModel | None = None) -> Path:
    """A checkpoint of a small model."""
    checkpoint.save(made or model(), folder)
    return folder
