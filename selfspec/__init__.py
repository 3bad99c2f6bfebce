"""Verified parallel decoding for masked diffusion models.

The trunk drafts, a small causal head verifies, in one forward pass. The public names are listed in
`selfspec.public`. They are imported at first use, because importing PyTorch takes a second and
`selfspec --help` does not need it.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfspec.public import *  # noqa: F403

__version__ = "0.1.0"


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name != "train" and find_spec(f"selfspec.{name}"):
            return import_module(f"selfspec.{name}")
        value = self.__dict__[name] = getattr(import_module("selfspec.public"), name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # `import selfspec.train` would put the subpackage where users find the function `train`.
        if not (name == "train" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        names = {*super().__dir__(), *vars(import_module("selfspec.public"))}
        return sorted(name for name in names if not name.startswith("_"))


sys.modules[__name__].__class__ = _Package
