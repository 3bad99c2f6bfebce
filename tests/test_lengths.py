import json

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import selfspec as ss
from selfspec import checkpoint
from selfspec.lengths import Lengths
from selfspec.noise import row_seeds


@given(st.lists(st.integers(1, 700), min_size=1), st.integers(1, 600))
def test_a_histogram_counts_every_sequence_once(lengths, longest):
    made = Lengths.of(lengths, longest)
    assert sum(made.counts) == len(lengths)
    assert len(made.counts) <= 64
    for bin_, count in enumerate(made.counts):
        low, high = bin_ * made.width, min((bin_ + 1) * made.width, longest)
        assert count == sum(low < min(n, longest) <= high for n in lengths)
    assert Lengths.from_config(json.loads(json.dumps(made.to_config()))) == made


@pytest.mark.parametrize("lengths", [Lengths((5, 0, 3, 2), 3, 10), Lengths((1,), 7, 7)])
def test_lengths_are_drawn_from_the_histogram(lengths):
    drawn = lengths.draw(row_seeds(3, 200_000)).numpy()
    counts = np.bincount(drawn, minlength=lengths.longest + 1)
    assert counts[0] == 0
    for bin_, count in enumerate(lengths.counts):
        low, high = bin_ * lengths.width, min((bin_ + 1) * lengths.width, lengths.longest)
        share = count / sum(lengths.counts) / (high - low)
        error = 5 * np.sqrt(share / len(drawn))
        assert np.abs(counts[low + 1 : high + 1] / len(drawn) - share).max() <= error
    assert torch.equal(lengths.draw(row_seeds(3, 4)), torch.from_numpy(drawn[:4]))


@pytest.mark.parametrize(
    "config",
    [{}, {"counts": [1, 2], "width": 3, "longest": 9}, {"counts": [0], "width": 3, "longest": 2},
     {"counts": [1, -1], "width": 1, "longest": 2}, {"counts": 3, "width": 1, "longest": 2}],
)  # fmt: skip
def test_what_is_no_histogram_is_refused(config):
    with pytest.raises(ValueError, match="`lengths` must be a histogram"):
        Lengths.from_config(config)


@pytest.fixture(scope="module")
def protein() -> ss.SSMD:
    return tiny.protein()


def test_samples_have_the_lengths_of_the_training_data(protein):
    samples = ss.generate(protein, 40, seed=1, rounds=2)
    assert protein.lengths is not None
    sizes = protein.lengths.draw(row_seeds(1, 40)).tolist()
    assert [len(text) for text in samples] == sizes
    assert len(set(sizes)) > 3
    assert samples.rows.count(axis=1).tolist() == sizes
    alone = ss.generate(protein, 3, seed=1, rounds=2, batch_size=1)
    assert alone.text == samples.text[:3] if samples.text else False
    assert all(len(text) == 9 for text in ss.generate(protein, 4, length=9, rounds=2))


def test_a_motif_is_kept_and_the_rest_filled(protein):
    template = "MK___GKST____W"
    for text in ss.generate(protein, 8, prompt=template, rounds=2):
        assert len(text) == len(template)
        assert "_" not in text
        assert all(a in ("_", b) for a, b in zip(template, text, strict=True))
    longer = ss.generate(protein, 2, prompt=["MK_", "W____"], length=10, rounds=2)
    assert [len(text) for text in longer] == [10] * 4
    with pytest.raises(ValueError, match="got 'B' at index 1"):
        ss.generate(protein, prompt="MB_")


def test_lengths_and_tokenizer_survive_the_checkpoint(protein, tmp_path):
    checkpoint.save(protein, tmp_path)
    loaded = ss.load(tmp_path)
    assert loaded.lengths == protein.lengths
    assert isinstance(loaded.tokenizer, ss.ProteinTokenizer)
    assert ss.generate(loaded, 3, rounds=2).text == ss.generate(protein, 3, rounds=2).text
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong, rule in (([1], "lengths must be an object"), ({"a": 1}, "must be a histogram")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"lengths": wrong}))
        with pytest.raises(ValueError, match=rule):
            ss.load(tmp_path)
    del config["lengths"]  # as older checkpoints are
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ss.load(tmp_path).lengths is None
