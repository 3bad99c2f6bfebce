import math

import pytest
import torch

from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.train import AdamWConfig, Cosine, MuonConfig, TrainConfig, WarmupStableDecay
from selfspec.train.muon import Muon, orthogonal
from selfspec.train.optim import Optimisers, hidden_matrices

V, WIDTH = 5, 16


@pytest.fixture
def model() -> SSMD:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(vocab_size=V, length=8, width=WIDTH, blocks=2, heads=2))
    return SSMD(trunk, CausalHead(HeadConfig(heads=2), WIDTH))


def give_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_cosine():
    schedule = Cosine(warmup=4, floor=0.1)
    assert [schedule.factor(k, 24) for k in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule.factor(4, 24) == 1.0
    assert schedule.factor(14, 24) == pytest.approx(0.55)
    assert schedule.factor(9, 24) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule.factor(24, 24) == pytest.approx(0.1)


def test_warmup_stable_decay():
    schedule = WarmupStableDecay(warmup=5, decay=0.2, floor=0.5)
    factors = [schedule.factor(k, 50) for k in range(51)]
    assert factors[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert factors[5:41] == [1.0] * 36
    assert factors[41:] == pytest.approx([0.5 + 0.05 * left for left in range(9, -1, -1)])


@pytest.mark.parametrize("schedule", [Cosine(), WarmupStableDecay(), WarmupStableDecay(decay=0.0)])
def test_a_schedule_without_warmup_starts_at_one(schedule):
    assert schedule.factor(0, 10) == 1.0


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (Cosine, {"warmup": -1}, "warmup"),
        (WarmupStableDecay, {"decay": 1.5}, "decay"),
        (AdamWConfig, {"lr": 0.0}, "lr"),
        (MuonConfig, {"momentum": 1.0}, "momentum"),
        (Cosine, {"warmup": 0.5}, "warmup"),
        (TrainConfig, {"steps": 0, "batch_size": 1}, "steps"),
        (TrainConfig, {"steps": 10.5, "batch_size": 1}, "steps"),
        (TrainConfig, {"steps": 1, "batch_size": 1, "seed": -1}, "seed"),
        (TrainConfig, {"steps": 1, "batch_size": 3, "accumulate": 2}, "batch_size"),
        (TrainConfig, {"steps": 1, "batch_size": 1, "ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_errors_name_the_argument(kind, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got"):
        kind(**arguments)


def test_muon_takes_the_hidden_matrices_only(model):
    hidden = hidden_matrices(model, V)
    layers = ["attention.qkv", "attention.out", "up", "down"]
    blocks = ["trunk.blocks.0", "trunk.blocks.1", "head.blocks.0"]
    expected = {f"{block}.{layer}.weight" for block in blocks for layer in layers}
    assert hidden == expected | {"head.fuse.weight", "head.project.weight"}


@pytest.mark.parametrize("muon", [None, MuonConfig()])
def test_every_trainable_parameter_is_in_one_group_and_vectors_do_not_decay(model, muon):
    model.trunk.requires_grad_(False)
    optimisers = Optimisers(model, AdamWConfig(weight_decay=0.1), muon, V)
    groups = [group for o in optimisers.optimizers for group in o.param_groups]
    seen = [id(p) for group in groups for p in group["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == {id(p) for p in model.head.parameters()}
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_a_step_moves_each_parameter_by_its_rule(model):
    adamw = AdamWConfig(lr=0.1, weight_decay=0.0)
    muon = MuonConfig(lr=0.01, weight_decay=0.0, momentum=0.8)
    optimisers = Optimisers(model, adamw, muon, V)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    give_gradients(model, 1)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimisers.step(0.5)
    for name, p in model.named_parameters():
        moved = before[name] - p.detach()
        assert p.grad is None
        if name in hidden_matrices(model, V):
            rms = moved.square().mean().sqrt().item()
            assert 0.6 < rms / (0.5 * 0.01 * 0.2) < 1.4  # that of an AdamW step, in bfloat16
            assert (moved * gradients[name]).sum() > 0
            momentum = optimisers.state()[f"{name}/momentum_buffer"]
            torch.testing.assert_close(momentum, 0.2 * gradients[name])
        else:
            torch.testing.assert_close(moved, 0.05 * gradients[name].sign(), rtol=1e-3, atol=1e-6)


def test_factors_do_not_compound(model):
    optimisers = Optimisers(model, AdamWConfig(lr=0.1), MuonConfig(lr=0.2), V)
    for factor in (0.5, 0.5, 1.0):
        give_gradients(model, 1)
        optimisers.step(factor)
    rates = [group["lr"] for o in optimisers.optimizers for group in o.param_groups]
    assert rates == [0.1, 0.1, 0.2]


def test_state_goes_round(model):
    configs = AdamWConfig(), MuonConfig()
    first = Optimisers(model, *configs, V)
    give_gradients(model, 1)
    first.step(1.0)
    state = {name: value.clone() for name, value in first.state().items()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    give_gradients(model, 2)
    first.step(1.0)
    after = {name: p.detach().clone() for name, p in model.named_parameters()}

    model.load_state_dict(weights)
    second = Optimisers(model, *configs, V)
    second.load_state(state)
    give_gradients(model, 2)
    second.step(1.0)
    for name, p in model.named_parameters():
        assert torch.equal(p, after[name]), name


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 32)])
def test_muon_on_a_cpu_is_the_library_s_but_in_float32(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    settings = {"lr": 0.1, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    moved = []
    for kind in (Muon, torch.optim.Muon):
        param = torch.nn.Parameter(start.clone())
        optimizer = kind([param], **settings)
        generator.manual_seed(1)
        for _ in range(3):
            param.grad = torch.randn(shape, generator=generator)
            optimizer.step()
        moved.append(param.detach() - start)
    assert (moved[0] - moved[1]).norm() < 0.02 * moved[1].norm()


def test_the_factor_of_muon_is_orthogonal_nearly():
    settings = torch.optim.Muon([torch.nn.Parameter(torch.zeros(2, 2))]).param_groups[0]
    matrix = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    factor = orthogonal(matrix, settings)
    assert factor.dtype == torch.float32
    values = (u.T @ factor @ v.T).diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (factor - u @ values.diag() @ v).norm() < 1e-3
