import pytest
import torch
from conftest import make_toy
from reference import PLAIN
from torch import Tensor, nn

from selfspec.interfaces import Samples, TrunkProtocol
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.ops import inverse_order, take_along
from selfspec.sampling import SpeculativeSampler
from selfspec.schedules import ConstantWindow

LENGTH = 6


@torch.no_grad()
def laws(model: SSMD, tokens: Tensor, order: Tensor, revealed: Tensor) -> tuple[Tensor, Tensor]:
    """Draft and target (B, L, V), both in σ order, for a trunk that sees `revealed` places."""
    unseen = inverse_order(order) >= revealed.unsqueeze(1)
    hidden = model.encode(tokens.masked_fill(unseen, model.mask_id))
    draft, target = model.draft(hidden, order), model.target(hidden, tokens, order, revealed)
    return draft.softmax(-1), target.softmax(-1)


def every_number_revealed() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, orders, and every number of revealed tokens, eight rows each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, (8 * LENGTH, LENGTH), generator=generator)
    order = torch.rand(8 * LENGTH, LENGTH, generator=generator).argsort(1)
    return tokens, order, torch.arange(8 * LENGTH) // 8


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor, Tensor]:
    return every_number_revealed()


@pytest.mark.parametrize(("vocab", "length"), [(3, 4), (2, 6)])
def test_the_toy_models_put_the_laws_to_the_test(toys, vocab: int, length: int):
    model, generator = toys(vocab), torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab, (400, length), generator=generator)
    order = torch.rand(400, length, generator=generator).argsort(1)
    revealed = torch.arange(400) % (length - 1)
    draft, target = laws(model, tokens, order, revealed)
    verified = torch.arange(length) > revealed.unsqueeze(1)
    assert (draft - target).abs().sum(-1)[verified].mean() / 2 >= 0.2
    window = ConstantWindow(3)
    assert window.table(length).max() >= 3
    masked = torch.full((1000, length), model.mask_id)
    assert SpeculativeSampler(model, window=window, rounds=2).sample(masked).acceptance <= 0.8


@pytest.mark.parametrize("place", range(LENGTH))
def test_a_token_never_moves_the_target_at_its_own_or_an_earlier_place(
    batch: tuple[Tensor, Tensor, Tensor], place: int
):
    model, (tokens, order, revealed) = make_toy(head_blocks=2), batch
    moved = tokens.clone()
    at = torch.arange(len(tokens)), order[:, place]
    moved[at] = (moved[at] + 1) % 3
    unseen = revealed <= place  # the trunk may see it otherwise
    before, after = (laws(model, x, order, revealed)[1][unseen] for x in (tokens, moved))
    change = (after - before).abs().amax(-1)
    assert (change[:, : place + 1] == 0).all()
    behind = torch.arange(LENGTH) > place
    assert (change[:, behind] > 1e-9).all()


def test_the_target_is_the_draft_at_the_first_masked_place(batch: tuple[Tensor, Tensor, Tensor]):
    tokens, order, revealed = batch
    draft, target = laws(make_toy(), tokens, order, revealed)
    same = (draft == target).all(-1)
    assert same.gather(1, revealed.unsqueeze(1)).all()
    behind = torch.arange(LENGTH) > revealed.unsqueeze(1)
    assert not same[behind].any()


def test_the_target_is_the_draft_at_initialisation(batch: tuple[Tensor, Tensor, Tensor]):
    trunk = make_toy().trunk
    fresh = SSMD(trunk, CausalHead(HeadConfig(heads=1, blocks=2), 8).double())
    draft, target = laws(fresh, *batch)
    assert torch.equal(draft, target)


@torch.no_grad()
def test_targets_at_some_places_are_those_of_all_places(
    ternary: SSMD, batch: tuple[Tensor, Tensor, Tensor]
):
    tokens, order, revealed = batch
    hidden = ternary.encode(tokens)
    places = torch.tensor([5, 0, 3]).expand(len(tokens), -1)
    some = ternary.target(hidden, tokens, order, revealed, places)
    torch.testing.assert_close(
        some, ternary.target(hidden, tokens, order, revealed)[:, places[0]], atol=1e-13, rtol=0
    )
    drafted, rows = ternary.draft(hidden, order[:, :2]), torch.arange(len(order))
    torch.testing.assert_close(drafted[:, 1], ternary.draft(hidden)[rows, order[:, 1]])


@torch.no_grad()
@pytest.mark.parametrize("text", ["????..", "1?.?2?", ".?0??."])
def test_what_pads_hold_moves_nothing(ternary: SSMD, text: str):
    pad = torch.tensor([[c == "." for c in text]])
    tokens = torch.tensor([[3 if c == "?" else int(c) if c.isdigit() else 0 for c in text]])
    other = torch.where(pad, 2, tokens)
    change = ternary.encode(tokens, pad) - ternary.encode(other, pad)
    assert (change[~pad] == 0).all()
    assert (ternary.encode(tokens) - ternary.encode(other))[~pad].abs().max() > 1e-3


@torch.no_grad()
def test_appended_pads_move_nothing(ternary: SSMD):
    tokens = torch.tensor([[3, 1, 3, 2], [0, 3, 3, 3]])
    longer = torch.cat([tokens, torch.zeros(2, 2, dtype=torch.int64)], 1)
    pad = torch.tensor([[False] * 4 + [True] * 2]).expand(2, -1)
    torch.testing.assert_close(
        ternary.encode(longer, pad)[:, :4], ternary.encode(tokens), atol=1e-13, rtol=0
    )


def causal_toy(vocab: int = 3, length: int = 4) -> AutoregressiveModel:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(vocab, length, width=8, blocks=2, heads=2, causal=True))
    nn.init.normal_(trunk.unembedding.weight, std=0.5)
    return AutoregressiveModel(trunk).double().eval()


@torch.no_grad()
def test_autoregressive_probabilities_sum_to_one_over_all_sequences():
    logp = causal_toy().log_probs(PLAIN.completions)
    assert logp.shape == (81, 4)
    assert logp.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert logp.std(0).min() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("position", range(4))
def test_an_autoregressive_prediction_depends_on_earlier_tokens_only(position: int):
    model, tokens = causal_toy(), PLAIN.completions
    moved = tokens.clone()
    moved[:, position] = (moved[:, position] + 1) % 3
    change = (model(moved) - model(tokens)).abs().amax(-1)
    assert (change[:, : position + 1] == 0).all()
    assert (change[:, position + 1 :] > 1e-9).all()


def test_the_model_names_its_parts(ternary: SSMD):
    assert isinstance(ternary.trunk, TrunkProtocol)
    assert (ternary.vocab_size, ternary.mask_id, ternary.length) == (3, 3, 6)
    assert (ternary.num_trunk_blocks, ternary.num_head_blocks) == (2, 1)
    assert make_toy(head_blocks=0).num_head_blocks == 0
    assert ternary.device == torch.device("cpu")


def trunk_config(**changes: object) -> TrunkConfig:
    shape = {"vocab_size": 3, "length": 4, "width": 8, "blocks": 1, "heads": 1}
    return TrunkConfig(**{**shape, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [*((lambda name=name: trunk_config(**{name: 0}), f"`{name}` must be at least 1, got 0")
       for name in ("vocab_size", "length", "width", "blocks", "heads", "mlp_ratio")),
     (lambda: trunk_config(dropout=-0.1), r"`dropout` must be in \[0, 1\), got -0.1"),
     (lambda: Trunk(trunk_config(heads=3)), "`width` must be a multiple of 2 · heads = 6, got 8"),
     (lambda: SSMD(nn.Linear(2, 2)), "`trunk` must satisfy TrunkProtocol, got Linear"),
     (lambda: AutoregressiveModel(Trunk(trunk_config())), "`trunk` must be causal"),
     (lambda: causal_toy().log_probs(PLAIN.completions + 1), "`tokens` must be in 0..2, got 3"),
     (lambda: causal_toy().log_probs(PLAIN.completions - 1), "`tokens` must be in 0..2, got -1"),
     (lambda: causal_toy().log_probs(PLAIN.completions.repeat(1, 2)), "`tokens` may be at most 4"),
     (lambda: make_toy(head_blocks=0).target(*4 * [torch.zeros(1, 1)]), "`model` must have a"),
     (lambda: Samples.concatenate([]), "`parts` must hold at least one batch, got none")],
)  # fmt: skip
def test_bad_arguments_are_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@torch.no_grad()
def test_remembered_keys_and_values_are_those_of_a_pass():
    """All positions computed anew: exact. Some of them: exact where the others did not change."""
    model = make_toy(vocab=5, blocks=3)
    before, after = torch.randint(5, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    pad = torch.arange(6) >= torch.tensor([6, 6, 5, 3]).unsqueeze(1)
    order = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).argsort(1)
    trunk = model.trunk
    assert isinstance(trunk, Trunk)
    memories = trunk.memories()
    torch.testing.assert_close(trunk(before, pad, memories), model.encode(before, pad))
    part = trunk(before.gather(1, order[:, :2]), pad, memories, order[:, :2])
    torch.testing.assert_close(part, take_along(model.encode(before, pad), order[:, :2]))
    stale = trunk(after.gather(1, order[:, :2]), pad, memories, order[:, :2])
    changed = before.scatter(1, order[:, :2], after.gather(1, order[:, :2]))
    fresh = take_along(model.encode(changed, pad), order[:, :2])
    assert (stale - fresh).abs().max() > 1e-3
    whole = trunk(changed.gather(1, order), pad, memories, order)
    torch.testing.assert_close(whole, take_along(model.encode(changed, pad), order))
