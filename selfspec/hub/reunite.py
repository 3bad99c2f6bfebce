"""Trunk and head of a checkpoint, found again.

A checkpoint of a head names its trunk: where the model is, at which revision, in which precision,
and the fingerprint of its weights. Here the model is loaded again and compared; with other weights
the head would verify another model's drafts, and nothing would say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfspec.data.tokenizers import Tokenizer
from selfspec.hub import mdlm
from selfspec.hub.attach import ADAPTERS, load_model, load_tokenizer
from selfspec.hub.tokenizer import HubTokenizer
from selfspec.hub.trunk import GUIDE, HubTrunk, Source, Vocabulary, transformers
from selfspec.weights import fingerprint

__all__ = ["Reunion"]


class Reunion:
    """Makes the trunk that a checkpoint describes; `checkpoint.load` calls it.

    Args:
        trunk: the model itself, an adapter around it, or its name, where it is not to be found
            under the name in the checkpoint.
        tokenizer: of the `transformers` library, or its name; by default the one in the
            checkpoint, or else the model's own.
        trust_remote_code: run Python code that comes with the model.
    """

    def __init__(self, trunk: Any = None, tokenizer: Any = None, trust_remote_code: bool = False):
        self.trunk, self.tokenizer, self.trust = trunk, tokenizer, trust_remote_code

    def __call__(
        self, config: Mapping[str, Any], folder: Path
    ) -> tuple[nn.Module, Tokenizer | None]:
        """Trunk and tokenizer.

        Raises:
            ValueError: the trunk's weights are not those that the head was made for, the
                tokenizer has too many or too few tokens, or the description is broken.
            OSError: no such model.
        """
        path, about, tokenizer = folder / "config.json", config["trunk"], self.tokenizer
        source, vocabulary, dtype = _read(about, path)
        if tokenizer is None and config.get("tokenizer") and (folder / "tokenizer").is_dir():
            tokenizer = folder / "tokenizer"
        tokenizer = load_tokenizer(tokenizer, None, {"trust_remote_code": self.trust})
        whole, given = bool(about.get("model")), isinstance(self.trunk, HubTrunk)
        kind = type(self.trunk) if given else _adapter(about.get("adapter"), path)
        if whole:
            model = _blank(about["model"], kind.auto_class, path).to(dtype)
        else:
            model, tokenizer = self._find(source, tokenizer, dtype, path)
        model.eval().requires_grad_(False)
        adapted = isinstance(model, HubTrunk)
        # Before an adapter that does not fit complains of anything else.
        weights = model.weights() if adapted else kind.read_weights(model)
        if not whole and (found := fingerprint(weights)) != source.sha256:
            raise ValueError(f"{path}: `trunk` must have the weights that the head was made for "
                             f"({source.name}, SHA-256 {source.sha256[:12]}…), got others "
                             f"({found[:12]}…)")  # fmt: skip
        trunk = model if adapted else kind(model, vocabulary, source, about.get("length"))
        if tokenizer is None:
            return trunk, None
        if self.tokenizer is not None and config.get("tokenizer"):
            _check_reach(tokenizer, vocabulary)
        return trunk, HubTokenizer(tokenizer, vocabulary.size, vocabulary.mask)

    def _find(
        self, source: Source, tokenizer: Any, dtype: torch.dtype, path: Path
    ) -> tuple[Any, Any]:
        """The model, given or loaded, and its tokenizer."""
        if isinstance(self.trunk, HubTrunk):
            own = any(True for _ in self.trunk.parameters(recurse=False))
            return self.trunk if own else self.trunk.model, tokenizer
        if isinstance(self.trunk, nn.Module):
            return self.trunk, tokenizer
        name = source.name if self.trunk is None else str(self.trunk)
        if not name:
            raise ValueError(f"{path}: its trunk has no name: give the model as `trunk`")
        if self.trunk is None and Path(name).is_absolute() and not Path(name).is_dir():
            raise ValueError(f"{path}: its trunk was in the folder {name}, which is gone: "
                             "give where it is as `trunk`")  # fmt: skip
        revision = source.revision if self.trunk is None else None
        return load_model(name, tokenizer, revision, self.trust, dtype)


def _read(config: dict[str, Any], path: Path) -> tuple[Source, Vocabulary, torch.dtype]:
    try:
        source = Source(config["name"], config["revision"], config["sha256"])
        table: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in config["vocabulary"].items()}  # fmt: skip
        return source, Vocabulary(**table), getattr(torch, config["dtype"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: trunk must describe a model of the Hub ({error!r})") from error


def _check_reach(tokenizer: Any, vocabulary: Vocabulary) -> None:
    """Raises a `ValueError` where a tokenizer in the place of another cannot read all drafts.

    Up to the last id alone: tables of tokens may have holes.
    """
    drafted = max({*range(vocabulary.size)} - {*vocabulary.forbidden})
    if (last := max(tokenizer.get_vocab().values())) < drafted:
        raise ValueError(f"`tokenizer` must have ids up to {drafted}, which the model drafts, "
                         f"got up to {last}: it is another model's")  # fmt: skip


def _adapter(name: Any, path: Path) -> type[HubTrunk]:
    kinds = {kind.__name__: kind for kind in ADAPTERS}
    if name not in kinds:
        raise ValueError(f"{path}: its adapter {name!r} is not of this package: give it, around "
                         f"the model, as `trunk`; {GUIDE}")  # fmt: skip
    return kinds[name]


def _blank(config: dict[str, Any], auto: str, path: Path) -> Any:
    """A model whose weights are in the checkpoint, before they are read."""
    hf = transformers()
    try:
        if config.get("model_type") == "mdlm":
            return mdlm.DiT(mdlm.DiTConfig(**config))
        return getattr(hf, auto).from_config(hf.AutoConfig.for_model(**config))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: trunk.model must be the config of a model ({error})") from error
