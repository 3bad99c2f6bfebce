"""Samplers: one interface, one NFE account.

They are the reference: plain PyTorch, easy to read, with host synchronisations in every pass. Their
laws are tested against `likelihood` by enumeration.
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
