import pytest
import torch
from conftest import make_toy
from torch import Tensor

from selfspec.nn.attention import Attention, rotate, rotation
from selfspec.nn.head import CausalHead, HeadConfig

LENGTH = 6


@pytest.fixture(scope="module")
def head() -> CausalHead:
    head = make_toy(length=LENGTH, head_blocks=2).head
    assert head is not None
    return head


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, embeddings (natural order) and an order for each of four rows."""
    torch.manual_seed(0)
    hidden, embedded = torch.randn(2, 4, LENGTH, 8, dtype=torch.float64)
    return hidden, embedded, torch.stack([torch.randperm(LENGTH) for _ in range(4)])


@torch.no_grad()
@pytest.mark.parametrize("place", range(LENGTH))
def test_an_output_depends_on_tokens_at_earlier_places_only(
    head: CausalHead, inputs: tuple[Tensor, Tensor, Tensor], place: int
):
    hidden, embedded, order = inputs
    moved = embedded.clone()
    moved[torch.arange(4), order[:, place]] += 1
    change = (head(hidden, moved, order) - head(hidden, embedded, order)).abs().amax(-1)
    assert (change[:, : place + 1] == 0).all()
    assert (change[:, place + 1 :] > 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("place", range(LENGTH))
def test_an_output_depends_on_hidden_states_up_to_its_own_place(
    head: CausalHead, inputs: tuple[Tensor, Tensor, Tensor], place: int
):
    hidden, embedded, order = inputs
    moved = hidden.clone()
    moved[torch.arange(4), order[:, place]] += torch.randn(8, dtype=torch.float64)
    change = (head(moved, embedded, order) - head(hidden, embedded, order)).abs().amax(-1)
    assert (change[:, :place] == 0).all()
    assert (change[:, place:] > 1e-6).all()


@torch.no_grad()
def test_a_track_holds_one_position_and_predicts_the_next(
    head: CausalHead, inputs: tuple[Tensor, Tensor, Tensor]
):
    hidden, embedded, order = inputs
    tracks = head.tracks(hidden, embedded, order)
    for row, sigma in enumerate(order.tolist()):
        for j in range(LENGTH - 1):
            parts = [head.token_norm(embedded[row, sigma[j]]),
                     head.held_norm(hidden[row, sigma[j]]),
                     head.predicted_norm(hidden[row, sigma[j + 1]])]  # fmt: skip
            torch.testing.assert_close(tracks[row, j], head.fuse(torch.cat(parts)))


@torch.no_grad()
def test_a_fresh_head_adds_nothing_to_the_state_at_the_place_it_predicts(
    inputs: tuple[Tensor, Tensor, Tensor],
):
    hidden, embedded, order = inputs
    fresh = CausalHead(HeadConfig(heads=2, blocks=2), width=8).double()
    along = hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, 8))
    assert torch.equal(fresh(hidden, embedded, order), along)


@torch.no_grad()
def test_a_single_place_has_no_track_and_keeps_its_state(head: CausalHead):
    hidden, embedded = torch.randn(2, 4, 1, 8, dtype=torch.float64)
    order = torch.zeros(4, 1, dtype=torch.int64)
    assert torch.equal(head(hidden, embedded, order), hidden)


def test_a_fresh_head_learns_at_once(inputs: tuple[Tensor, Tensor, Tensor]):
    hidden, embedded, order = inputs
    fresh = CausalHead(HeadConfig(heads=2), width=8).double()
    fresh(hidden, embedded, order).square().sum().backward()
    assert fresh.project.weight.grad is not None
    assert fresh.project.weight.grad.abs().max() > 1e-3


@torch.no_grad()
def test_only_offsets_between_positions_count(head: CausalHead):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    attention = Attention(8, 2).double()
    held, predicted = torch.tensor([[3, 0, 4, 1, 9]]), torch.tensor([[0, 4, 1, 9, 2]])

    def attended(shift_held: int, shift_predicted: int) -> Tensor:
        angles = (rotation(predicted + shift_predicted, 4, torch.float64),
                  rotation(held + shift_held, 4, torch.float64))  # fmt: skip
        return attention(x, *angles, causal=True)

    torch.testing.assert_close(attended(7, 7), attended(0, 0))
    assert (attended(1, 0) - attended(0, 0)).abs().max() > 1e-3


@torch.no_grad()
def test_queries_turn_by_the_position_predicted_and_keys_by_the_one_held(
    head: CausalHead, inputs: tuple[Tensor, Tensor, Tensor]
):
    order = inputs[2]
    queries, keys = head.rotations(order)
    channels = 8 // head.config.heads
    for found, positions in ((queries, order[:, 1:]), (keys, order[:, :-1])):
        expected = rotation(positions, channels, torch.float64)
        torch.testing.assert_close(found, expected)
    assert queries.cos.shape == (4, 1, LENGTH - 1, channels)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: HeadConfig(heads=0), "`heads` must be at least 1, got 0"),
     (lambda: HeadConfig(heads=1, blocks=0), "`blocks` must be at least 1, got 0"),
     (lambda: HeadConfig(heads=1, mlp_ratio=-1), "`mlp_ratio` must be at least 1, got -1"),
     (lambda: HeadConfig(heads=1, dropout=1.0), r"`dropout` must be in \[0, 1\), got 1.0"),
     (lambda: CausalHead(HeadConfig(heads=3), width=8),
      "`width` must be a multiple of 2 · heads = 6, got 8")],
)  # fmt: skip
def test_bad_shapes_are_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_pairs_of_channels_are_turned_by_the_same_angle():
    torch.manual_seed(0)
    x, positions = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.arange(5)
    by = rotation(positions, 6, torch.float64)
    turned = torch.complex(*x.chunk(2, -1)) * torch.complex(*(y[..., 3:] for y in by))
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(rotate(x, by), expected, rtol=0, atol=1e-15)
    angles = positions.unsqueeze(1) * 10000.0 ** (-torch.arange(3).double() / 3)
    torch.testing.assert_close(by.sin[0, 0, :, 3:], angles.sin())


def test_angles_keep_their_precision_for_weights_of_few_bits():
    positions = torch.arange(256)
    exact = rotation(positions, 64, torch.float64)
    coarse = rotation(positions, 64, torch.bfloat16)
    torch.testing.assert_close(coarse.cos.double(), exact.cos, atol=1e-4, rtol=0)
