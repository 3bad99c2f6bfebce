from dataclasses import replace

import numpy as np
import pytest
import torch
from test_readme import load_script

from selfspec.data.loader import TokenStore, spread, write_store
from selfspec.data.ragged import RaggedStore, write_sequences
from selfspec.lengths import Lengths
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.recipes import ALL, Recipe, books27, proteins, text8, uniref50


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    tokens = np.random.default_rng(0).integers(27, size=2000)
    return write_store(tmp_path_factory.mktemp("data") / "train.bin", [tokens], 27)


def shrunk(recipe: Recipe) -> Recipe:
    trunk = replace(recipe.trunk, width=32, blocks=1, heads=2, length=16)
    head = recipe.head and replace(recipe.head, heads=2)
    recipe = replace(recipe, trunk=trunk, head=head, valid_rows=4)
    return recipe.override(steps=2, batch_size=4)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory) -> RaggedStore:
    rng = np.random.default_rng(0)
    rows = [rng.integers(20, size=size) for size in rng.integers(1, 25, size=40)]
    return write_sequences(tmp_path_factory.mktemp("ragged") / "train.bin", rows, 20)


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_is_complete(name, store, ragged):
    recipe = shrunk(ALL[name](seed=3))
    protein = name.startswith("proteins")
    assert recipe.name == name
    assert recipe.train.seed == 3
    trunk = proteins.trunk() if protein else books27.trunk()
    start = shrunk(trunk).build() if recipe.needs_start else None
    data = ragged if protein else store
    trainer = recipe.trainer(None, data, data, start, device="cpu")
    assert trainer.run(progress=False)
    assert trainer.validation
    assert trainer.model.tokenizer.vocab_size == recipe.trunk.vocab_size == data.vocab_size
    if isinstance(trainer.model, SSMD):
        assert trainer.model.lengths == (Lengths.of(ragged.lengths, 16) if protein else None)


def test_the_protein_models_have_their_sizes():
    with torch.device("meta"):
        model = proteins.joint().build()
    sizes = {"trunk": 0, "head": 0}
    for name, weight in model.named_parameters():
        sizes[name.split(".")[0]] += weight.numel()
    assert 10e6 < sizes["trunk"] < 20e6
    assert 0 < sizes["head"] < sizes["trunk"] / 8


# UniRef50, on a stand-in for its trunk


def esm_store(folder) -> RaggedStore:
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, 24, size=size) for size in rng.integers(1, 25, size=40)]
    return write_sequences(folder / "train.bin", rows, 32)


def test_uniref50_trains_the_head_alone(tmp_path, ragged):
    shape = TrunkConfig(vocab_size=32, length=16, width=32, blocks=1, heads=2)
    model = uniref50.attach(Trunk(shape), replace(uniref50.HEAD, heads=2))
    assert model.tokenizer is not None
    assert model.tokenizer.encode("L").tolist() == [4]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = esm_store(tmp_path)
    changes = {"steps": 3, "batch_size": 8, "accumulate": 2}
    trainer = uniref50.trainer(model, tmp_path / "run", data, data, "cpu", **changes)
    assert trainer.run(progress=False)
    assert trainer.validation.keys() == {"draft", "target"}
    for name, value in model.state_dict().items():
        if name.startswith("trunk."):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.state_dict()["head.project.weight"], before["head.project.weight"])
    assert model.lengths == Lengths.of(data.lengths, 16)
    with pytest.raises(ValueError, match=r"`trunk.vocab_size` must be 20, .* got 32"):
        uniref50.trainer(model, None, ragged, device="cpu")
    with pytest.raises(ValueError, match="`trunk` must have ESM-2's 32 tokens"):
        uniref50.attach(Trunk(replace(shape, vocab_size=20)), replace(uniref50.HEAD, heads=2))


def test_uniref50_is_as_published():
    made = uniref50.settings()
    assert (made.adamw.lr, made.adamw.betas, made.clip) == (1.5e-4, (0.9, 0.999), 1.0)
    assert (uniref50.LENGTH, uniref50.HEAD.blocks) == (1022, 1)


def test_shapes():
    shapes = {name: (r.trunk.blocks, r.trunk.width, r.head) for name, r in made().items()}
    assert shapes["books27-trunk"] == (11, 256, None)
    assert shapes["books27-plain12"] == (12, 256, None)
    assert shapes["books27-judge"] == (8, 384, None)
    assert shapes["books27-small-judge"] == (6, 192, None)
    for name, recipe in made().items():
        with torch.device("meta"):
            kind = AutoregressiveModel if "judge" in name else SSMD
            assert isinstance(recipe.build(), kind)


def made() -> dict[str, Recipe]:
    return {name: make() for name, make in ALL.items()}


def test_text8_is_the_published_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in text8().build().parameters())
    assert 145e6 < count < 160e6


def test_the_head_and_joint_fit_the_trunk():
    assert books27.head().trunk == books27.joint().trunk == books27.trunk().trunk
    assert books27.head().head == books27.joint().head


def test_the_same_seed_builds_the_same_model():
    recipe = shrunk(books27.joint())
    torch.manual_seed(5)
    first = recipe.build().state_dict()
    second = recipe.build().state_dict()
    other = recipe.override(seed=1).build().state_dict()
    name = "trunk.embedding.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])


def test_errors_name_the_argument(store, tmp_path):
    with pytest.raises(ValueError, match="`start` must be a trained model"):
        shrunk(books27.head()).trainer(None, store)
    with pytest.raises(ValueError, match=r"`batch_size` must be a multiple of .* 3, got 4"):
        shrunk(books27.trunk()).trainer(None, store, world=3)
    letters = write_store(tmp_path / "other.bin", [np.zeros(100, np.int64)], 4)
    with pytest.raises(ValueError, match=r"`trunk.vocab_size` must be 4, .*, got 27"):
        shrunk(books27.trunk()).trainer(None, letters)


def test_spread():
    blocks = np.arange(10).reshape(10, 1)
    assert spread(blocks, 4).ravel().tolist() == [0, 3, 6, 9]
    assert spread(blocks, 20).ravel().tolist() == list(range(10))
    assert spread(blocks, 1).ravel().tolist() == [0]


def test_a_trunk_gets_more_blocks_without_another_law_or_is_cut():
    with_blocks = load_script("books27").with_blocks
    trunk = Trunk(TrunkConfig(vocab_size=5, length=12, width=16, blocks=2, heads=2)).eval()
    tokens = torch.arange(12).expand(2, -1) % 5
    count = trunk.config.blocks
    deeper, cut = with_blocks(trunk, count + 2).eval(), with_blocks(trunk, 1).eval()
    assert torch.equal(deeper(tokens), trunk(tokens))
    assert [trunk.config.blocks, len(deeper.blocks), len(cut.blocks)] == [count, count + 2, 1]
    assert all(torch.equal(x, trunk.state_dict()[name]) for name, x in cut.state_dict().items())
