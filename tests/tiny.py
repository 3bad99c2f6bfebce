"""Small random models with a tokenizer, for tests of what surrounds them."""

from pathlib import Path
from typing import Any

import torch

from selfspec import checkpoint
from selfspec.data.tokenizers import CharTokenizer, ProteinTokenizer
from selfspec.lengths import Lengths
from selfspec.metrics import save_vocabulary
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig

LENGTH = 24


def model(head: bool = True, seed: int = 0, length: int = LENGTH, vocab: int = 27) -> SSMD:
    """A trunk of two blocks, and a head whose target differs from the draft."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        trunk = Trunk(TrunkConfig(vocab_size=vocab, length=length, width=16, blocks=2, heads=2))
        torch.nn.init.normal_(trunk.unembedding.weight, std=0.3)
        made = SSMD(trunk, CausalHead(HeadConfig(heads=2), 16) if head else None).eval()
        if made.head is not None:
            torch.nn.init.normal_(made.head.project.weight)
    made.tokenizer = CharTokenizer()
    return made


def protein(head: bool = True) -> SSMD:
    """The same for sequences of residues, of different lengths."""
    made = model(head, vocab=20)
    made.tokenizer = ProteinTokenizer()
    made.lengths = Lengths((1, 0, 3, 2, 2, 1), 4, LENGTH)
    return made


def judge(seed: int = 1, vocab: int = 27) -> AutoregressiveModel:
    """An autoregressive model of the same tokens."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        shape = TrunkConfig(
            vocab_size=vocab, length=LENGTH, width=16, blocks=1, heads=2, causal=True
        )
        made = AutoregressiveModel(Trunk(shape)).eval()
    made.tokenizer = CharTokenizer() if vocab == 27 else ProteinTokenizer()
    return made


def row(
    nfe: float, judge: float, order: str = "uniform", dtau: float = 0.1, rounds: int = 2
) -> dict[str, Any]:
    """A row of a calibration table."""
    return {
        "sampler": "speculative",
        "order": order,
        "window": {"kind": "cosine", "dtau": dtau},
        "rounds": rounds,
        "nfe": nfe,
        "judge": judge,
    }


def plain_row(nfe: float, judge: float, order: str = "respaced", steps: int = 8) -> dict[str, Any]:
    """The same of plain sampling."""
    settings = {"order": order, "schedule": "linear", "steps": steps}
    return {"sampler": "plain", **settings, "nfe": nfe, "judge": judge}


def remasked_row(nfe: float, judge: float, eta: float = 0.1) -> dict[str, Any]:
    """The same of sampling that takes tokens back."""
    return row(nfe, judge, "cells") | {"sampler": "remasked", "eta": eta, "passes": 9}


def bundle(folder: Path) -> Path:
    """What comes with the package, in small: a calibrated model, a judge, a vocabulary."""
    made = model()
    made.calibration = [
        row(8, 5.0, dtau=0.3), row(12, 4.0), row(20, 3.9, dtau=0.01), row(11, 3.95, "respaced"),
        plain_row(10, 3.8, steps=15), row(21, 3.7, "cells"), remasked_row(22, 3.6),
    ]  # fmt: skip
    checkpoint.save(made, folder / "books27")
    checkpoint.save(judge(), folder / "books27-judge")
    save_vocabulary(folder / "books27" / "vocabulary.txt.xz", ["a", "the"])
    return folder
