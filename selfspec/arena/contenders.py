"""Who competes: every sampler with the settings that are swept, by name.

A contender turns a model into settings. `STEPS` are the passes of samplers that are given a number
of them; those with thresholds are swept over thresholds. A group of names stands for several:
"all" for everything, "draft-orders" for those whose σ is read from drafts, and so on.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from selfspec.arena.sweep import Setting
from selfspec.calibration import ORDERS, SCHEDULES
from selfspec.information import CutWindow, optimal_cuts, profile_losses
from selfspec.measuring import REMASKED_ORDER, SWEEP, knobs
from selfspec.model import SSMD
from selfspec.nn.scorer import Scorer
from selfspec.orders import Order
from selfspec.sampling import (
    AncestralSampler,
    AnyOrderSampler,
    AnyOrderVerifiedSampler,
    CapRemasking,
    ConfidenceDoubt,
    ConfidenceRemasking,
    ConfidenceSampler,
    DilatedOrder,
    DilatedSampler,
    DilatedWindow,
    DivergenceDoubt,
    DualDiffusionSampler,
    EntropyBoundSampler,
    EntropyBoundWindow,
    FactorSampler,
    FixedCountSampler,
    GuidedStarShapedSampler,
    KLASSSampler,
    LookaheadSampler,
    LoopRemasking,
    PathPlanningSampler,
    PlainSampler,
    PolicySampler,
    PUNTSampler,
    RemaskedPlainSampler,
    RemaskedSpeculativeSampler,
    ReMDMSampler,
    RescaleRemasking,
    Sampler,
    SelfVerifiedSampler,
    SpeculativeSampler,
    StaleCacheSampler,
    StarShapedSampler,
    ThresholdSampler,
    TopKSampler,
)
from selfspec.schedules import ConstantWindow, LinearSchedule, ScheduleWindow
from selfspec.selection import CellOrder, Confidence, Entropy, Margin, ScoreOrder, SpanOrder
from selfspec.weights import fingerprint

__all__ = ["BASELINE", "CONTENDERS", "PREPARED", "STEPS", "contenders"]

STEPS = (4, 8, 16, 32, 64)
BASELINE = ("plain", "uniform")
"""Sampler and order of the standard sampler."""

Settings = Iterator[Setting]
Contender = Callable[[SSMD, Sequence[str], Sequence[int]], Settings]

DRAFT_ORDERS: dict[str, Callable[[], Order]] = {
    "cells": CellOrder,
    "entropy": lambda: ScoreOrder(Entropy()),
    "confidence": lambda: ScoreOrder(Confidence()),
    "spans": SpanOrder,
}


def _swept(
    name: str, order: str, knob: str, values: Sequence[Any], make: Callable[[Any], Sampler]
) -> Settings:
    """One knob over its values."""
    for value in values:
        yield Setting(name, order, {knob: value}, make(value))


def _plain(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    for order in orders:
        for schedule, rule in SCHEDULES.items():  # the baseline is the best plain schedule
            for k in steps:
                sampler = FixedCountSampler(model, ORDERS[order](), rule(), k)
                yield Setting("plain", order, {"schedule": schedule, "steps": k}, sampler)


def _ancestral(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    for order in orders:
        rule = ORDERS[order]()
        yield from _swept(
            "ancestral",
            order,
            "steps",
            steps,
            lambda k, r=rule: AncestralSampler(model, r, steps=k),
        )


def _any_order(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    for order in orders:
        yield Setting("any-order", order, {}, AnyOrderSampler(model, ORDERS[order]()))


def _top_k(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    for name, score in {
        "confidence": Confidence(),
        "margin": Margin(),
        "entropy": Entropy(),
    }.items():
        for heat in (0.0, 0.1):
            for k in steps:
                sampler = TopKSampler(model, score, k, alg_temperature=heat)
                yield Setting("top-k", name, {"steps": k, "alg_temperature": heat}, sampler)


def _confidence(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    for noise in (1.0, 4.5, 20.0):
        for k in steps:
            knobs = {"steps": k, "noise": noise}
            yield Setting("maskgit", "", knobs, ConfidenceSampler(model, k, noise))


def _klass(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    # The last is the published one.
    for tau, epsilon, fallback in ((0.3, 0.3, 8), (0.3, 0.1, 4), (0.3, 0.1, 2), (0.6, 0.015, 1)):
        values = {"tau": tau, "epsilon": epsilon, "fallback": fallback}
        sampler = KLASSSampler(model, tau, epsilon, fallback=fallback)
        yield Setting("klass", "", values, sampler)


def _remdm(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    rules = {
        "cap": CapRemasking(),
        "rescale": RescaleRemasking(),
        "conf": ConfidenceRemasking(),
        "loop": LoopRemasking(),
    }
    for name, rule in rules.items():
        for k in steps:
            yield Setting(f"remdm {name}", "", {"steps": k}, ReMDMSampler(model, rule, k))


def _path_planning(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    for eta in (0.5, 1.0, 2.0):
        for k in steps:
            sampler = PathPlanningSampler(model, k, eta)
            yield Setting("path planning", "", {"steps": k, "eta": eta}, sampler)


def _dilated(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    """Unverified and verified."""
    for block in (model.length, 64, 32, 16, 8):
        yield Setting("dilated", "", {"block": block}, DilatedSampler(model, block))
        if model.head is not None:
            rule, window = DilatedOrder(block), DilatedWindow(block)
            sampler = SpeculativeSampler(model, rule, window, 4)
            values = {"rounds": 4, "block": block}
            yield Setting("self-speculative, dilated", "", values, sampler)


def _self_speculative(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    for order in orders:
        for rounds, window in SWEEP:
            sampler = SpeculativeSampler(model, ORDERS[order](), window, rounds)
            yield Setting("self-speculative", order, knobs(rounds, window), sampler)


def _remasked(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    """Remasking between passes, unverified and verified; with more of it where it helps."""
    swept = [(order, eta) for order in orders for eta in (0.01, 0.05)]
    swept += [(order, eta) for order in orders if order == REMASKED_ORDER for eta in (0.1, 0.2)]
    for order, eta in swept:
        rule = ORDERS[order]
        for k in steps:
            values = {"schedule": "linear", "steps": k, "eta": eta}
            window = ScheduleWindow(LinearSchedule(), k)
            sampler = RemaskedPlainSampler(model, rule(), window, eta)
            yield Setting("plain, remasked", order, values, sampler)
        for rounds, window in SWEEP if model.head is not None else ():
            values = {**knobs(rounds, window), "eta": eta}
            sampler = RemaskedSpeculativeSampler(model, rule(), window, rounds, eta)
            yield Setting("self-speculative, remasked", order, values, sampler)


def _by_drafts(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    """Orders from drafts, unverified and verified: what verification adds to each."""
    for order, rule in DRAFT_ORDERS.items():
        for rounds, window in SWEEP:
            passes = {key: value for key, value in knobs(rounds, window).items() if key != "rounds"}
            yield Setting("plain", order, passes, PlainSampler(model, rule(), window))
            if model.head is not None:
                sampler = SpeculativeSampler(model, rule(), window, rounds)
                yield Setting("self-speculative", order, knobs(rounds, window), sampler)


GAMMAS = (100.0, 50.0, 20.0, 8.0, 2.0, 0.5)
"""Nats. Published work takes about 0.1, for tokens of which most are nearly certain; characters
drawn at temperature 1 have a nat and more each, and 0.1 reveals hardly more than one a pass."""


TAUS = (0.2, 0.21, 0.22, 0.25, 0.3, 0.5, 0.9)
"""Of `books27`, 0.2 takes 17 evaluations and 0.3 takes 155: where spaces are a fifth of the text, a
position of which nothing is known is about that sure of one."""


def _bounded(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    """Windows from the entropy bound, unverified and verified."""
    for order in orders:
        for gamma in GAMMAS:
            rule, window = ORDERS[order](), EntropyBoundWindow(gamma)
            yield Setting(
                "entropy bound", order, {"gamma": gamma}, PlainSampler(model, rule, window)
            )
            if model.head is not None:
                sampler = SpeculativeSampler(model, rule, window, 4)
                values = {"rounds": 4, "gamma": gamma}
                yield Setting("self-speculative, bounded", order, values, sampler)


def _stale_cache(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    if hasattr(model.trunk, "memories"):  # a trunk of the Hub keeps no keys and values
        for k in (16, 5):
            sampler = StaleCacheSampler(model, window=ConstantWindow(k))
            yield Setting("stale cache", "uniform", {"window": k}, sampler)


def _dual_diffusion(model: SSMD, orders: Sequence[str], steps: Sequence[int]) -> Settings:
    """Without doubts, where all drafts stand, and with either of them."""
    doubts = (ConfidenceDoubt(0.0), ConfidenceDoubt(0.1), DivergenceDoubt(4.0))
    for k in (32, 16, 5) if hasattr(model.trunk, "memories") else ():
        for doubt in doubts:
            sampler = DualDiffusionSampler(model, doubt, k)
            values = {"drafts": k, **asdict(doubt)}
            yield Setting("dual diffusion", "uniform", values, sampler)


def optimal(
    model: SSMD, profile: Sequence[float], steps: Sequence[int], rounds: Sequence[int] = (4,)
) -> Settings:
    """Windows of least loss for a measured information profile, unverified and verified."""
    losses = profile_losses(np.asarray(profile))
    for k in steps:
        window = CutWindow(cuts := optimal_cuts(losses, k))
        values = {"steps": k, "cuts": hashlib.sha256(str(cuts).encode()).hexdigest()[:8]}
        yield Setting("optimal", "uniform", values, PlainSampler(model, None, window))
        for most in rounds if model.head is not None else ():
            sampler = SpeculativeSampler(model, None, window, most)
            knobs = {**values, "rounds": most}
            yield Setting("self-speculative, optimal", "uniform", knobs, sampler)


def guided(model: SSMD, predictor: Scorer, steps: Sequence[int]) -> Settings:
    """Star-shaped sampling guided by a trained predictor."""
    weights = fingerprint(predictor.parameters())[:12]
    for k in steps:
        sampler = GuidedStarShapedSampler(model, predictor, k)
        yield Setting("star-shaped, guided", "", {"steps": k, "predictor": weights}, sampler)


def policies(model: SSMD, policy: Scorer) -> Settings:
    """A trained policy, from bold to timid coins."""
    weights = fingerprint(policy.parameters())[:12]
    for heat in (0.25, 0.5, 1.0, 2.0):
        sampler = PolicySampler(model, policy, heat)
        yield Setting("policy", "", {"policy_temperature": heat, "policy": weights}, sampler)


CONTENDERS: Mapping[str, Contender] = {
    "plain": _plain,
    "ancestral": _ancestral,
    "any-order": _any_order,
    "maskgit": _confidence,
    "top-k": _top_k,
    "threshold": lambda m, o, s: _swept(
        "threshold", "", "tau", TAUS, lambda t: ThresholdSampler(m, t)
    ),
    "factor": lambda m, o, s: _swept(
        "factor", "", "factor", (32.0, 16.0, 8.0, 4.0, 2.0, 1.0), lambda f: FactorSampler(m, f)
    ),
    "entropy-bound": lambda m, o, s: _swept(
        "entropy bound", "entropy", "gamma", GAMMAS, lambda g: EntropyBoundSampler(m, g)
    ),
    "klass": _klass,
    "dilated": _dilated,
    "remdm": _remdm,
    "star-shaped": lambda m, o, s: _swept(
        "star-shaped", "", "steps", s, lambda k: StarShapedSampler(m, k)
    ),
    "path-planning": _path_planning,
    "lookahead": lambda m, o, s: _swept(
        "lookahead", "", "steps", s, lambda k: LookaheadSampler(m, k)
    ),
    "punt": lambda m, o, s: _swept(
        "punt", "", "epsilon", (3.0, 1.0, 0.3, 0.1, 0.01), lambda e: PUNTSampler(m, e)
    ),
    "any-order-verified": lambda m, o, s: _swept(
        "any-order, verified", "uniform", "window", (5,), lambda _: AnyOrderVerifiedSampler(m)
    ),
    "stale-cache": _stale_cache,
    "dual-diffusion": _dual_diffusion,
    "self-verified": lambda m, o, s: _swept(
        "self-verified, greedy", "", "drafts", (8,), lambda n: SelfVerifiedSampler(m, n)
    ),
    "draft-orders": _by_drafts,
    "bounded": _bounded,
    "remasked": _remasked,
    "self-speculative": _self_speculative,
}
"""By the names that `selfspec benchmark --against` takes, but those of `PREPARED`."""

PREPARED = {"optimal": "profile", "guided": "predictor", "policy": "policy"}
"""Contenders that need something measured or trained: the argument that gives it."""


def contenders(
    model: SSMD,
    names: Sequence[str],
    orders: Sequence[str] = ("uniform",),
    steps: Sequence[int] = STEPS,
    profile: Sequence[float] | None = None,
    predictor: Scorer | None = None,
    policy: Scorer | None = None,
) -> list[Setting]:
    """The settings of these contenders, in this order, each once; of a sampler the cheap first.

    Args:
        model: with a head where self-speculative sampling is asked for.
        names: keys of `CONTENDERS` or `PREPARED`, or "all", which leaves out what is not given.
        orders: of `calibration.ORDERS`, for those that take one.
        steps: of those that are given a number of passes.
        profile: f(i) in nats, from `likelihood.information_profile`, for "optimal".
        predictor: of errors, for "guided", see `recipes.guides`.
        policy: for "policy", see there.

    Raises:
        ValueError: an unknown name, or one whose part is not given.
    """
    makers: dict[str, Callable[[], Settings]] = {
        name: partial(contender, model, orders, steps) for name, contender in CONTENDERS.items()
    }
    if profile is not None:
        makers["optimal"] = partial(optimal, model, profile, steps)
    if predictor is not None:
        makers["guided"] = partial(guided, model, predictor, steps)
    if policy is not None:
        makers["policy"] = partial(policies, model, policy)
    found: dict[tuple, Setting] = {}
    for name in makers if "all" in names else names:
        if name not in makers and name in PREPARED:
            raise ValueError(f"`{PREPARED[name]}` must be given for {name!r}, got None")
        if name not in makers:
            raise ValueError(f"`names` must be of {', '.join([*CONTENDERS, *PREPARED])} or all, "
                             f"got {name!r}")  # fmt: skip
        for setting in makers[name]():
            found.setdefault((setting.sampler, setting.order, *setting.settings.items()), setting)
    return list(found.values())
