import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hubs
import numpy as np
import pytest
import torch

import selfspec as ss
from selfspec.cli import main
from selfspec.data.loader import TokenStore, spread, write_store
from selfspec.data.ragged import RaggedStore, write_sequences
from selfspec.data.tokenizers import AMINO_ACIDS
from selfspec.lengths import Lengths
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.recipes import ALL, Recipe, books27, proteins, text8, uniref50
from selfspec.train import Cosine


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


@pytest.fixture(scope="module")
def dplm(tmp_path_factory) -> str:
    """A published model of DPLM's class and vocabulary, two layers deep."""
    folder = tmp_path_factory.mktemp("dplm")
    made = hubs.esm(hidden_size=80, vocab_size=33, mask_token_id=32, pad_token_id=1)
    made.save_pretrained(folder)
    hubs.esm_tokenizer(folder).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def uniref(tmp_path) -> Path:
    """Sixty proteins, some longer than the stand-in can read."""
    rng = np.random.default_rng(0)
    letters = np.array(list(AMINO_ACIDS))
    path = tmp_path / "uniref50.fasta.gz"
    with gzip.open(path, "wt") as file:
        for i in range(60):
            file.write(f">UniRef50_{i} n=1\n{''.join(letters[rng.integers(20, size=5 + i)])}\n")
    return path


def test_uniref50_trains_a_block_on_a_frozen_trunk_by_name(dplm, uniref, tmp_path, capsys):
    command = ["train", "uniref50", "--data", str(uniref), "--out", str(tmp_path / "run"),
               "--start", dplm, "--device", "cpu"]  # fmt: skip
    assert main([*command, "--steps", "3", "--batch-size", "8", "--accumulate", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3
    model: Any = ss.load(tmp_path / "run" / "model")
    assert (model.head.config.blocks, model.head.config.heads) == (1, 20)
    assert (model.frame, model.length) == (((0,), (2,)), 38)
    fresh: Any = ss.attach_head(dplm, heads=20)
    for one, other in zip(model.trunk.parameters(), fresh.trunk.parameters(), strict=True):
        assert one.equal(other)
    assert not model.head.project.weight.equal(fresh.head.project.weight)
    longest = max(len(text) for text in ss.generate(model, 50, rounds=1))
    assert longest == 36  # residues; longer proteins were cut
    store = RaggedStore(tmp_path / "run" / "data" / "train.bin")
    assert {row[0] for row in map(store.__getitem__, range(len(store)))} == {0}
    assert len({*store.lengths.tolist()}) > 20  # a row a protein


def test_uniref50_is_as_published(dplm, uniref, tmp_path):
    assert (uniref50.TRUNK, uniref50.LENGTH) == ("airkingbd/dplm_150m", 1022 + 2)
    made: Any = uniref50.trainer(uniref, tmp_path, dplm, "cpu", progress=False)
    config = made.config
    assert (config.adamw.lr, config.adamw.betas, config.clip) == (1.5e-4, (0.9, 0.999), 1.0)
    assert (config.muon, config.batch_size) == (None, 256)
    assert config.schedule == Cosine(warmup=10_000)
    head = made.model.head.config
    assert (head.heads, head.blocks, head.dropout) == (20, 1, 0.1)
    assert made.objective.freeze_trunk
    assert made.objective.observed == (0, 2)


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
