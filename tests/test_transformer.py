"""What the trunk does otherwise than its formula says, for speed: nobody is to notice."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfspec.cross_entropy import TokenNLL
from selfspec.engine.graphs import copied
from selfspec.model import SSMD
from selfspec.nn.transformer import Trunk, TrunkConfig, relu_squared

SIZES = [27, 64, 1001]


def trunk_and_states(size: int) -> tuple[Trunk, Tensor]:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(size, length=8, width=16, blocks=1, heads=2))
    torch.nn.init.normal_(trunk.unembedding.weight, std=0.5)
    return trunk, torch.randn(3, 8, 16)


def plain(trunk: Trunk, hidden: Tensor) -> Tensor:
    return trunk.unembedding(trunk.norm(hidden))


def value_and_gradients(function: Any, trunk: Trunk, hidden: Tensor) -> list[Tensor]:
    hidden = hidden.detach().requires_grad_()
    trunk.zero_grad()
    out = function(trunk, hidden)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return [out, hidden.grad, trunk.unembedding.weight.grad, trunk.norm.weight.grad]  # type: ignore[list-item]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_full_precision_the_product_is_the_plain_one(size: int, dtype: torch.dtype):
    trunk, hidden = trunk_and_states(size)
    trunk, hidden = trunk.to(dtype), hidden.to(dtype)
    pairs = zip(*(value_and_gradients(f, trunk, hidden) for f in (Trunk.unembed, plain)))  # noqa: B905
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        scale = other.double().abs().max()
        assert (one.double() - other.double()).abs().max() <= scale * 2.0**-7  # of bfloat16


@pytest.mark.parametrize("size", SIZES)
def test_in_bfloat16_value_and_gradient_are_those_of_the_plain_product(size: int):
    trunk, hidden = trunk_and_states(size)
    shapes = {name: weight.shape for name, weight in trunk.state_dict().items()}
    exact = value_and_gradients(plain, trunk, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (value_and_gradients(f, trunk, hidden) for f in (Trunk.unembed, plain))
        own = Trunk.unembed(copy.deepcopy(trunk).double(), hidden.double())
    close(ours, theirs)
    assert ours[0].dtype == torch.bfloat16
    assert own.dtype == torch.float64  # autocast leaves these alone
    assert ours[0].shape == (3, 8, size)
    assert ours[0].stride(-2) % 64 == 0
    assert all(p.shape == q.shape for p, q in zip(exact, ours, strict=True))
    assert shapes == {name: weight.shape for name, weight in trunk.state_dict().items()}
    lowered = trunk.to(torch.bfloat16)
    close(*([f(lowered, hidden.bfloat16())] for f in (Trunk.unembed, plain)))
    assert lowered.unembed(hidden.bfloat16()).stride(-2) % 64 == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_is_one_graph_with_the_gradient_of_the_plain_product(autocast: bool):
    trunk, hidden = trunk_and_states(27)
    tokens = torch.randint(27, (3, 8))
    compiled = torch.compile(TokenNLL(), backend="aot_eager", fullgraph=True, dynamic=False)

    def slow(trunk: Trunk, hidden: Tensor) -> Tensor:
        logp = plain(trunk, hidden).float().log_softmax(-1)
        return -logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def fast(trunk: Trunk, hidden: Tensor) -> Tensor:
        return compiled(trunk, hidden, tokens)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = (value_and_gradients(f, trunk, hidden) for f in (fast, slow))
    if autocast:
        return close(ours, theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_an_engine_pads_its_copy_once():
    trunk, hidden = trunk_and_states(27)
    made = copied(SSMD(trunk), bfloat16=True).trunk
    assert made.unembedding.weight.shape == (64, 16)  # type: ignore[union-attr]
    assert trunk.unembedding.weight.shape == (27, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.unembed(hidden), trunk.unembed(hidden))  # type: ignore[operator]
    assert copied(SSMD(trunk), bfloat16=False).trunk.unembedding.weight.shape == (27, 16)  # type: ignore[union-attr]


class Operations(TorchDispatchMode):
    """Names what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_square_is_that_of_the_power_without_one(dtype: torch.dtype):
    """Value and gradient, bit for bit: a product is rounded as a power in float32 is."""
    torch.manual_seed(0)
    values, weights = torch.randn(2, 40, 40, dtype=dtype)
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    with Operations() as seen:
        relu_squared(ours).backward(weights)
    assert not any("pow" in name for name in seen.names)
    wide = torch.promote_types(dtype, torch.float32)
    F.relu(theirs).to(wide).square().to(dtype).backward(weights)
    assert torch.equal(relu_squared(values), F.relu(values).to(wide).square().to(dtype))
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
