"""Checkpoints: a folder with `config.json` and `model.safetensors`.

The config names the shape of trunk and head, the tokenizer, and the calibration table from which a
budget of function evaluations is resolved. It also holds the SHA-256 of the weights, so that a torn
or foreign pair of files is noticed. The two are replaced together, weights first.

With `dtype="int8"` a matrix row w is stored as round(w / s) with s = max|w| / 127 in float32: a
quarter of the size, and a rounding error of at most s/2 a weight. It is a storage format; `load`
gives float32.
"""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from selfspec.data.tokenizers import CharTokenizer
from selfspec.files import write_together
from selfspec.lengths import Lengths
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig

__all__ = ["BUNDLED", "load", "load_config", "resolve", "save"]

FORMAT = 1
KINDS = ("ssmd", "autoregressive")
BUNDLED = Path(__file__).parent / "checkpoints"
"""Where the checkpoints that come with the package are."""

Model = SSMD | AutoregressiveModel
StorageType = Literal["float32", "bfloat16", "int8"]
Config = TypeVar("Config", TrunkConfig, HeadConfig)


def save(model: Model, folder: str | Path, dtype: StorageType = "float32", **extra: Any) -> None:
    """Write a checkpoint.

    Args:
        model: with our own `Trunk`; its `tokenizer`, `calibration` and `lengths` are written too.
        folder: made if missing.
        dtype: how matrices are stored.
        **extra: JSON values for the config, for people (recipe, step, losses).

    Raises:
        OSError: nothing can be written; what was there is left as it was.
        ValueError: an unknown `dtype`, or an extra field that the checkpoint sets itself.
    """
    if dtype not in get_args(StorageType):
        raise ValueError(f"`dtype` must be one of {get_args(StorageType)}, got {dtype!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    blob = safetensors.torch.save(_stored(model.state_dict(), dtype))
    config = {
        "format": FORMAT,
        "kind": "ssmd" if isinstance(model, SSMD) else "autoregressive",
        "trunk": asdict(model.trunk.config),  # type: ignore[arg-type]
        "head": asdict(model.head.config) if isinstance(model, SSMD) and model.head else None,
        "tokenizer": model.tokenizer.to_config() if model.tokenizer else None,
        "calibration": model.calibration if isinstance(model, SSMD) else [],
        "lengths": model.lengths.to_config() if isinstance(model, SSMD) and model.lengths else None,
        "dtype": dtype,
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    if taken := config.keys() & extra:
        raise ValueError(f"`extra` must not set {min(taken)!r}, which the checkpoint does")
    text = json.dumps({**config, **extra}, indent=1) + "\n"
    write_together({folder / "model.safetensors": blob, folder / "config.json": text.encode()})


def load(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """Read a checkpoint; weights in float32, evaluation mode.

    Raises:
        ValueError: a missing, corrupt or foreign file; the message names it and what is wrong.
    """
    folder = resolve(folder)
    config = load_config(folder)
    path = folder / "model.safetensors"
    try:
        blob = path.read_bytes()
        weights = _restored(safetensors.torch.load(blob))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    if hashlib.sha256(blob).hexdigest() != config.get("sha256"):
        raise ValueError(f"{path}: does not belong to the config.json beside it (SHA-256 differs)")
    model = _build(config, folder / "config.json")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        message = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path}: weights do not fit the config ({message})") from error
    symbols, tokenizer = model.trunk.vocab_size, model.tokenizer
    if tokenizer is not None and tokenizer.vocab_size != symbols:
        raise ValueError(f"{folder / 'config.json'}: tokenizer must have the trunk's {symbols} "
                         f"symbols, got {tokenizer.vocab_size}")  # fmt: skip
    return model.to(device).eval()


def resolve(name: str | Path) -> Path:
    """The folder of a checkpoint: a folder's path, or the name of a bundled checkpoint."""
    for folder in (Path(name), BUNDLED / name):
        if (folder / "config.json").is_file():
            return folder
    known = sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))
    raise ValueError(f"`checkpoint` must be a folder with a config.json or one of {known}, "
                     f"got {str(name)!r}")  # fmt: skip


def load_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint, as a dictionary."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path}: must be a selfspec checkpoint of format {FORMAT}")
    if config.get("kind") not in KINDS:
        raise ValueError(f"{path}: kind must be one of {KINDS}, got {config.get('kind')!r}")
    kinds = (("tokenizer", dict, "an object"), ("calibration", list, "a list"),
             ("lengths", dict, "an object"))  # fmt: skip
    for name, wanted, words in kinds:
        if not isinstance(config.get(name) or wanted(), wanted):
            raise ValueError(f"{path}: {name} must be {words}, got {config[name]!r}")
    return config


def _build(config: dict[str, Any], path: Path) -> Model:
    with torch.device("meta"):
        trunk = Trunk(_parsed(TrunkConfig, config.get("trunk"), f"{path}: trunk"))
        if config["kind"] == "autoregressive":
            model: Model = AutoregressiveModel(trunk)
        else:
            head = config.get("head")
            shape = None if head is None else _parsed(HeadConfig, head, f"{path}: head")
            model = SSMD(trunk, None if shape is None else CausalHead(shape, trunk.width))
    model = model.to_empty(device="cpu")
    if config.get("tokenizer"):
        model.tokenizer = CharTokenizer.from_config(config["tokenizer"])
    if isinstance(model, SSMD):
        model.calibration = config.get("calibration", [])
        if config.get("lengths"):
            model.lengths = Lengths.from_config(config["lengths"])
    return model


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


def _stored(weights: dict[str, Tensor], dtype: StorageType) -> dict[str, Tensor]:
    stored = {}
    for name, weight in weights.items():
        weight = weight.detach().cpu().float().contiguous()
        if weight.dim() < 2:
            stored[name] = weight
        elif dtype == "int8":
            scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
            stored[name] = (weight / scale).round().to(torch.int8)
            stored[f"{name}.scale"] = scale
        else:
            stored[name] = weight.to(getattr(torch, dtype))
    return stored


def _restored(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, weight in stored.items():
        if name.endswith(".scale"):
            continue
        scale = stored.get(f"{name}.scale")
        weights[name] = weight.float() if scale is None else weight.float() * scale
    return weights
