import pytest
import torch

from selfspec.interfaces import Pass, Samples


def samples(rows: int, width: int, pad: bool = False, **fields) -> Samples:
    """Row r has r trunk passes, twice as many head passes, and 3 drafts of which r stand."""
    count = torch.arange(1, rows + 1)
    return Samples(
        tokens=torch.arange(rows * width).view(rows, width) + 1,
        trunk_passes=count,
        head_passes=2 * count,
        drafted=torch.full((rows,), 3),
        accepted=count,
        trunk_blocks=11,
        head_blocks=1,
        pad=(torch.arange(width) >= torch.arange(1, rows + 1)[:, None]) if pad else None,
        **fields,
    )


def test_an_evaluation_is_a_pass_through_all_blocks():
    assert samples(2, 4).nfe.tolist() == pytest.approx([(11 + 2) / 12, (22 + 4) / 12])
    assert samples(2, 4).nfe.dtype == torch.float64


def test_acceptance_is_a_share_of_all_drafts():
    drawn = samples(3, 4)
    drawn.drafted = torch.tensor([1, 9, 0])
    drawn.accepted = torch.tensor([1, 4, 0])
    assert drawn.acceptance == 0.5
    drawn.drafted = torch.zeros(3, dtype=torch.int64)
    assert drawn.acceptance != drawn.acceptance  # nan


def test_narrow_batches_get_pads_on_the_right():
    joined = Samples.concatenate([samples(2, 2), samples(3, 4, pad=True), samples(1, 4)])
    assert joined.rows.compressed().tolist() == [
        *(1, 2, 3, 4), *(1, 5, 6, 9, 10, 11), *(1, 2, 3, 4)
    ]  # fmt: skip
    assert joined.trunk_passes.tolist() == [1, 2, 1, 2, 3, 1]
    assert joined.nfe.tolist()[2:5] == samples(3, 4).nfe.tolist()
    assert Samples.concatenate([samples(2, 4), samples(1, 4)]).pad is None
    assert len(joined) == len(joined.tokens) == 6


def test_texts_and_traces_are_joined_where_all_batches_have_them():
    trace = [[Pass([0], [1], [], [(0, 1)])]]
    known = samples(1, 2, text=["a"], trace=trace)
    joined = Samples.concatenate([known, known])
    assert list(joined) == ["a", "a"]
    assert joined.trace == trace * 2
    unknown = Samples.concatenate([known, samples(1, 2)])
    assert unknown.trace is None
    with pytest.raises(ValueError, match="`text` is not known"):
        iter(unknown)
    with pytest.raises(ValueError, match="`parts` must hold at least one batch, got none"):
        Samples.concatenate([])
