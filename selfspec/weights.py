"""Weights as they are stored, what identifies them, and layers that have none yet.

With `dtype="int8"` a matrix row w is stored as round(w / s) with s = max|w| / 127 in float32: a
quarter of the size, and a rounding error of at most s/2 a weight.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["StorageType", "fingerprint", "restored", "shapes_only", "stored"]

StorageType = Literal["float32", "bfloat16", "int8"]


def stored(weights: Mapping[str, Tensor], dtype: StorageType) -> dict[str, Tensor]:
    """Weights as a file holds them: matrices in `dtype`, vectors in float32."""
    result = {}
    for name, weight in weights.items():
        weight = weight.detach().cpu().float().contiguous()
        if weight.dim() < 2:
            result[name] = weight
        elif dtype == "int8":
            scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
            result[name] = (weight / scale).round().to(torch.int8)
            result[f"{name}.scale"] = scale
        else:
            result[name] = weight.to(getattr(torch, dtype))
    return result


def restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32, from what `stored` made of them."""
    weights = {}
    for name, weight in stored.items():
        if name.endswith(".scale"):
            continue
        scale = stored.get(f"{name}.scale")
        weights[name] = weight.float() if scale is None else weight.float() * scale
    return weights


def fingerprint(weights: Iterable[Tensor]) -> str:
    """SHA-256 over weights, whatever their names and their order; hexadecimal.

    It depends on their values, shapes and types only: a library may rename its layers.
    """
    digests = sorted(map(_digest, weights))
    return hashlib.sha256(b"".join(digests)).hexdigest()


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within the block layers are made without weights, which are still to come."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Nothing is drawn: to draw what has no memory PyTorch would load its compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def _digest(weight: Tensor) -> bytes:
    about = f"{weight.dtype} {tuple(weight.shape)} ".encode()
    raw = weight.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(about + raw.numpy().tobytes()).digest()
