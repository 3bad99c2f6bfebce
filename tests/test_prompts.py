"""Rows with a frame: tokens that stand before and after every sequence."""

import pytest
import tiny
import torch
from torch import Tensor

from selfspec import measuring
from selfspec.data.tokenizers import CharTokenizer
from selfspec.prompts import blank, decode, in_frame, layout, unprompted
from selfspec.sampling import SpeculativeSampler
from selfspec.schedules import ConstantWindow

MASK = 27
FRAMES = [((), ()), ((3,), ()), ((), (5,)), ((3, 4), (5, 6, 7))]
TEXTS = ["a_", "bcd", "_"]


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_a_frame_is_put_around_prompts_and_is_no_part_of_the_text(frame: tuple):
    begin, end = map(list, frame)
    tokens, pad = layout(TEXTS, CharTokenizer(), MASK, longest=9, frame=frame)
    rows = [begin + row + end for row in ([1, MASK], [2, 3, 4], [MASK])]
    assert [row[~gone].tolist() for row, gone in zip(tokens, pad, strict=True)] == rows
    assert decode(CharTokenizer(), tokens, pad, frame=frame) == TEXTS
    around = in_frame(pad, frame)
    inner = around.logical_or(pad).logical_not()
    assert inner.sum(1).tolist() == [2, 3, 1]
    assert [row[inside].tolist() for row, inside in zip(tokens, around, strict=True)] == [
        begin + end
    ] * 3


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_blank_rows_are_those_of_prompts_of_gaps(frame: tuple):
    tokens, pad = blank(torch.tensor([2, 4, 1]), MASK, frame=frame)
    expected = layout(["__", "____", "_"], CharTokenizer(), MASK, longest=9, frame=frame)
    assert torch.equal(pad, expected[1])
    assert torch.equal(tokens.masked_fill(pad, 0), expected[0])
    wide, gone = blank(torch.tensor([2, 4, 1]), MASK, width=12, frame=frame)
    assert torch.equal(wide[:, : tokens.shape[1]].masked_fill(pad, 0), expected[0])
    assert gone[:, tokens.shape[1] :].all()


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_the_longest_row_has_its_frame_within_the_model(frame: tuple):
    size = len(frame[0]) + len(frame[1])
    tokens, pad = unprompted(torch.arange(2), MASK, longest=9, frame=frame)
    assert tokens.shape == (2, 9)
    assert not pad.any()
    assert (tokens == MASK).sum(1).tolist() == [9 - size] * 2
    with pytest.raises(ValueError, match=rf"`length` must be in 1\.\.{9 - size}, the model's"):
        unprompted(torch.arange(2), MASK, longest=9, length=10 - size, frame=frame)
    with pytest.raises(ValueError, match=f"`prompt` may have at most {9 - size} tokens"):
        layout(["_" * (10 - size)], CharTokenizer(), MASK, longest=9, frame=frame)


def test_a_calibration_draws_rows_with_their_frame():
    model, seen = tiny.model(), []
    model.trunk.frame = ((3, 4), (5,))  # type: ignore[assignment]

    def judge(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return torch.ones(tokens.shape)

    sampler = SpeculativeSampler(model, window=ConstantWindow(8))
    measuring.measure(model, judge, [sampler], n=3, progress=False)
    (tokens,) = seen
    assert tokens.shape == (3, tiny.LENGTH)
    assert tokens[:, :2].tolist() == [[3, 4]] * 3
    assert tokens[:, -1].tolist() == [5] * 3
