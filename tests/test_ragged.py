from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_toy
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec.data.corpus import open_corpus, open_store, write_corpus
from selfspec.data.loader import TokenStore, write_store
from selfspec.data.ragged import BucketLoader, RaggedStore, write_sequences
from selfspec.data.tokenizers import ProteinTokenizer
from selfspec.losses import ssmd_loss
from selfspec.model import AutoregressiveModel
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.schedules import CosineWindow
from selfspec.train import AdamWConfig, Chance, Diffusion, NextToken, TrainConfig, Trainer

N, LONGEST = 37, 40


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> RaggedStore:
    """Sequence k holds 100·k, 100·k + 1, …: a row tells where it was cut."""
    lengths = np.random.default_rng(0).integers(1, LONGEST + 1, size=N)
    lengths[0] = LONGEST
    rows = [100 * k + np.arange(length) for k, length in enumerate(lengths)]
    return write_sequences(tmp_path_factory.mktemp("ragged") / "train.bin", rows, 100 * N)


# Stores


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 19), min_size=1), min_size=1))
def test_a_store_returns_its_sequences(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("x") / "x.bin"
    write_sequences(path, rows, 20)
    store = RaggedStore(path, verify=True)
    assert [store[i].tolist() for i in range(len(store))] == rows
    assert store.tokens.dtype == np.uint8
    padded = store.rows(np.arange(len(rows)), 50)
    assert [row.compressed().tolist() for row in padded] == [row[:50] for row in rows]


def test_what_is_no_ragged_store_is_refused(tmp_path):
    path = tmp_path / "x.bin"
    with pytest.raises(ValueError, match="must not be empty, got none in 1"):
        write_sequences(path, [[1], []], 20)
    assert list(tmp_path.iterdir()) == []
    write_sequences(path, [[1, 2], [3]], 20)
    assert isinstance(open_store(path), RaggedStore)
    write_store(path, [[1, 2]], 20)  # another corpus was written over its tokens alone
    with pytest.raises(ValueError, match=r"its sequences have 3 tokens, the file 2"):
        RaggedStore(path)
    path.with_suffix(".lengths").write_bytes(b"123")
    with pytest.raises(ValueError, match="must be a token store"):
        RaggedStore(path)


def test_a_corpus_of_blocks_takes_the_place_of_one_of_sequences(tmp_path):
    tokenizer = ProteinTokenizer()
    write_corpus(tmp_path, {"train": ["MKV", "W"]}, tokenizer, write_sequences)
    assert len(open_corpus(tmp_path)[1]["train"]) == 2
    write_corpus(tmp_path, {"train": ["MKV", "W"]}, tokenizer)
    store = open_corpus(tmp_path)[1]["train"]
    assert isinstance(store, TokenStore)
    assert len(store) == 4


def test_an_excerpt_is_evenly_spaced(store):
    rows = store.excerpt(16, 5)
    assert rows[:, 0].tolist() == [0, 900, 1800, 2700, 3600]
    assert rows.count(axis=1).tolist() == np.minimum(16, store.lengths[::9]).tolist()
    assert len(store.excerpt(16, 1000)) == N
    assert store.excerpt(1000, 5).shape == (5, store.lengths[::9].max())


# Batches


def seen(loader: BucketLoader, steps: range) -> list[int]:
    """Which sequences the batches hold."""
    return [int(row.compressed()[0]) // 100 for t in steps for row in loader.batch(t)]


@pytest.mark.parametrize(("batch_size", "pool"), [(4, 3), (5, 1), (8, 20), (50, 2)])
def test_every_sequence_comes_once_an_epoch(store, batch_size, pool):
    loader = BucketLoader(store, LONGEST, batch_size, seed=1, pool=pool)
    steps = 3 * pool * N  # whole pools and whole epochs
    counts = np.bincount(seen(loader, range(steps)), minlength=N)
    assert (counts == steps * batch_size // N).all()


def test_epochs_and_pools_differ(store):
    loader = BucketLoader(store, LONGEST, 4, seed=1, pool=N)  # of four epochs
    pools = [[seen(loader, range(t, t + 1)) for t in range(n * N, n * N + N)] for n in range(8)]
    longest = [[max(store.lengths[batch]) for batch in pool] for pool in pools]
    assert len(set(map(str, longest))) == 8  # they come in another order
    assert all(each != sorted(each) for each in longest)
    alone = BucketLoader(store, LONGEST, N, seed=1, pool=1)  # an epoch a batch
    ties = [seen(alone, range(t, t + 1)) for t in range(8)]
    assert len(set(map(str, map(sorted, ties)))) == 1
    assert len(set(map(str, ties))) == 8


def test_rows_are_whole_or_cropped_at_random_places(store):
    whole = BucketLoader(store, LONGEST, 6, seed=0)
    for step in range(20):
        for row in whole.batch(step):
            k = int(row[0]) // 100
            assert row.compressed().tolist() == store[k].tolist()
    short = BucketLoader(store, 8, 6, seed=0, buckets=1)
    starts: set[int] = set()
    for step in range(2000):
        batch = short.batch(step)
        assert batch.shape == (6, 8)
        for row in batch:
            tokens = row.compressed()
            k, start = divmod(int(tokens[0]), 100)
            assert tokens.tolist() == store[k][start : start + 8].tolist()
            if k == 0:
                starts.add(start)
    assert starts == set(range(LONGEST - 8 + 1))


def test_widths_are_few_and_pads_fewer_than_at_random(store):
    loader = BucketLoader(store, LONGEST, 4, seed=0)
    assert loader.widths.tolist() == [16, 24, 32, 40]
    assert BucketLoader(store, 32, 4, seed=0).widths.tolist() == [8, 16, 24, 32]
    batches = [loader.batch(t) for t in range(100)]
    assert {batch.shape[1] for batch in batches} == set(loader.widths.tolist())
    for batch in batches:
        longest = batch.count(axis=1).max()
        assert batch.shape[1] == min(w for w in loader.widths if w >= longest)
        pad = np.ma.getmaskarray(batch)
        assert (pad == (np.arange(batch.shape[1]) >= (~pad).sum(1)[:, None])).all()
    size, count = (sum(f(b) for b in batches) for f in (np.size, np.ma.count))
    random = BucketLoader(store, LONGEST, 4, seed=0, pool=1)
    batches = [random.batch(t) for t in range(100)]
    assert count / size > 0.02 + sum(map(np.ma.count, batches)) / sum(map(np.size, batches))


@settings(deadline=None)
@given(st.sampled_from([1, 2, 3]), st.integers(0, 300), st.integers(0, 5))
def test_ranks_share_what_one_rank_would_see(store, world, step, seed):
    one = BucketLoader(store, 16, 6, seed).batch(step)
    ranks = [BucketLoader(store, 16, 6 // world, seed, r, world).batch(step) for r in range(world)]
    assert {rank.shape for rank in ranks} == {(6 // world, one.shape[1])}
    for rank, rows in enumerate(ranks):
        assert str(rows) == str(one[rank::world])


def test_a_batch_is_a_function_of_its_step_alone(store):
    loader, other = (BucketLoader(store, 16, 4, 3, pool=5) for _ in range(2))
    forward = [loader.batch(t) for t in range(40)]
    for t in reversed(range(40)):
        assert str(other.batch(t)) == str(forward[t])
    assert seen(loader, range(10)) != seen(BucketLoader(store, 16, 4, 4, pool=5), range(10))


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"length": 0}, "`length` must be at least 1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"rank": 2, "world": 2}, "`rank` must be in"),
        ({"pool": 0}, "`pool` must be at least 1"),
        ({"buckets": 0}, "`buckets` must be at least 1"),
    ],
)
def test_arguments_in_their_ranges(store, arguments, rule):
    with pytest.raises(ValueError, match=rule):
        BucketLoader(store, **{"length": 8, "batch_size": 2, "seed": 0, **arguments})
    with pytest.raises(ValueError, match="`step`"):
        BucketLoader(store, 8, 2, 0).batch(-1)


# Training on rows with pads


@pytest.fixture(scope="module")
def proteins(tmp_path_factory) -> RaggedStore:
    """Ternary sequences of up to six tokens, for the toy models."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(3, size=rng.integers(1, 7)) for _ in range(20)]
    return write_sequences(tmp_path_factory.mktemp("toy") / "train.bin", rows, 3)


def judge() -> AutoregressiveModel:
    torch.manual_seed(3)
    shape = TrunkConfig(3, length=6, width=8, blocks=1, heads=1, causal=True)
    return AutoregressiveModel(Trunk(shape)).double().eval()


def tensors(rows: np.ma.MaskedArray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows.filled(-7)), torch.from_numpy(np.ma.getmaskarray(rows))


def test_orders_put_pads_last_and_reveal_evenly(proteins):
    tokens, pad = tensors(proteins.rows(np.arange(20), 6))
    end = (~pad).sum(1)
    objective = Diffusion(window_weight=1.0)
    counts = np.zeros((7, 6))
    for seed in range(300):
        drawn = objective.draw(tokens, Chance(torch.Generator().manual_seed(seed)), pad)
        place = torch.arange(6) >= end[:, None]
        assert torch.equal(pad.gather(1, drawn["order"]), place)
        assert torch.equal(drawn["order"].sort(1).values, torch.arange(6).expand(20, -1))
        assert ((drawn["revealed"] >= 0) & (drawn["revealed"] < end)).all()
        reach = drawn["revealed"] + drawn["window"]
        assert ((drawn["window"] >= 1) & (reach <= end)).all()
        np.add.at(counts, (end.numpy(), drawn["revealed"].numpy()), 1)
    for length in set(end.tolist()):  # each of 0..N-1 equally often, up to sampling error
        share = counts[length, :length] / counts[length].sum()
        assert counts[length, length:].sum() == 0
        assert np.abs(share - 1 / length).max() < 5 / np.sqrt(counts[length].sum())


def test_windows_are_those_of_the_sampler_for_the_tokens_of_a_row(proteins, monkeypatch):
    tokens, pad = tensors(proteins.rows(np.arange(20), 6))
    half = torch.tensor(0.5)
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **_: half.expand(*shape) if shape != ((),) else half
    )
    drawn = Diffusion(window_weight=1.0).draw(tokens, Chance(torch.Generator()), pad)
    window = CosineWindow(0.01 * 30**0.5)
    for end, i, w in zip((~pad).sum(1).tolist(), drawn["revealed"], drawn["window"], strict=True):
        assert window.table(end)[int(i)] == int(w)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_padded_batch_has_the_mean_loss_of_its_rows_alone(proteins, weight):
    model, objective = make_toy(), Diffusion(window_weight=weight)
    tokens, pad = tensors(proteins.rows(np.arange(20), 6))
    drawn = objective.draw(tokens, Chance(torch.Generator().manual_seed(0)), pad)
    total, _ = objective.loss(model, **drawn)
    alone = []
    for row in range(20):
        n = int((~pad[row]).sum())
        one = {name: value[row : row + 1] for name, value in drawn.items() if name != "pad"}
        one |= {name: one[name][:, :n] for name in ("tokens", "order")}
        alone.append(ssmd_loss(model, **one, window_weight=weight).total)
    assert total.item() == pytest.approx(torch.stack(alone).mean().item(), abs=1e-7)

    tokens, pad = tensors(proteins.rows(np.arange(20), 6))
    drawn = NextToken().draw(tokens, Chance(torch.Generator()), pad)
    total, _ = NextToken().loss(judge(), **drawn)
    nll = [-judge().log_probs(tokens[r : r + 1, : int((~pad[r]).sum())]).mean() for r in range(20)]
    assert total.item() == pytest.approx(torch.stack(nll).mean().item(), abs=1e-7)


CONFIG = TrainConfig(
    steps=8, batch_size=4, adamw=AdamWConfig(lr=1e-3), ema_decay=0.5, save_every=3, valid_every=4
)


@pytest.mark.parametrize("build", [make_toy, judge])
def test_one_trainer_serves_both_and_resumes_exactly(proteins, build, tmp_path):
    def trainer(folder=None, **changes):
        model = build()
        objective = NextToken() if isinstance(model, AutoregressiveModel) else Diffusion()
        config = replace(CONFIG, **changes)
        valid = proteins.excerpt(6, 7)
        return Trainer(model, objective, config, proteins.loader(6, 4, 0), folder, valid)

    whole, cut, split = trainer(), trainer(tmp_path), trainer(accumulate=2)
    whole.run(progress=False)
    assert not cut.run(stop_after=0, progress=False)
    resumed = trainer(tmp_path)
    assert resumed.run(progress=False)
    split.run(progress=False)
    assert whole.validation == resumed.validation
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
        torch.testing.assert_close(weight, split.model.state_dict()[name], rtol=0, atol=1e-6)


def test_the_meter_counts_tokens_without_pads(proteins, monkeypatch):
    loader = proteins.loader(6, 4, 0)
    run = Trainer(make_toy(), Diffusion(), CONFIG, loader)
    counted = []
    monkeypatch.setattr(run._meter, "end_step", counted.append)
    run.update()
    run.feed.close()
    assert counted == [loader.batch(0).count()]


def test_observed_tokens_come_first_and_pads_are_none():
    tokens = torch.tensor([[1, 2, 3, 1, 1, 1], [2, 1, 3, 2, 3, 1]])
    pad = torch.tensor([[False] * 4 + [True] * 2, [False] * 5 + [True]])
    seen = set()
    for seed in range(40):
        chance = Chance(torch.Generator().manual_seed(seed))
        drawn = Diffusion(observed=(1,)).draw(tokens, chance, pad)
        (one, two), revealed = drawn["order"].tolist(), drawn["revealed"].tolist()
        assert [{*one[:2]}, {*one[4:]}] == [{0, 3}, {4, 5}]
        assert [two[0], two[5]] == [1, 5]
        seen |= {*enumerate(revealed)}
    assert seen == {(0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 4)}
