"""Models in JSON: what the config of a checkpoint says of trunk, head and what goes with them.

    kind                             ssmd or autoregressive
    trunk, head                      their shapes; of a trunk of the Hub also where it comes from
    tokenizer, calibration, lengths  of the model, as far as it has any

`build` makes a model of such a description, whose weights are still to come.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from torch import nn

from selfspec.checks import of_kind
from selfspec.data.tokenizers import Tokenizer, tokenizer_from
from selfspec.lengths import Lengths
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.weights import shapes_only

__all__ = [
    "FIELDS",
    "KINDS",
    "Description",
    "Model",
    "Reunite",
    "build",
    "describe",
    "is_head_only",
]

KINDS = ("ssmd", "autoregressive")
FIELDS = ("kind", "trunk", "head", "tokenizer", "calibration", "lengths")
Model = SSMD | AutoregressiveModel
Config = TypeVar("Config", TrunkConfig, HeadConfig)
Description = dict[str, Any]
Reunite = Callable[[Description, Path], tuple[nn.Module, Tokenizer | None]]
"""From a description and the checkpoint's folder: a trunk of the Hub, and its tokenizer."""


def describe(model: Model, merge: bool = False) -> Description:
    """A JSON-ready description.

    Args:
        model: with our own `Trunk` or one of the Hub.
        merge: describe a trunk of the Hub so that it can be built without being found again.

    Raises:
        ValueError: it is no model, or its trunk cannot be described.
    """
    of_kind("model", model, Model, "a masked diffusion model or a judge")
    diffusion = isinstance(model, SSMD)
    return {
        "kind": "ssmd" if diffusion else "autoregressive",
        "trunk": _trunk(model.trunk, merge),
        "head": asdict(model.head.config) if diffusion and model.head else None,
        "tokenizer": model.tokenizer.to_config() if model.tokenizer else None,
        "calibration": model.calibration if diffusion else [],
        "lengths": model.lengths.to_config() if diffusion and model.lengths else None,
    }


def is_head_only(config: Description) -> bool:
    """Whether the weights of the trunk are elsewhere."""
    return config["trunk"].get("kind") == "hub" and not config["trunk"].get("model")


def build(config: Description, path: Path, reunite: Reunite | None = None) -> Model:
    """The model of a description.

    Args:
        config: what `describe` made.
        path: the file that it was read from, for messages; beside it a trunk's own files may be.
        reunite: makes a trunk of the Hub; without it these are refused.

    Raises:
        ValueError: the description is broken, or as `reunite`.
    """
    described, tokenizer = config.get("trunk"), None
    if isinstance(described, dict) and described.get("kind") == "hub":
        if reunite is None:
            raise ValueError(f"{path}: its trunk is a model of the Hub: use `selfspec.load`")
        trunk, tokenizer = reunite(config, path.parent)
    else:
        with shapes_only():
            trunk = Trunk(_parsed(TrunkConfig, described, f"{path}: trunk"))
        trunk = trunk.to_empty(device="cpu")
        if config.get("tokenizer"):
            tokenizer = tokenizer_from(config["tokenizer"])
    model = _around(trunk, config, path)
    model.tokenizer = tokenizer
    if isinstance(model, SSMD):
        model.calibration = config.get("calibration", [])
        if config.get("lengths"):
            model.lengths = Lengths.from_config(config["lengths"])
    return model


def _trunk(trunk: nn.Module, merge: bool) -> Description:
    if isinstance(trunk, Trunk):
        return asdict(trunk.config)
    if not hasattr(trunk, "to_config"):
        raise ValueError(f"`model` must have our own trunk or one of the Hub to be saved, "
                         f"got {type(trunk).__name__}")  # fmt: skip
    return trunk.to_config(merge or not trunk.stands_elsewhere)  # type: ignore[operator]


def _around(trunk: nn.Module, config: Description, path: Path) -> Model:
    """The model of a trunk, with a head whose weights are still to come."""
    if config["kind"] == "autoregressive":
        return AutoregressiveModel(trunk)  # type: ignore[arg-type]
    if config.get("head") is None:
        return SSMD(trunk)
    shape = _parsed(HeadConfig, config["head"], f"{path}: head")
    with shapes_only():
        head = CausalHead(shape, trunk.width)  # type: ignore[arg-type]
    return SSMD(trunk, head.to_empty(device="cpu"))


def _parsed(kind: type[Config], values: Any, where: str) -> Config:
    """A config dataclass from JSON, every field present and of its type."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object, got {values!r}")
    types = get_type_hints(kind)
    if unknown := set(values) - set(types):
        raise ValueError(f"{where} has an unknown field {sorted(unknown)[0]!r}")
    for name, value in values.items():
        wanted = (int, float) if types[name] is float else types[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and types[name] is not bool):
            raise ValueError(f"{where}.{name} must be {types[name].__name__}, got {value!r}")
    missing = [f.name for f in fields(kind) if f.name not in values]
    if missing:
        raise ValueError(f"{where}.{missing[0]} is missing")
    return kind(**values)
