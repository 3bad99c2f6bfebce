"""A device that is not there, for what a GPU would refuse and the CPU does not notice.

Within `elsewhere()` the device `FAR` holds tensors that live on the CPU. As on a GPU, an operation
whose operands are on two devices raises, unless one is a single number, and so does `numpy`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta")


class Far(Tensor):
    """A tensor on `FAR`."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.size(), strides=near.stride(), dtype=near.dtype, device=FAR
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.near.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a far tensor to numpy: use Tensor.cpu()")


class _Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[None]:
    """Tensors may be made on `FAR` and moved to it."""
    with torch.no_grad(), _Elsewhere():
        yield


def moved(module: nn.Module) -> nn.Module:
    """The module with its parameters on `FAR`."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(Far(weight.data), requires_grad=False)
    return module


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    far = {id(x.near): x for x in tensors if isinstance(x, Far)}
    near = [x for x in tensors if not isinstance(x, Far) and x.dim()]
    moves = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy)
    if far and near and not moves:
        raise RuntimeError(f"expected all tensors to be on the same device in {func}")
    device = kwargs.get("device")
    stays = func.overloadpacket is torch.ops.aten.copy_ and not isinstance(args[0], Far)
    to_far = not stays and (bool(far) if device is None else torch.device(device) == FAR)
    if device is not None and torch.device(device) == FAR:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.near if isinstance(x, Far) else x, (args, kwargs))

    def wrap(x: Any) -> Any:
        if not (to_far and isinstance(x, Tensor)):
            return x
        return far[id(x)] if id(x) in far else Far(x)  # in place, or new

    return tree_map(wrap, func(*args, **kwargs))
