"""The weights that a run begins with, where a trained model has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from selfspec import checkpoint
from selfspec.data.tokenizers import of_another


def initialise(model: Any, source: Any) -> None:
    """Copies the weights of a trained model: the trunk, and the head if both have one.

    Args:
        model: the model to train.
        source: a model of the same trunk, or the folder of a checkpoint.

    Raises:
        ValueError: the trunks (or the heads) differ in their parameters, or the tokenizers.
    """
    if isinstance(source, str | os.PathLike):
        source = checkpoint.load(Path(source))
    if of_another(*(getattr(each, "tokenizer", None) for each in (model, source))):
        raise ValueError("`source` must have the tokenizer of the data, got another")
    _copy(model.trunk, source.trunk, "trunk")
    if getattr(model, "head", None) and getattr(source, "head", None):
        _copy(model.head, source.head, "head")  # type: ignore[union-attr]


def _copy(target: nn.Module, source: nn.Module, name: str) -> None:
    shapes, others = ({key: weight.shape for key, weight in module.state_dict().items()}
                      for module in (target, source))  # fmt: skip
    if odd := sorted(shapes.items() ^ others.items()):
        raise ValueError(f"`source` must have the model's {name}, got another: "
                         f"they differ in {odd[0][0]!r}")  # fmt: skip
    target.load_state_dict(source.state_dict())
