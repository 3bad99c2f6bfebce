"""Nothing is left on the CPU by mistake: everything runs on a device of its own."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import make_rugged, make_toy
from far import FAR, Far, elsewhere, moved
from torch import Tensor

import selfspec as ss
from selfspec.arena import Reference, Setting, Sweep, contenders
from selfspec.cli.score import measure
from selfspec.orders import Order

TOKENS = torch.tensor([[3, 3, 3, 3, 3, 3], [3, 1, 3, 3, 2, 3], [2, 2, 1, 0, 0, 1]])
PAD = torch.tensor([[False] * 6, [False] * 5 + [True], [False] * 6])
ORDERS = [ss.UniformOrder(), ss.VanDerCorputOrder(), ss.RespacedOrder()]


@pytest.fixture(scope="module")
def model() -> ss.SSMD:
    with elsewhere():
        made = moved(make_toy())
    assert isinstance(made, ss.SSMD)
    assert made.device == FAR
    return made


def test_the_device_refuses_what_a_gpu_refuses():
    near = torch.arange(3)
    with elsewhere():
        far = near.to(FAR)
        assert isinstance(far + 1, Far)
        assert (far + torch.tensor(1)).tolist() == [1, 2, 3]
        assert torch.equal(far.cpu(), near)
        for mixed in (lambda: far + near, lambda: torch.where(far > 0, near, far)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            far.numpy()


SAMPLERS: list[Callable[[ss.SSMD, Order], ss.Sampler]] = [
    lambda m, o: ss.SpeculativeSampler(m, o, ss.CosineWindow(0.4), rounds=3),
    lambda m, o: ss.SpeculativeSampler(m, o, ss.UnboundedWindow(), rounds=1, top_p=0.8),
    lambda m, o: ss.FixedCountSampler(m, o, steps=3),
    lambda m, o: ss.AncestralSampler(m, o, steps=3),
    lambda m, o: ss.AnyOrderSampler(m, o),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("pad", [None, PAD])
def test_samplers_stay_on_the_device(
    model: ss.SSMD, order: Order, make: Callable, pad: Tensor | None
):
    near = make(make_toy(), order).sample(TOKENS, 5, pad, trace=True)
    with elsewhere():
        for seeds in (5, ss.row_seeds(5, 3)):
            far = make(model, order).sample(TOKENS.to(FAR), seeds, pad, trace=True)
            assert isinstance(far.tokens, Far)
            assert isinstance(far.nfe, Far)
            assert far.tokens.tolist() == near.tokens.tolist()
            assert far.trace == near.trace


@pytest.mark.parametrize("pad", [None, PAD])
def test_every_contender_stays_on_the_device(pad: Tensor | None):
    near_model = make_rugged(3, 4)
    profile = [1.0, 0.9, 0.7, 0.6, 0.5, 0.4]
    with elsewhere():
        far_model = moved(make_rugged(3, 4))
        assert isinstance(far_model, ss.SSMD)
        far = contenders(far_model, ["all"], ["uniform"], [3], profile)
    for near, away in zip(contenders(near_model, ["all"], ["uniform"], [3], profile), far):  # noqa: B905
        expected = near.run.sample(TOKENS, ss.row_seeds(5, 3), pad, trace=True)  # pyright: ignore
        with elsewhere():
            out = away.run.sample(TOKENS.to(FAR), 5, pad, trace=True)  # pyright: ignore
            assert isinstance(out.tokens, Far)
            assert isinstance(out.nfe, Far)
            assert (out.tokens.tolist(), out.trace) == (expected.tokens.tolist(), expected.trace)


def estimate(*given, **options) -> Tensor:
    return ss.estimate_log_likelihood(*given, window=ss.CosineWindow(0.4), rounds=2, **options)


def bound(*given, **options) -> Tensor:
    return ss.elbo(*given, orders=2, **options).mean


FIXED = [ss.log_likelihood, ss.ancestral_log_likelihood, ss.one_pass_score, bound, estimate]


@pytest.mark.parametrize(
    ("score", "order"),
    [*((score, order) for score in FIXED for order in ORDERS if order.fixed),
     (estimate, ss.RespacedOrder())],
)  # fmt: skip
def test_likelihoods_stay_on_the_device(model: ss.SSMD, score: Callable, order: Order):
    tokens, given = TOKENS.clamp(max=2), {"pad": PAD, "observed": TOKENS < 3}
    near = score(make_toy(), tokens, order=order, **given)
    with elsewhere():
        far = score(model, tokens.to(FAR), order=order, **given)
        assert isinstance(far, Far)
        torch.testing.assert_close(far.cpu(), near)


def test_losses_stay_on_the_device(model: ss.SSMD):
    ends = (~PAD).sum(1)
    order = torch.where(PAD, 2.0, torch.rand(3, 6)).argsort(1)
    rows: dict[str, Any] = {"tokens": TOKENS.clamp(max=2), "order": order, "pad": PAD}
    rows |= {"revealed": torch.tensor([0, 2, 5]), "window": ends}
    near = ss.ssmd_loss(make_toy(), **rows)
    with elsewhere():
        far = ss.ssmd_loss(model, **{name: x.to(FAR) for name, x in rows.items()})
        for name, value in far._asdict().items():
            torch.testing.assert_close(value.cpu(), getattr(near, name).detach())


def test_what_stands_on_samplers_stays_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not known there
    with elsewhere():
        model, judge = moved(tiny.model()), moved(tiny.judge())
        assert isinstance(model, ss.SSMD)
        assert isinstance(judge, ss.AutoregressiveModel)
        samples = ss.generate(model, 2, prompt=["ab__e", "the ___ sat"], batch_size=3)
        assert isinstance(samples.tokens, Far)
        assert samples.text is not None
        sampler = ss.SpeculativeSampler(model)
        (row,) = ss.calibrate(model, judge, n=5, batch_size=2, samplers=[sampler], progress=False)
        assert row["n"] == 5
        tokens = torch.arange(20).to(FAR)
        assert measure(model, tokens, sampler, orders=2, seed=0)["exact"]
        sweep = Sweep(
            model, judge.log_probs, Reference(tiny.CharTokenizer().decode), tmp_path,
            n=5, batch_size=2, device=FAR, autocast=False,
        )  # fmt: skip
        assert len(sweep.measure(Setting("speculative", "uniform", {}, sampler)).arrays["nfe"]) == 5
