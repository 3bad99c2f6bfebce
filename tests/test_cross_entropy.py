"""Against the loss that unembeds every place, in float64: values, gradients, and what it costs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import make_toy
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from selfspec import cross_entropy
from selfspec.cross_entropy import WeightedNLL, token_nll
from selfspec.losses import masked_weights, next_token_loss, ssmd_loss, window_weights
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.transformer import Trunk, TrunkConfig

B, L, V = 9, 6, 3
END = torch.tensor([6, 6, 6, 6, 4, 3, 5, 1, 6])
REVEALED = torch.tensor(
    [0, 2, 5, 6, 3, 1, 5, 0, 4]
)  # rows 3 and 6 are observed, row 7 is one place
WINDOW = torch.tensor([3, 1, 1, 1, 1, 2, 1, 1, 2])


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5 places: more than there are of weight is seldom a multiple, and 5 does not divide 54."""
    monkeypatch.setattr(cross_entropy, "LEAST", 5)
    monkeypatch.setattr(cross_entropy, "SHARE", B * L)


def batch(pads: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    end = END if pads else torch.full_like(END, L)
    pad = torch.arange(L) >= end.unsqueeze(1)
    keys = torch.rand(B, L, generator=generator).masked_fill(pad, 2.0)
    tokens = torch.randint(V, (B, L), generator=generator).masked_fill(pad, -100 if pads else 0)
    return {"tokens": tokens, "order": keys.argsort(1), "revealed": REVEALED,
            "pad": pad if pads else None}  # fmt: skip


def everywhere(
    model: SSMD,
    tokens: Tensor,
    order: Tensor,
    revealed: Tensor,
    pad: Tensor | None,
    freeze_trunk: bool,
    window: Tensor | None,
) -> dict[str, Tensor]:
    """The terms of the loss, from the logits of all places."""
    tokens = tokens if pad is None else tokens.masked_fill(pad, 0)
    weight = masked_weights(order, revealed, pad)
    trained = list(model.trunk.parameters())
    for p in trained:
        p.requires_grad_(not freeze_trunk)

    def nll(logits: Tensor, answers: Tensor) -> Tensor:
        return -logits.log_softmax(-1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)

    hidden = model.encode(torch.where(weight > 0, model.mask_id, tokens), pad)
    terms = {"draft": (nll(model.draft(hidden), tokens) * weight).sum()}
    if model.head is not None:
        along = nll(model.target(hidden, tokens, order, revealed), tokens.gather(1, order))
        verified = weight.gather(1, order) * (torch.arange(L) != revealed.unsqueeze(1))
        terms["target"] = (along * verified).sum()
        if window is not None:
            terms["window"] = (along * window_weights(revealed, window, L)).sum()
    for p in trained:
        p.requires_grad_()
    return terms


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    params = list(model.parameters())
    found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]


def assert_equal(model: nn.Module, ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    if theirs.requires_grad:
        for one, other in zip(gradients(model, ours), gradients(model, theirs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("freeze_trunk", [False, True])
def test_terms_and_gradients_are_those_of_logits_everywhere(
    pads: bool, windows: bool, freeze_trunk: bool
):
    model, rows, window = make_toy(), batch(pads), WINDOW if windows else None
    loss = ssmd_loss(model, **rows, freeze_trunk=freeze_trunk, window=window, window_weight=0.5)
    terms = everywhere(model, **rows, freeze_trunk=freeze_trunk, window=window)
    for name, term in terms.items():
        assert_equal(model, getattr(loss, name), term)
    total = terms["target"] + (0 if freeze_trunk else terms["draft"])
    assert_equal(model, 3 * loss.total, 3 * (total + 0.5 * terms.get("window", 0)))


def test_without_a_head_too():
    model, rows = make_toy(head_blocks=0), batch()
    terms = everywhere(model, **rows, freeze_trunk=False, window=None)
    assert_equal(model, ssmd_loss(model, **rows).total, terms["draft"])


@pytest.mark.parametrize("revealed", [0, L - 1, L])
def test_rows_that_are_all_masked_that_have_one_place_left_and_that_are_observed(revealed: int):
    model, rows = make_toy(), batch(pads=False)
    rows["revealed"] = torch.full((B,), revealed)
    terms = everywhere(model, **rows, freeze_trunk=False, window=None)
    loss = ssmd_loss(model, **rows)
    assert_equal(model, loss.total, terms["draft"] + terms["target"])
    assert loss.target is not None
    assert (loss.draft == 0) == (revealed == L)
    assert (loss.target == 0) == (revealed >= L - 1)
    loss.total.backward()  # also where nothing is looked at: all ranks of a run reduce the same
    assert all(p.grad is not None for p in model.parameters())


def test_the_next_token_loss_is_that_of_logits_everywhere():
    torch.manual_seed(0)
    shape = TrunkConfig(V, length=L, width=8, blocks=1, heads=1, causal=True)
    model = AutoregressiveModel(Trunk(shape)).double()
    rows = batch()
    tokens, pad = rows["tokens"], rows["pad"]
    for gone in (pad, torch.zeros_like(pad)):
        known = tokens.masked_fill(pad, 0)
        logp = model(known).log_softmax(-1).gather(-1, known.unsqueeze(-1)).squeeze(-1)
        mean = (-logp.masked_fill(gone, 0).sum(1) / (~gone).sum(1)).mean()
        ours = next_token_loss(
            model, tokens if gone is pad else known, gone if gone.any() else None
        )
        assert_equal(model, ours, mean)


class Forbidding(nn.Module):
    """A table as a trunk's unembedding, whose last token is never drafted."""

    vocab_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.unused = (nn.Parameter(torch.randn(4, 2).double()) for _ in range(2))

    def unembed(self, states: Tensor) -> Tensor:
        return (states @ self.weight.T).masked_fill(torch.arange(4) == 3, -torch.inf)


def test_what_is_forbidden_counts_where_it_is_looked_at_only():
    torch.manual_seed(0)
    trunk, states = Forbidding(), torch.randn(2, 3, 2).double().requires_grad_()
    tokens = torch.tensor([[3, 0, 1], [2, 3, 3]])
    weight = (tokens != 3) * torch.rand(2, 3).double()
    loss = WeightedNLL(weight)(trunk, states, tokens)
    loss.backward()
    assert loss.isfinite()
    assert trunk.weight.grad is not None
    assert trunk.weight.grad.isfinite().all()
    assert trunk.unused.grad is None
    assert states.grad is not None
    assert torch.equal(states.grad.abs().sum(-1) > 0, weight > 0)
    assert WeightedNLL(weight + 1)(trunk, states, tokens).isinf()


@contextmanager
def unembedded(trunk: Any) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what is unembedded within the block."""
    shapes: list[tuple[int, ...]] = []
    plain = trunk.unembed

    def spy(states: Tensor) -> Tensor:
        shapes.append(tuple(states.shape))
        return plain(states)

    trunk.unembed = spy
    yield shapes
    del trunk.unembed


@pytest.mark.parametrize("learning", [False, True])
def test_only_places_of_weight_are_unembedded_in_portions_of_one_size(learning: bool):
    model, rows = make_toy(), batch()
    masked = int((END - REVEALED).clamp(min=0).sum())
    tied = int((END > REVEALED).sum())
    with unembedded(model.trunk) as shapes, torch.set_grad_enabled(learning):
        loss = ssmd_loss(model, **rows)
        if learning:
            loss.total.backward()
    assert shapes == [(5, 8)] * (math.ceil(masked / 5) + math.ceil((masked - tied) / 5))
    assert len(shapes) * 5 < 2 * B * L / 2
    assert loss.total.requires_grad == learning


def test_a_portion_has_a_bounded_number_of_logits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "LOGITS", 4 * V - 1)
    model = make_toy()
    with unembedded(model.trunk) as shapes:
        ssmd_loss(model, **batch())
    assert set(shapes) == {(3, 8)}


def test_one_shape_is_compiled_whatever_is_masked():
    model, rows = make_toy(), batch(pads=False)
    counter = CompileCounterWithBackend("aot_eager")
    plain = ssmd_loss(model, **rows).total
    token_nll.compile(backend=counter, dynamic=False)
    try:
        assert_equal(model, ssmd_loss(model, **rows).total, plain)
        for revealed in range(L + 1):
            rows["revealed"] = torch.full((B,), revealed)
            ssmd_loss(model, **rows).total.backward()
    finally:
        token_nll._compiled_call_impl = None
        torch._dynamo.reset()
    assert counter.frame_count == 1
