from itertools import permutations
from math import log
from typing import Any

import pytest
import torch
from conftest import make_toy
from reference import PLAIN, Conditionals, Puzzle
from torch import Tensor, nn

from selfspec.losses import draft_bounds, next_token_loss, ssmd_loss, stratified_revealed
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.noise import row_seeds
from selfspec.orders import UniformOrder, initial_order


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    """Rows of three to six tokens; pads hold what no vocabulary has."""
    lengths = torch.tensor([6, 4, 3, 5, 6, 6, 6])
    pad = torch.arange(6) >= lengths.unsqueeze(1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, (7, 6), generator=generator).masked_fill(pad, -100)
    order = initial_order(UniformOrder(), ~pad, pad, row_seeds(0, 7))
    revealed = torch.tensor([0, 1, 2, 4, 5, 3, 6])  # one masked place in rows 2 and 4, none in 6
    return {"tokens": tokens, "order": order, "revealed": revealed, "pad": pad}


WINDOW = torch.tensor([3, 3, 1, 1, 1, 2, 1])


@torch.no_grad()
def slow_loss(
    model: SSMD, tokens: Tensor, order: Tensor, revealed: Tensor, pad: Tensor
) -> tuple[float, float, float]:
    """All terms, one place at a time, each row alone and without its pads."""
    draft, target, window = 0.0, 0.0, 0.0
    rows = zip(tokens, order, revealed.tolist(), pad, WINDOW.tolist())  # noqa: B905
    for x, sigma, i, padded, width in rows:
        n = int((~padded).sum())
        seen = x[:n].clone()
        seen[sigma[i:n]] = model.mask_id
        hidden = model.encode(seen[None])
        p = model.draft(hidden)[0].softmax(-1)
        q = model.target(hidden, x[None, :n], sigma[None, :n], torch.tensor([i]))[0].softmax(-1)
        for place, position in list(enumerate(sigma[:n].tolist()))[i:]:
            share = 1 / (n - i) / len(tokens)
            draft -= p[position, x[position]].log().item() * share
            if place > i:
                target -= q[place, x[position]].log().item() * share
            if i < place < i + width:
                window -= q[place, x[position]].log().item() / (width - 1) / len(tokens)
    return draft, target, window


def test_the_loss_is_its_formula(ternary: SSMD, batch: dict[str, Any]):
    loss = ssmd_loss(ternary, **batch)
    draft, target, _ = slow_loss(ternary, **batch)
    assert loss.target is not None
    assert loss.window is None
    assert loss.draft.item() == pytest.approx(draft, rel=1e-6)
    assert loss.target.item() == pytest.approx(target, rel=1e-6)
    assert loss.total.item() == pytest.approx(draft + target, rel=1e-6)
    frozen = ssmd_loss(ternary, **batch, freeze_trunk=True)
    assert torch.equal(frozen.total, loss.target)


@pytest.mark.parametrize("freeze_trunk", [False, True])
def test_the_window_term_is_its_formula(ternary: SSMD, batch: dict[str, Any], freeze_trunk: bool):
    plain = ssmd_loss(ternary, **batch, freeze_trunk=freeze_trunk)
    loss = ssmd_loss(ternary, **batch, freeze_trunk=freeze_trunk, window=WINDOW, window_weight=0.5)
    _, _, window = slow_loss(ternary, **batch)
    assert loss.window is not None
    assert loss.window.item() == pytest.approx(window, rel=1e-6)
    assert loss.total.item() == pytest.approx(plain.total.item() + 0.5 * window, rel=1e-6)


def test_without_a_head_the_loss_is_the_draft_term(ternary: SSMD, batch: dict[str, Any]):
    loss = ssmd_loss(SSMD(ternary.trunk), **batch)
    assert loss.target is None
    assert loss.total is loss.draft
    assert torch.equal(loss.draft, ssmd_loss(ternary, **batch).draft)


def gradients(model: nn.Module) -> set[str]:
    return {
        name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max()
    }


@pytest.mark.parametrize("freeze_trunk", [False, True])
def test_a_frozen_trunk_gets_no_gradient(batch: dict[str, Any], freeze_trunk: bool):
    model = make_toy()
    ssmd_loss(model, **batch, freeze_trunk=freeze_trunk).total.backward()
    assert model.head is not None
    trunk, head = (set(dict(part.named_parameters())) for part in (model.trunk, model.head))
    assert gradients(model.trunk) == (set() if freeze_trunk else trunk)
    assert gradients(model.head) == head
    assert all(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_the_draft_term_averages_to_the_any_order_bound(ternary: SSMD):
    x, orders = (2, 0, 1, 1), list(permutations(range(4)))
    tokens, each_i = torch.tensor([x] * 4), torch.arange(4)
    loss, bound = 0.0, 0.0
    for sigma in orders:
        loss += ssmd_loss(ternary, tokens, torch.tensor([sigma] * 4), each_i).draft.item()
        along, table = tuple(x[i] for i in sigma), Conditionals(ternary, PLAIN, sigma)
        bound -= sum(log(table.draft[d][table.row(along), d, t]) for d, t in enumerate(along))
    assert 4 * loss / len(orders) == pytest.approx(bound / len(orders), rel=1e-6)


@pytest.mark.parametrize("u", [0.0, 0.3, 1 - 2**-53])
def test_the_numbers_revealed_cover_their_range_evenly(u: float):
    observed = torch.arange(60) % 3
    revealed = stratified_revealed(observed, observed + 20, torch.tensor(u, dtype=torch.float64))
    counts = (revealed - observed).bincount(minlength=20)
    assert len(counts) == 20
    assert ((counts - 3).abs() <= 1).all()  # a row at the edge of two cells may fall to either


def test_the_numbers_revealed_are_uniform_for_each_row():
    us = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    observed, end = torch.tensor([0, 2, 5]), torch.tensor([8, 10, 6])
    drawn = torch.stack([stratified_revealed(observed, end, u) for u in us])
    for row, (low, high) in enumerate(zip(observed.tolist(), end.tolist())):  # noqa: B905
        counts = drawn[:, row].bincount(minlength=high)
        assert counts[:low].sum() == 0
        assert len(counts) == high
        assert ((counts[low:] - 4000 / (high - low)).abs() <= 1).all()


def test_next_token_loss_is_the_mean_over_rows_of_tokens_that_are_no_pads():
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(3, length=4, width=8, blocks=1, heads=1, causal=True))
    model = AutoregressiveModel(trunk).double()
    tokens = PLAIN.completions[:10]
    pad = torch.arange(4) >= torch.randint(1, 5, (10, 1))
    logp = model.log_probs(tokens).to(torch.float64)
    assert next_token_loss(model, tokens).item() == pytest.approx(-logp.mean().item(), rel=1e-6)
    padded = next_token_loss(model, tokens.masked_fill(pad, -7), pad)
    rows = [-row[~padded].mean() for row, padded in zip(logp, pad, strict=True)]
    assert padded.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-6)
    padded.backward()
    assert gradients(model) == set(dict(model.named_parameters()))


def test_a_row_of_pads_alone_counts_nothing(ternary: SSMD):
    tokens, order = torch.tensor([[0, 2, 1], [-7, -7, -7]]), torch.arange(3).expand(2, -1)
    pad, revealed = tokens < 0, torch.tensor([1, 0])
    alone = ssmd_loss(ternary, tokens[:1], order[:1], revealed[:1])
    both = ssmd_loss(ternary, tokens, order, revealed, pad)
    # Products of another shape may round otherwise.
    assert torch.allclose(both.total, alone.total / 2, rtol=1e-14, atol=0)
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(3, length=4, width=8, blocks=1, heads=1, causal=True))
    model = AutoregressiveModel(trunk).double()
    loss = next_token_loss(model, tokens, pad)
    assert loss == next_token_loss(model, tokens[:1]) / 2
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_bound_needs_a_draw(ternary: SSMD):
    with pytest.raises(ValueError, match="`draws` must be at least 1, got 0"):
        draft_bounds(ternary, torch.tensor([[0, 1]]), draws=0)


def test_a_row_of_one_token_has_a_draft_and_nothing_to_verify(ternary: SSMD):
    zero = torch.zeros(1, 1, dtype=torch.int64)
    loss = ssmd_loss(ternary, zero, zero, zero[0])
    law = Conditionals(ternary, Puzzle("?"), (0,)).draft[0][0, 0]
    assert loss.draft.exp().item() == pytest.approx(1 / law[0])
    assert loss.target == 0


def test_freezing_the_trunk_needs_a_head(ternary: SSMD, batch: dict[str, Any]):
    with pytest.raises(ValueError, match="`freeze_trunk` needs a model with a head, got head=None"):
        ssmd_loss(SSMD(ternary.trunk), **batch, freeze_trunk=True)


def test_bounds_of_rows_are_those_of_all_orders():
    """Against the sum over every order and number of revealed tokens, in float64."""
    model = make_toy()
    tokens = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])
    expected = torch.zeros(2, dtype=torch.float64)
    for sigma in permutations(range(4)):
        for i in range(4):
            masked = tokens.clone()
            masked[:, list(sigma[i:])] = model.mask_id
            with torch.no_grad():
                logp = model.draft(model.encode(masked)).log_softmax(-1)
            nll = -logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)[:, list(sigma[i:])]
            expected += nll.mean(1) / 4 / 24
    found = draft_bounds(model, tokens, draws=4000)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    first = draft_bounds(model, tokens[:1], draws=4000)
    assert found.equal(torch.cat([first, draft_bounds(model, tokens[1:], first=1, draws=4000)]))
    assert not found.equal(draft_bounds(model, tokens, seed=1, draws=4000))


def test_bounds_leave_pads_out():
    model = make_toy()
    tokens = torch.tensor([[0, 2, 1, 1]])
    pad = torch.tensor([[False, False, True, True]])
    alone = draft_bounds(model, tokens[:, :2], draws=3000)
    torch.testing.assert_close(
        draft_bounds(model, tokens, pad=pad, draws=3000), alone, rtol=0.03, atol=0
    )
    other = tokens.masked_fill(pad, 0)
    assert draft_bounds(model, tokens, pad=pad).equal(draft_bounds(model, other, pad=pad))
