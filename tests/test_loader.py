import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec.data.corpus import open_corpus, write_corpus
from selfspec.data.loader import BlockLoader, TokenStore, write_store
from selfspec.data.tokenizers import CharTokenizer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


def numbered(root, count):
    """A store whose token at position l is l, so that a block tells where it was cut."""
    return write_store(root / f"{count}.bin", [np.arange(count)], vocab_size=max(count, 2))


# --- stores ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data(), st.sampled_from([1, 27, 256, 257, 65536, 65537, 2**32]))
def test_store_returns_the_concatenated_chunks(root, data, vocab_size):
    tokens = st.lists(st.integers(0, vocab_size - 1), max_size=20)
    chunks = data.draw(st.lists(tokens, min_size=1).filter(any))
    store = write_store(root / "x.bin", [np.array(c, dtype=np.int64) for c in chunks], vocab_size)
    whole = [token for chunk in chunks for token in chunk]
    assert store.tokens.tolist() == whole
    assert len(store) == len(whole)
    assert store.vocab_size == vocab_size
    assert TokenStore(root / "x.bin", verify=True).sha256 == store.sha256


@pytest.mark.parametrize(
    ("vocab_size", "bytes_each"), [(256, 1), (257, 2), (65536, 2), (65537, 4), (2**32, 4)]
)
def test_tokens_take_the_fewest_bytes_that_hold_them(tmp_path, vocab_size, bytes_each):
    path = tmp_path / "x.bin"
    write_store(path, [np.array([0, vocab_size - 1])], vocab_size)
    assert path.stat().st_size == 2 * bytes_each
    assert TokenStore(path).tokens[-1] == vocab_size - 1


@pytest.mark.parametrize(
    ("chunk", "rule"),
    [
        (np.array([3, 27]), r"0\.\.26, got 3\.\.27"),
        (np.array([-1]), r"0\.\.26"),
        (np.array([0.5]), "integer arrays"),
        (np.zeros((2, 2), dtype=int), "one axis"),
        (np.array([], dtype=int), "at least one token"),
    ],
)
def test_a_failed_write_leaves_the_old_store_and_nothing_else(tmp_path, chunk, rule):
    path = tmp_path / "x.bin"
    write_store(path, [np.arange(5)], 27)
    with pytest.raises(ValueError, match=rule):
        write_store(path, [chunk] if chunk.size == 0 else [np.arange(27), chunk], 27)
    assert TokenStore(path, verify=True).tokens.tolist() == [0, 1, 2, 3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.bin.json"]


@pytest.mark.parametrize("vocab_size", [0, 2**32 + 1])
def test_vocab_size_must_fit_32_bits(tmp_path, vocab_size):
    with pytest.raises(ValueError, match="`vocab_size`"):
        write_store(tmp_path / "x.bin", [np.array([0])], vocab_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0\0")  # one more token


def unlink(path):
    path.unlink()


def header(text):
    return lambda path: path.with_name(path.name + ".json").write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lengthen,
        unlink,
        header("{"),
        header("[]"),
        header("{}"),
        header(json.dumps({"format": "other", "vocab_size": 3, "tokens": 9, "dtype": "|u1"})),
        lambda path: path.with_name(path.name + ".json").unlink(),
    ],
)
def test_a_broken_store_is_one_clear_error(tmp_path, damage):
    path = tmp_path / "x.bin"
    write_store(path, [np.arange(9)], 300)
    damage(path)
    with pytest.raises(ValueError, match=r"`path` must be a token store, got .*x\.bin"):
        TokenStore(path)


def test_verify_sees_a_single_altered_byte(tmp_path):
    path = tmp_path / "x.bin"
    write_store(path, [np.arange(9)], 27)
    path.write_bytes(bytes([0, 1, 2, 3, 4, 5, 6, 7, 9]))
    assert len(TokenStore(path)) == 9
    with pytest.raises(ValueError, match="SHA-256"):
        TokenStore(path, verify=True)


def test_a_new_file_never_has_the_old_header(tmp_path, monkeypatch):
    write_store(tmp_path / "t.bin", [np.array([0, 1])], 2)

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr("selfspec.data.loader.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "t.bin", [np.array([1, 0])], 2)
    with pytest.raises(ValueError, match="`path` must be a token store"):
        TokenStore(tmp_path / "t.bin")


def test_blocks_tile_the_store_from_its_start(root):
    blocks = numbered(root, 10).blocks(3)
    assert blocks.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert numbered(root, 9).blocks(3).tolist() == blocks.tolist()


# --- corpora --------------------------------------------------------------------------------


def test_corpus_round_trip(tmp_path):
    tokenizer = CharTokenizer("cab")
    written = write_corpus(tmp_path / "c", {"train": ["ab", "", "ba"], "test": ["c"]}, tokenizer)
    again, stores = open_corpus(tmp_path / "c")
    assert again.to_config() == tokenizer.to_config()
    texts = {split: again.decode(store.tokens) for split, store in stores.items()}
    assert texts == {"train": "abba", "test": "c"}
    assert {k: v.sha256 for k, v in written.items()} == {k: v.sha256 for k, v in stores.items()}


def test_a_failed_corpus_changes_nothing(tmp_path):
    tokenizer = CharTokenizer("ab")
    write_corpus(tmp_path / "c", {"train": ["ab"], "valid": ["a"]}, tokenizer)
    with pytest.raises(ValueError, match="got 'x' at index 1"):
        write_corpus(tmp_path / "c", {"train": ["bb"], "valid": ["ax"]}, tokenizer)
    with pytest.raises(ValueError, match="`folder` must be one, got the file"):
        write_corpus(tmp_path / "c" / "train.bin", {"train": ["bb"]}, tokenizer)
    _, stores = open_corpus(tmp_path / "c")
    assert stores["train"].tokens.tolist() == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_two_do_not_write_one_corpus_and_what_a_killed_one_left_is_removed(tmp_path):
    def meanwhile():
        with pytest.raises(RuntimeError, match="another run is at work in"):
            write_corpus(tmp_path / "c", {"train": ["bb"]}, CharTokenizer("ab"))
        yield "ab"

    left = tmp_path / "c.part" / "new.part"
    left.mkdir(parents=True)
    (left / "test.bin").write_bytes(b"of a killed process")
    write_corpus(tmp_path / "c", {"train": meanwhile()}, CharTokenizer("ab"))
    assert list(open_corpus(tmp_path / "c", verify=True)[1]) == ["train"]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_folder_without_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`data` must hold a corpus"):
        open_corpus(tmp_path)


# --- batches --------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 120), st.integers(1, 9)).filter(lambda s: s[0] >= s[1])


def slots(loader, count):
    """The first token of the first `count` rows that a loader of batch size 1 serves."""
    return [int(loader.batch(step)[0, 0]) for step in range(count)]


@settings(deadline=None)
@given(shapes, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_has_every_block_of_one_phase_exactly_once(root, shape, seed, epoch):
    count, length = shape
    loader = BlockLoader(numbered(root, count), length, 1, seed)
    size = loader.blocks_per_epoch
    starts = sorted(slots(loader, size * (epoch + 1))[size * epoch :])
    phase = starts[0]
    assert starts == [phase + length * m for m in range(size)]
    assert 0 <= phase < length
    assert starts[-1] + length <= count
    assert size == max(1, (count - length + 1) // length)


@settings(deadline=None)
@given(shapes, st.integers(1, 4), st.integers(1, 5), st.integers(0, 9))
def test_ranks_see_together_what_one_rank_sees(root, shape, world, batch_size, step):
    count, length = shape
    store = numbered(root, count)
    ranks = [BlockLoader(store, length, batch_size, 7, r, world).batch(step) for r in range(world)]
    alone = BlockLoader(store, length, batch_size * world, 7).batch(step)
    assert alone.shape == (batch_size * world, length)
    assert alone.dtype == np.int64
    assert np.array_equal(np.stack(ranks, axis=1).reshape(alone.shape), alone)
    assert np.array_equal(alone, alone[:, :1] + np.arange(length))  # each row is one whole block


def test_ranks_are_disjoint_within_an_epoch(root):
    store = numbered(root, 1000)
    loaders = [BlockLoader(store, 10, 8, seed=1, rank=r, world=3) for r in range(3)]
    steps = loaders[0].blocks_per_epoch // (3 * 8)
    rows = [int(row[0]) for loader in loaders for t in range(steps) for row in loader.batch(t)]
    assert len(rows) == 3 * 8 * steps
    assert len(set(rows)) == len(rows)


def test_a_batch_depends_on_the_step_alone_not_on_what_was_asked_before(root):
    store = numbered(root, 500)
    forward = BlockLoader(store, 7, 6, seed=3)
    seen = [forward.batch(step) for step in range(40)]  # some three and a half epochs
    backward = BlockLoader(store, 7, 6, seed=3)
    for step in reversed(range(40)):
        assert np.array_equal(backward.batch(step), seen[step])


def test_epochs_and_seeds_differ_in_order_and_phase(root):
    store = numbered(root, 2000)
    loader = BlockLoader(store, 10, 1, seed=0)
    size = loader.blocks_per_epoch
    served = slots(loader, 12 * size)
    epochs = [served[e * size : (e + 1) * size] for e in range(12)]
    assert len({tuple(e) for e in epochs}) == 12
    assert len({min(e) for e in epochs}) > 3  # phases, uniform on ten values
    assert all(e != sorted(e) for e in epochs)
    assert slots(BlockLoader(store, 10, 1, seed=1), size) not in epochs


def test_all_phases_are_equally_likely(root):
    store = numbered(root, 49)  # each phase leaves nine whole blocks, the last one just so
    phases = [BlockLoader(store, 5, 1, seed).batch(0)[0, 0] % 5 for seed in range(2000)]
    counts = np.bincount(phases, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # χ² with 4 degrees of freedom, p = 0.001


def test_a_store_of_one_block_gives_that_block(root):
    batch = BlockLoader(numbered(root, 5), 5, 3, seed=0).batch(11)
    assert batch.tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"length": 11}, r"`length` must be in 1\.\.10"),
        ({"length": 0}, "`length`"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"rank": 2, "world": 2}, "`rank`"),
        ({"rank": -1}, "`rank`"),
    ],
)
def test_arguments_out_of_range_are_named(root, change, rule):
    arguments = {"length": 5, "batch_size": 2, "seed": 0} | change
    with pytest.raises(ValueError, match=rule):
        BlockLoader(numbered(root, 10), **arguments)


def test_a_negative_step_is_refused(root):
    with pytest.raises(ValueError, match="`step` must be at least 0, got -1"):
        BlockLoader(numbered(root, 10), 5, 1, 0).batch(-1)


def test_blocks_longer_than_the_store_are_refused(root):
    with pytest.raises(
        ValueError, match=r"`length` must be in 1..10, the tokens of .*10\.bin, got 11"
    ):
        numbered(root, 10).blocks(11)
