import gzip
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hubs
import numpy as np
import pytest
import torch
from test_readme import load_script

import selfspec as ss
from selfspec import checkpoint
from selfspec.arena.sweep import fingerprint
from selfspec.cli import main
from selfspec.data.loader import TokenStore, spread, write_store
from selfspec.data.ragged import RaggedStore, write_sequences
from selfspec.data.tokenizers import AMINO_ACIDS, CharTokenizer
from selfspec.lengths import Lengths
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.scorer import Scorer
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.recipes import (
    ALL,
    Recipe,
    books27,
    books_bpe,
    guides,
    openwebtext,
    proteins,
    text8,
    uniref50,
)
from selfspec.recipes.cost import cost, flops, measured_speed
from selfspec.recipes.recipe import make_trainer
from selfspec.sampling import GuidedStarShapedSampler, PolicySampler
from selfspec.train import Cosine, parallel


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    tokens = np.random.default_rng(0).integers(27, size=2000)
    return write_store(tmp_path_factory.mktemp("data") / "train.bin", [tokens], 27)


def shrunk(recipe: Recipe) -> Recipe:
    trunk = replace(recipe.trunk, width=32, blocks=1, heads=2, length=16)
    if recipe.tokenizer is None:  # the vocabulary is that of the data
        trunk = replace(trunk, vocab_size=27)
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
    start = replace(recipe, head=None).build() if recipe.needs_start else None
    data = ragged if protein else store
    trainer = recipe.trainer(None, data, data, start, device="cpu")
    assert trainer.run(progress=False)
    assert trainer.validation
    assert recipe.trunk.vocab_size == data.vocab_size
    if recipe.tokenizer is not None:
        assert trainer.model.tokenizer.vocab_size == data.vocab_size
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


def test_a_stage_has_the_steps_that_its_time_allows(ragged, tmp_path, monkeypatch):
    script = load_script("books27")
    made = {name: getattr(proteins, name) for name in ("trunk", "head", "windows")}
    tiny = {name: lambda steps, f=f: shrunk(f(steps)).override(steps=steps, muon=None)
            for name, f in made.items()}  # fmt: skip
    shutil.copytree(ragged.path.parent, data := tmp_path / "data")
    for name in ("train.bin", "train.bin.json", "train.lengths", "train.lengths.json"):
        shutil.copy(data / name, data / name.replace("train", "valid"))
    planned = []
    monkeypatch.setattr(script, "affordable", lambda t, *a: planned.append((t.folder, *a)) or 3)
    stages = ["trunk=2s", "head=2s", "windows=4@head"]
    for _ in range(2):  # the second time all are finished, and nothing is planned again
        monkeypatch.setattr(
            sys, "argv", ["x", "--data", str(data), "--runs", str(tmp_path), *stages]
        )
        script.main(SimpleNamespace(**tiny))
    assert [(folder, seconds, ragged) for folder, seconds, _, ragged in planned] == 2 * [
        (None, 1.8, True)
    ]  # fmt: skip
    runs = {name: ss.load(tmp_path / name / "model", "cpu") for name in tiny}
    about = {n: checkpoint.load_config(tmp_path / n / "model")["training"] for n in tiny}
    assert {name: each["step"] for name, each in about.items()} == {
        "trunk": 3, "head": 3, "windows": 4
    }  # fmt: skip
    assert about["windows"]["validation"].keys() == {"draft", "target", "window"}
    for name in ("head", "windows"):  # frozen
        assert fingerprint(runs[name].trunk) == fingerprint(runs["trunk"].trunk)


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


def test_openwebtext_is_as_published():
    made = openwebtext()
    assert (made.trunk.vocab_size, made.trunk.length, made.trunk.blocks) == (50257, 1024, 11)
    assert made.head is not None
    assert (made.head.blocks, made.head.dropout, made.trunk.dropout) == (1, 0.1, 0.1)
    settings = made.train
    assert (settings.steps, settings.batch_size, settings.clip) == (1_000_000, 256, 1.0)
    assert (settings.adamw.lr, settings.adamw.betas) == (1.5e-4, (0.9, 0.999))
    assert (settings.adamw.weight_decay, settings.schedule) == (0.01, Cosine(warmup=10_000))
    assert settings.muon is None
    assert 145e6 < cost(made).parameters < 170e6


def test_a_recipe_without_a_tokenizer_takes_that_of_the_data():
    made = openwebtext().read_by(CharTokenizer("abc"))
    assert made.trunk.vocab_size == 3
    assert made.tokenizer is not None
    kept = books27.trunk().read_by(CharTokenizer("abc"))
    assert kept.trunk.vocab_size == 27


def test_flops_count_every_matrix_and_all_of_attention():
    recipe = shrunk(books_bpe.joint())
    assert recipe.head is not None
    parts = flops(recipe.trunk, recipe.head)
    model = recipe.build()
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.ndim == 2}
    del matrices["trunk.embedding.weight"]  # is looked up
    attention = 12 * recipe.trunk.length * recipe.trunk.width
    for part in ("trunk", "head"):
        own = sum(n for name, n in matrices.items() if name.startswith(f"{part}.blocks"))
        if part == "head":
            own += matrices["head.fuse.weight"] + matrices["head.project.weight"]
        assert parts[part] == 6 * own + attention
    whole = 2 * matrices["trunk.unembedding.weight"]
    looked_at = [recipe.trunk.length - i for i in range(recipe.trunk.length)]
    draft = sum(looked_at) / recipe.trunk.length**2 * whole
    target = sum(n - 1 for n in looked_at) / recipe.trunk.length**2 * whole
    assert parts["unembedding"] == pytest.approx(3 * (draft + target))
    frozen = flops(recipe.trunk, recipe.head, frozen=True)
    assert frozen["head"] == parts["head"]
    assert frozen["trunk"] == parts["trunk"] / 3
    assert frozen["unembedding"] == pytest.approx(draft + 2 * target)
    assert flops(recipe.trunk, None)["unembedding"] == pytest.approx(3 * draft)
    assert flops(replace(recipe.trunk, causal=True), None)["unembedding"] == 3 * whole


def test_gpu_hours_follow_from_the_measured_speed(tmp_path):
    report = tmp_path / "training.json"
    assert measured_speed(768, report) is None
    report.write_text(json.dumps({"rows": [{"model": "books27", "tokens_per_s": 9e6}]}))
    assert measured_speed(768, report) is None
    small = measured_speed(320, report)
    assert small is not None
    trunk = cost(books27.joint())
    assert trunk.gpu_hours(small) == pytest.approx(trunk.tokens / 9e6 / 3600)
    rows = [{"model": "150M-1024", "gpus": n, "tokens_per_s": n * 2e5 * (0.9 if n > 1 else 1)}
            for n in (2, 1)]  # fmt: skip
    report.write_text(json.dumps({"rows": rows}))
    speed = measured_speed(1024, report)
    assert speed is not None
    whole = cost(openwebtext())
    assert whole.tokens == 1_000_000 * 256 * 1024
    assert whole.gpu_hours(speed) == pytest.approx(whole.tokens / 2e5 / 3600)
    report.write_text('{"rows": [{}]}')
    with pytest.raises(ValueError, match="`path` must be a report of training"):
        measured_speed(768, report)


def test_the_head_and_joint_fit_the_trunk():
    assert books_bpe.head().trunk == books_bpe.joint().trunk == books_bpe.trunk().trunk
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


def test_errors_name_the_argument(store, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`start` must be a trained model"):
        shrunk(books27.head()).trainer(None, store)
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "group", lambda: parallel.Group(0, 3))
        with pytest.raises(ValueError, match=r"`batch_size` must be a multiple of .* 3, got 4"):
            shrunk(books27.trunk()).trainer(None, store)
    letters = write_store(tmp_path / "other.bin", [np.zeros(100, np.int64)], 4)
    with pytest.raises(ValueError, match=r"`trunk.vocab_size` must be 4, .*, got 27"):
        shrunk(books27.trunk()).trainer(None, letters)


def test_a_run_goes_on_with_the_data_that_it_began_with(store, tmp_path):
    recipe = shrunk(books27.trunk()).override(steps=1)
    other = write_store(tmp_path / "other.bin", [store.tokens[::-1]], 27)
    assert recipe.trainer(tmp_path, store, device="cpu").run(progress=False)
    with pytest.raises(ValueError, match=r"`data` must be sha256:\w{16}, .*, got sha256:\w{16};"):
        recipe.trainer(tmp_path, other, device="cpu").run(progress=False)
    assert recipe.trainer(tmp_path, store, device="cpu").run(progress=False)


def test_spread():
    blocks = np.arange(10).reshape(10, 1)
    assert spread(blocks, 4).ravel().tolist() == [0, 3, 6, 9]
    assert spread(blocks, 20).ravel().tolist() == list(range(10))
    assert spread(blocks, 1).ravel().tolist() == [0]
    assert spread(blocks[:8], 4).ravel().tolist() == [0, 2, 5, 7]


def test_a_trunk_gets_more_blocks_without_another_law():
    with_blocks = load_script("books27").with_blocks
    trunk = Trunk(TrunkConfig(vocab_size=5, length=12, width=16, blocks=2, heads=2)).eval()
    tokens = torch.arange(12).expand(2, -1) % 5
    count = trunk.config.blocks
    deeper = with_blocks(trunk, count + 2).eval()
    assert torch.equal(deeper(tokens), trunk(tokens))
    assert [trunk.config.blocks, len(deeper.blocks)] == [count, count + 2]


# Small networks beside a model


def test_guides_are_trained_by_a_call(store, tmp_path):
    model = shrunk(books27.joint()).build()
    assert isinstance(model, SSMD)
    few = {"device": "cpu", "steps": 2, "batch_size": 4}
    errors = guides.errors(model, tmp_path / "errors", store, store, **few)
    policy = guides.policy(
        model, lambda texts, pad: torch.ones(len(texts)), tmp_path / "policy", store, group=3, **few
    )
    assert errors.run(progress=False)
    assert policy.run(progress=False)
    masked = torch.full((3, 16), 27)
    predictor, decides = (Scorer.load(tmp_path / n / "model") for n in ("errors", "policy"))
    for sampler in (GuidedStarShapedSampler(model, predictor, 4), PolicySampler(model, decides)):
        assert (sampler.sample(masked).tokens < 27).all()
    letters = write_store(tmp_path / "other.bin", [np.zeros(100, np.int64)], 4)
    with pytest.raises(ValueError, match=r"`trunk.vocab_size` must be 4, .*, got 27"):
        guides.errors(model, None, letters, **few)


def test_training_a_model_drops_what_was_measured_for_the_weights_before(store: TokenStore):
    recipe = shrunk(books27.joint())
    model = recipe.build()
    assert isinstance(model, SSMD)
    model.calibration = [{"nfe": 8.0}]
    make_trainer(model, recipe.objective, recipe.train, None, store, None, 16, 4, "cpu")
    assert model.calibration == []
