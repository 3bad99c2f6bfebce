"""Samplers: one interface, one NFE account.

They are the reference: plain PyTorch, easy to read, with host synchronisations in every pass. Their
laws are tested by enumeration, against `likelihood` where it knows them.

base, plain             the loop; forward, draw, reveal
fixed_count, ancestral  counts of a schedule; binomial counts; one token a pass
speculative             drafts verified by the head
top_k … dilated         σ and window from draft distributions, or spaced: serve the above too
sets and what follows   choices that read drawn tokens, look ahead, or take back
"""

from selfspec.sampling.ancestral import AncestralSampler
from selfspec.sampling.any_order_verified import AnyOrderVerifiedSampler
from selfspec.sampling.base import Sampler
from selfspec.sampling.confidence import ConfidenceSampler
from selfspec.sampling.dilated import DilatedOrder, DilatedSampler, DilatedWindow
from selfspec.sampling.dual_diffusion import ConfidenceDoubt, DivergenceDoubt, DualDiffusionSampler
from selfspec.sampling.entropy_bound import EntropyBoundSampler, EntropyBoundWindow
from selfspec.sampling.factor import FactorSampler, FactorWindow
from selfspec.sampling.fixed_count import AnyOrderSampler, FixedCountSampler
from selfspec.sampling.guided_star_shaped import GuidedStarShapedSampler
from selfspec.sampling.klass import KLASSSampler
from selfspec.sampling.lookahead import LookaheadSampler
from selfspec.sampling.path_planning import PathPlanningSampler
from selfspec.sampling.plain import PlainSampler
from selfspec.sampling.policy import PolicySampler
from selfspec.sampling.punt import PUNTSampler
from selfspec.sampling.remasked import RemaskedPlainSampler, RemaskedSpeculativeSampler
from selfspec.sampling.remdm import (
    CapRemasking,
    ConfidenceRemasking,
    LoopRemasking,
    ReMDMSampler,
    RescaleRemasking,
)
from selfspec.sampling.self_verified import SelfVerifiedSampler
from selfspec.sampling.speculative import SpeculativeSampler
from selfspec.sampling.stale_cache import StaleCacheSampler
from selfspec.sampling.star_shaped import StarShapedSampler
from selfspec.sampling.threshold import ThresholdSampler, ThresholdWindow
from selfspec.sampling.top_k import TopKSampler

__all__ = [
    "AncestralSampler",
    "AnyOrderSampler",
    "AnyOrderVerifiedSampler",
    "CapRemasking",
    "ConfidenceDoubt",
    "ConfidenceRemasking",
    "ConfidenceSampler",
    "DilatedOrder",
    "DilatedSampler",
    "DilatedWindow",
    "DivergenceDoubt",
    "DualDiffusionSampler",
    "EntropyBoundSampler",
    "EntropyBoundWindow",
    "FactorSampler",
    "FactorWindow",
    "FixedCountSampler",
    "GuidedStarShapedSampler",
    "KLASSSampler",
    "LookaheadSampler",
    "LoopRemasking",
    "PUNTSampler",
    "PathPlanningSampler",
    "PlainSampler",
    "PolicySampler",
    "ReMDMSampler",
    "RemaskedPlainSampler",
    "RemaskedSpeculativeSampler",
    "RescaleRemasking",
    "Sampler",
    "SelfVerifiedSampler",
    "SpeculativeSampler",
    "StaleCacheSampler",
    "StarShapedSampler",
    "ThresholdSampler",
    "ThresholdWindow",
    "TopKSampler",
]
