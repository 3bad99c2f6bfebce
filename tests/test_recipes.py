from dataclasses import replace

import numpy as np
import pytest
import torch

from selfspec.data.loader import TokenStore, spread, write_store
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.recipes import ALL, Recipe, books27, text8


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    tokens = np.random.default_rng(0).integers(27, size=2000)
    return write_store(tmp_path_factory.mktemp("data") / "train.bin", [tokens], 27)


def shrunk(recipe: Recipe) -> Recipe:
    trunk = replace(recipe.trunk, width=32, blocks=1, heads=2, length=16)
    head = recipe.head and replace(recipe.head, heads=2)
    recipe = replace(recipe, trunk=trunk, head=head, valid_rows=4)
    return recipe.override(steps=2, batch_size=4)


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_is_complete(name, store):
    recipe = shrunk(ALL[name](seed=3))
    assert recipe.name == name
    assert recipe.train.seed == 3
    start = shrunk(books27.trunk()).build() if recipe.needs_start else None
    trainer = recipe.trainer(None, store, store, start, device="cpu")
    assert trainer.run(progress=False)
    assert trainer.validation
    assert trainer.model.tokenizer.vocab_size == 27


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
