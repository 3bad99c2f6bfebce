"""Exponential moving average of the weights.

    a_0 = w_0        a_k = d_k · a_{k-1} + (1 - d_k) · w_k        d_k = min(decay, k / (k + 9))

The ramp k / (k + 9) makes the average forget the initialisation early in a run: after k steps it
reaches back over about k / 10 of them. `decay = 0` is no average: a_k = w_k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class EMA:
    """The average of a list of tensors that change in place.

    Args:
        params: the live tensors, on any device.
        decay: largest decay, in [0, 1).
    """

    def __init__(self, params: Sequence[Tensor], decay: float) -> None:
        self.params = [param.detach() for param in params]
        self.decay = decay
        self.average = [param.clone() for param in self.params]

    def update(self, step: int) -> None:
        """Folds the weights after optimiser step `step` (from 1) into the average."""
        decay = min(self.decay, step / (step + 9))
        torch._foreach_lerp_(self.average, self.params, 1 - decay)  # type: ignore[reportPrivateImportUsage]

    def copy_to_params(self) -> None:
        """Overwrites the live weights by the average."""
        torch._foreach_copy_(self.params, self.average)  # type: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the live weights hold the average; afterwards they are as before."""
        live = [param.clone() for param in self.params]
        self.copy_to_params()
        try:
            yield
        finally:
            torch._foreach_copy_(self.params, live)  # type: ignore[reportPrivateImportUsage]
