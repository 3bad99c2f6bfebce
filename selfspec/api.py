"""The façade: load, save, generate, calibrate, train.

    model = load("books27")
    generate(model, 8, nfe=14)

Here models are found, whatever they are made of; what is done with them is in the layers below,
which stay usable on their own.
"""

import os
from typing import Any

import torch

from selfspec import calibration, measuring
from selfspec import checkpoint as checkpoints
from selfspec.checkpoint import save as save
from selfspec.checks import of_kind
from selfspec.description import is_head_only
from selfspec.generation import generate as generate
from selfspec.hub import Reunion, download
from selfspec.hub import adapt_causal as adapt_causal
from selfspec.hub import attach_head as attach_head
from selfspec.hub import push_to_hub as push_to_hub
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.recipes import train as train
from selfspec.recipes import train_adapted as train_adapted
from selfspec.recipes import train_head as train_head

__all__ = [
    "adapt_causal",
    "attach_head",
    "calibrate",
    "generate",
    "load",
    "load_judge",
    "push_to_hub",
    "save",
    "train",
    "train_adapted",
    "train_head",
]

Path = str | os.PathLike[str]


def load(
    checkpoint: Path,
    device: torch.device | str = "cpu",
    *,
    trunk: Any = None,
    tokenizer: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> SSMD:
    """A masked diffusion model from a checkpoint, in evaluation mode.

    Args:
        checkpoint: one that comes with the package ("books27"), a folder, or the "owner/name" of
            a checkpoint on the Hugging Face Hub.
        device: where to put the model.
        revision: of a checkpoint on the Hub.
        trunk, tokenizer, trust_remote_code: for a head on a model of the Hub, see `hub.Reunion`. By
            default trunk and tokenizer are loaded from where the checkpoint says.

    Raises:
        ValueError: there is no such checkpoint; it is corrupt, or that of an autoregressive judge;
            the weights of the trunk are not those that the head was made for; or `trunk` is given
            although the checkpoint holds its own.
        OSError: no such repository on the Hub.
    """
    reunite = Reunion(trunk, tokenizer, trust_remote_code)
    folder = os.fspath(checkpoint)
    if folder.count("/") == 1 and not os.path.exists(folder):
        try:
            folder = download(folder, revision)
        except OSError as error:
            raise OSError(f"{folder}: no such folder here, and not to be had from the Hub "
                          f"({error})") from error  # fmt: skip
    by_name = isinstance(trunk, str | os.PathLike)
    if by_name and not is_head_only(checkpoints.load_config(checkpoints.resolve(folder))):
        raise ValueError(f"`trunk` goes with a checkpoint of a head alone, got {str(trunk)!r} for "
                         f"{str(checkpoint)!r}")  # fmt: skip
    model = checkpoints.load(folder, device, reunite)
    if not isinstance(model, SSMD):
        raise ValueError(f"`checkpoint` must be a masked diffusion model, got the judge "
                         f"{str(checkpoint)!r}")  # fmt: skip
    return model


def load_judge(checkpoint: Path, device: torch.device | str = "cpu") -> AutoregressiveModel:
    """An autoregressive judge from a checkpoint, named as in `load`; `log_probs` scores tokens."""
    model = checkpoints.load(os.fspath(checkpoint), device)
    if not isinstance(model, AutoregressiveModel):
        raise ValueError(f"`checkpoint` must be an autoregressive judge, got the model "
                         f"{str(checkpoint)!r}")  # fmt: skip
    return model


def calibrate(
    model: SSMD, judge: AutoregressiveModel, folder: Path | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Measure the calibration table that `nfe=` and `quality=` read, and give it to the model.

    Args:
        model: an `SSMD` with a head.
        judge: a judge with the same tokens.
        folder: a checkpoint; the table is also written into its config. Its weights do not change.
        **settings: `samplers`, `n`, `seed`, `batch_size`, `progress`, see `measuring.measure`.

    Returns:
        The rows of the table.
    """
    of_kind("judge", judge, AutoregressiveModel, "a judge, as `load_judge` gives")
    model.calibration = measuring.measure(model, judge.log_probs, **settings)
    if folder is not None:
        calibration.store(os.fspath(folder), model.calibration)
    return model.calibration
