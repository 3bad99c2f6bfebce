from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec.data.clusters import cluster, components, split
from selfspec.data.corpus import open_corpus
from selfspec.data.fasta import prepare_clustered, write_fasta
from selfspec.data.ragged import RaggedStore
from selfspec.data.tokenizers import AMINO_ACIDS
from selfspec.kmers import common, kmers, shared_kmers

rows = st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=8)


def slow(row: list[int], k: int) -> set[tuple[int, ...]]:
    return {tuple(row[i : i + k]) for i in range(len(row) - k + 1)}


@settings(deadline=None)
@given(rows, st.integers(1, 4))
def test_kmers_are_the_different_substrings(sequences, k):
    found = kmers(sequences, 3, k)
    assert (np.diff(found.codes) >= 0).all()
    for owner, row in enumerate(sequences):
        expected = sorted(int("".join(map(str, gram)), 3) for gram in slow(row, k))
        assert found.codes[found.owners == owner].tolist() == expected
        assert found.counts[owner] == len(expected)


@settings(deadline=None)
@given(rows, st.integers(1, 3))
def test_pairs_and_what_they_share(sequences, k):
    shared = shared_kmers(kmers(sequences, 3, k))
    sets = [slow(row, k) for row in sequences]
    expected = {
        (a, b): len(sets[a] & sets[b])
        for a, b in combinations(range(len(sets)), 2)
        if sets[a] & sets[b]
    }
    found = zip(shared.first.tolist(), shared.second.tolist(), shared.count.tolist(), strict=True)
    assert {(a, b): count for a, b, count in found} == expected


@settings(deadline=None)
@given(rows, rows, st.integers(1, 3))
def test_the_nearest_sequence_of_the_data(samples, data, k):
    found = common(kmers(samples, 3, k), kmers(data, 3, k))
    sets = [slow(row, k) for row in data]
    expected = [max((len(slow(row, k) & s) for s in sets), default=0) for row in samples]
    assert found.tolist() == expected


def test_k_must_fit():
    for k in (0, 15):
        with pytest.raises(ValueError, match="`k` must be at least 1"):
            kmers([[0]], 20, k)


# Clusters


@settings(deadline=None)
@given(st.integers(1, 12), st.data())
def test_components_are_those_of_a_search(n, data):
    edge = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
    edges = data.draw(st.lists(edge, max_size=12))
    first, second = np.array([*edges, (0, 0)]).T
    label = components(n, first, second)
    reach = [{i} for i in range(n)]
    for _ in range(n):
        for a, b in edges:
            reach[a] = reach[b] = reach[a] | reach[b]
            for i in reach[a]:
                reach[i] = reach[a]
    assert label.tolist() == [min(group) for group in reach]


def family(rng, size: int, length: int = 120, identity: float = 0.9) -> list[np.ndarray]:
    """Relatives of one ancestor."""
    parent = rng.integers(20, size=length)
    kept = rng.random((size, length)) < identity
    return list(np.where(kept, parent, rng.integers(20, size=(size, length))))


@pytest.fixture(scope="module")
def proteins() -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5, size=80)
    rows = [row for size in sizes for row in family(rng, size)]
    order = rng.permutation(len(rows))
    return [rows[i] for i in order], np.repeat(np.arange(80), sizes)[order]


def test_families_are_found_and_strangers_kept_apart(proteins):
    rows, families = proteins
    label = cluster(rows, 20)
    first = {family: int(np.flatnonzero(families == family)[0]) for family in families.tolist()}
    assert label.tolist() == [first[family] for family in families.tolist()]


def test_a_split_holds_whole_clusters_out_and_fills_its_share(proteins):
    label = cluster(proteins[0], 20)
    parts = split(label, {"valid": 0.2, "test": 0.1})
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(label)))
    groups = [set(label[part]) for part in parts.values()]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & groups[2]
    assert 0.15 < len(parts["valid"]) / len(label) <= 0.2
    again = split(label, {"valid": 0.2, "test": 0.1})
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    other = split(label, {"valid": 0.2, "test": 0.1}, seed=1)
    assert not np.array_equal(parts["test"], other["test"])
    alone = {name for name, n in Counter(label.tolist()).items() if n > max(1, 0.02 * len(label))}
    assert not alone & groups[1]
    with pytest.raises(ValueError, match="enough clusters for a split 'test'"):
        split(np.zeros(50, np.int64), {"test": 0.1})


def test_relatives_come_from_training_and_leave_one_of_each_cluster(proteins):
    label = cluster(proteins[0], 20)
    held_out = {"valid": 0.2, "test": 0.1}
    plain = split(label, held_out)
    parts = split(label, held_out, relatives=0.1)
    assert [*parts] == ["train", "valid", "test", "relatives"]
    assert all(np.array_equal(parts[name], plain[name]) for name in held_out)
    both = np.concatenate([parts["train"], parts["relatives"]])
    assert sorted(both.tolist()) == plain["train"].tolist()
    assert len(parts["relatives"]) == round(0.1 * len(label))
    most = split(label, held_out, relatives=0.99)
    assert sorted(label[most["train"]].tolist()) == sorted({*label[plain["train"]].tolist()})
    other = split(label, held_out, relatives=0.1, seed=1)
    assert not np.array_equal(parts["relatives"], other["relatives"])
    with pytest.raises(ValueError, match="`relatives` must be at least 0 and below 1, got 1"):
        split(label, held_out, relatives=1)
    with pytest.raises(ValueError, match="for a split 'relatives'"):
        split(np.arange(50), held_out, relatives=0.1)


def test_prepare_holds_clusters_out(proteins, tmp_path):
    rows, _ = proteins
    texts = ["".join(AMINO_ACIDS[i] for i in row) for row in rows]
    write_fasta(tmp_path / "a.fasta", [(str(i), text) for i, text in enumerate([*texts, "MXV"])])
    _, skipped = prepare_clustered(tmp_path / "a.fasta", tmp_path / "out", progress=False)
    assert skipped == {"all": 1}
    tokenizer, stores = open_corpus(tmp_path / "out")
    found = {}
    for name, store in stores.items():
        assert isinstance(store, RaggedStore)
        found[name] = [store[i] for i in range(len(store))]
    assert sum(map(len, found.values())) == len(rows)
    assert sorted(tokenizer.decode(row) for part in found.values() for row in part) == sorted(texts)
    train = kmers(found["train"], 20)
    for name in ("valid", "test"):
        held = kmers(found[name], 20)
        assert (common(held, train) < np.maximum(3, 0.03 * held.counts)).all()


def test_copies_of_short_sequences_stay_together():
    rows = [np.arange(7), np.arange(7), np.arange(7)[::-1], np.arange(5), np.arange(5)]
    assert cluster(rows, 20).tolist() == [0, 0, 2, 3, 4]  # without a 6-mer there is no relative
