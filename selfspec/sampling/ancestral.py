"""Ancestral sampling: the reverse process of a masked diffusion on a grid of K times.

Going from t_k to t_(k+1), with masked share m(t), every masked position is revealed independently
with probability 1 - m(t_(k+1)) / m(t_k). The step in which a position is revealed is therefore
independent of all else, P(step k) = m(t_k) - m(t_(k+1)); how many are revealed in each step can be
drawn in advance, and which ones is uniform: the next in a uniform σ. Steps that reveal nothing need
no network pass (the cache of MDLM does the same). With another order the numbers keep their law and
σ says which. Sources: MDLM 2406.07524; MD4 2406.04329.
"""

import numpy as np
import torch
from torch import Tensor

from selfspec.noise import Purpose, uniform
from selfspec.sampling.fixed_count import FixedCountSampler

__all__ = ["AncestralSampler"]


class AncestralSampler(FixedCountSampler):
    """Reveals binomial numbers of tokens in K = `steps` steps; arguments as in `FixedCountSampler`.

    For orders that are fixed in advance, `ancestral_log_likelihood` is the exact log-probability of
    its samples.
    """

    def row_windows(self, to_generate: Tensor, seeds: Tensor) -> Tensor:
        """Draws the step of each place, sorts them, and counts what is left of each step."""
        places = torch.arange(int(to_generate.max()) + 1, device=seeds.device)
        u = uniform(seeds, Purpose.COUNT, 0, 0, places.expand(len(seeds), -1))
        times = np.arange(1, self.steps + 1) / self.steps
        masked = torch.from_numpy(self.schedule.masked(times)).flip(0).to(u.device)
        # A place is revealed in the first step whose masked share is below its u.
        step = self.steps - torch.searchsorted(masked, u)
        behind = places >= to_generate.unsqueeze(1)
        step = step.masked_fill(behind, self.steps + 1).sort(1).values
        return (torch.searchsorted(step, step, right=True) - places).masked_fill(behind, 1)
