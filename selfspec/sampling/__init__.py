"""Samplers: one interface, one NFE account.

They are the reference: plain PyTorch, a host synchronisation a pass, easy to read. Their laws are
tested against `likelihood` by enumeration.
"""

from selfspec.sampling.ancestral import AncestralSampler
from selfspec.sampling.base import Sampler
from selfspec.sampling.fixed_count import AnyOrderSampler, FixedCountSampler
from selfspec.sampling.speculative import SpeculativeSampler

__all__ = [
    "AncestralSampler",
    "AnyOrderSampler",
    "FixedCountSampler",
    "Sampler",
    "SpeculativeSampler",
]
