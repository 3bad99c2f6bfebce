"""Checkpoints: a folder with `config.json` and `model.safetensors`.

The config names the shape of trunk and head, the tokenizer, and the calibration table from which a
budget of function evaluations is resolved. It also holds the SHA-256 of the weights, so that a torn
or foreign pair of files is noticed. The two are replaced together, weights first.

How weights are stored is said in `weights.py`; `load` gives float32.

A trunk that is a model of the Hub stays there: config and head are written, with the trunk's name,
revision and fingerprint, and `load` is given what reunites them. The trunk is written too where it
has no name, where it was trained further, or on demand.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from selfspec.description import FIELDS, KINDS, Model, Reunite, build, describe, is_head_only
from selfspec.files import write_together
from selfspec.weights import StorageType, restored, stored

__all__ = ["BUNDLED", "load", "load_config", "resolve", "save"]

FORMAT = 1
OWN = {*FIELDS, "format", "dtype", "sha256"}
"""What a checkpoint says of itself; anything else in its config is the model's `record`."""
BUNDLED = Path(__file__).parent / "checkpoints"
"""Where the checkpoints that come with the package are."""


def save(
    model: Model,
    folder: str | Path,
    dtype: StorageType = "float32",
    merge: bool = False,
    **extra: Any,
) -> None:
    """Write a checkpoint.

    Args:
        model: with our own `Trunk` or one of the Hub; its `tokenizer`, `calibration`, `lengths` and
            `record` are written too.
        folder: made if missing.
        dtype: how matrices are stored.
        merge: write a trunk of the Hub too, so that the checkpoint needs nothing else.
        **extra: JSON values for the config, for people to read (recipe, step, losses); they go
            before what the model's `record` has under the same name.

    Raises:
        OSError: writing failed; what was there is unchanged.
        ValueError: an unknown `dtype`, an extra field that the checkpoint sets itself, or a trunk
            that cannot be written.
    """
    if dtype not in get_args(StorageType):
        raise ValueError(f"`dtype` must be one of {get_args(StorageType)}, got {dtype!r}")
    folder = Path(folder)
    described = describe(model, merge)
    head_only = is_head_only(described)
    weights = {name: p for name, p in model.named_parameters()
               if not (head_only and name.startswith("trunk."))}  # fmt: skip
    blob = safetensors.torch.save(stored(weights, dtype))
    about = {"dtype": dtype, "sha256": hashlib.sha256(blob).hexdigest()}
    config = {"format": FORMAT, **described, **about}
    extra = {**model.record, **extra}
    if taken := config.keys() & extra:
        raise ValueError(f"`extra` must not set {min(taken)!r}, which the checkpoint does")
    text = json.dumps({**config, **extra}, indent=1) + "\n"
    own = getattr(model.tokenizer, "files", dict)()  # a tokenizer of the Hub has some
    files = {folder / "tokenizer" / name: content for name, content in own.items()}
    for parent in {folder, *(path.parent for path in files)}:
        parent.mkdir(parents=True, exist_ok=True)
    files |= {folder / "model.safetensors": blob, folder / "config.json": text.encode()}
    write_together(files)


def load(
    folder: str | Path, device: torch.device | str = "cpu", reunite: Reunite | None = None
) -> Model:
    """Read a checkpoint; weights in float32, evaluation mode.

    Args:
        folder: or the name of a bundled checkpoint.
        device: where to put it.
        reunite: makes a trunk of the Hub; without it such checkpoints are refused.

    Raises:
        ValueError: a missing, corrupt or foreign file; the message names it and what is wrong.
    """
    folder = resolve(folder)
    config = load_config(folder)
    path = folder / "model.safetensors"
    try:
        blob = path.read_bytes()
        weights = restored(safetensors.torch.load(blob))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    if hashlib.sha256(blob).hexdigest() != config.get("sha256"):
        raise ValueError(f"{path}: does not belong to the config.json beside it (SHA-256 differs)")
    model = build(config, folder / "config.json", reunite)
    model.record = {name: value for name, value in config.items() if name not in OWN}
    _fill(model, weights, path)
    symbols, tokenizer = model.trunk.vocab_size, model.tokenizer
    if tokenizer is not None and tokenizer.vocab_size != symbols:
        raise ValueError(f"{folder / 'config.json'}: tokenizer must have the trunk's {symbols} "
                         f"symbols, got {tokenizer.vocab_size}")  # fmt: skip
    return model.to(device).eval()


def resolve(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: a folder's path, or the name of a bundled checkpoint."""
    for folder in (Path(checkpoint), BUNDLED / checkpoint):
        if (folder / "config.json").is_file():
            return folder
    known = sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))
    raise ValueError(f"`checkpoint` must be a folder with a config.json or one of {known}, "
                     f"got {str(checkpoint)!r}")  # fmt: skip


def load_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint, as a dictionary."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if (found := config.get("format") if isinstance(config, dict) else None) != FORMAT:
        raise ValueError(f"{path}: must be a selfspec checkpoint of format {FORMAT}, got {found!r}")
    if config.get("kind") not in KINDS:
        raise ValueError(f"{path}: kind must be one of {KINDS}, got {config.get('kind')!r}")
    kinds = (("tokenizer", dict, "an object"), ("calibration", list, "a list"),
             ("lengths", dict, "an object"))  # fmt: skip
    for name, wanted, words in kinds:
        if not isinstance(config.get(name) or wanted(), wanted):
            raise ValueError(f"{path}: {name} must be {words}, got {config[name]!r}")
    return config


def _fill(model: Model, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights: all of the model's, or those of its head alone."""
    wanted = {name for name, _ in model.named_parameters()}
    if not any(name.startswith("trunk.") for name in weights):
        wanted = {name for name in wanted if not name.startswith("trunk.")}
    if odd := sorted(wanted ^ weights.keys()):
        what = "lacks" if odd[0] in wanted else "has"
        raise ValueError(f"{path}: weights do not fit the config (it {what} {odd[0]!r})")
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        message = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path}: weights do not fit the config ({message})") from error
