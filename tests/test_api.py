"""The façade: prompts, round trips, training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import selfspec as ss
from selfspec import prompts, public
from selfspec.data.corpus import write_corpus
from selfspec.nn.transformer import TrunkConfig
from selfspec.recipes import Recipe
from selfspec.train import Diffusion, TrainConfig

MASK = 27


@pytest.fixture(scope="module")
def model() -> ss.SSMD:
    return tiny.model()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    text = "the cat sat on the mat and the dog saw it " * 40
    write_corpus(folder, {"train": [text], "valid": [text[:600]]}, ss.CharTokenizer())
    return folder


# Generation


def test_texts_have_the_length_asked_for(model: ss.SSMD):
    assert [len(text) for text in ss.generate(model, 3)] == [tiny.LENGTH] * 3
    assert [len(text) for text in ss.generate(model, 2, length=7)] == [7, 7]


def test_a_row_is_the_same_in_any_run(model: ss.SSMD):
    many = ss.generate(model, 5, seed=3).tokens
    assert torch.equal(many[:2], ss.generate(model, 2, seed=3).tokens)
    assert torch.equal(many, ss.generate(model, 5, seed=3, batch_size=2).tokens)
    assert not torch.equal(many, ss.generate(model, 5, seed=4).tokens)


def test_processes_share_a_run(model: ss.SSMD):
    whole = ss.generate(model, 5, seed=3, window=4, rounds=2)
    parts = [
        ss.generate(model, n, seed=3, first=at, window=4, rounds=2) for n, at in ((2, 0), (3, 2))
    ]
    assert [text for part in parts for text in part] == whole.text


def test_prompts_stay_and_gaps_are_filled(model: ss.SSMD):
    samples = ss.generate(model, 2, prompt=["ab__e", "the ___ sat on it"])
    assert samples.text is not None
    for text, prompt in zip(samples.text, ["ab__e"] * 2 + ["the ___ sat on it"] * 2, strict=True):
        assert len(text) == len(prompt)
        assert "_" not in text
        assert all(p in ("_", t) for t, p in zip(text, prompt, strict=True))


def test_a_prompt_is_continued_to_the_right(model: ss.SSMD):
    (text,) = ss.generate(model, prompt="the cat ", length=20)
    assert text.startswith("the cat ")
    assert len(text) == 20


def test_another_mask_character(model: ss.SSMD):
    (text,) = ss.generate(model, prompt="a??b", mask_char="?")
    assert (text[0], text[-1], len(text)) == ("a", "b", 4)


def test_a_prompt_without_gaps_costs_nothing(model: ss.SSMD):
    samples = ss.generate(model, prompt="the cat")
    assert list(samples) == ["the cat"]
    assert (samples.nfe == 0).all()


def test_padding_does_not_change_a_row():
    precise = tiny.model().double()
    alone = list(ss.generate(precise, prompt="a___b", seed=5))
    assert alone == list(ss.generate(precise, prompt=["a___b", "c" + "_" * 20], seed=5))[:1]


def test_a_trace_comes_with_every_row(model: ss.SSMD):
    samples = ss.generate(model, 3, trace=True, batch_size=2)
    assert samples.trace is not None
    assert [len(passes) for passes in samples.trace] == samples.trunk_passes.tolist()


def test_the_engine_draws_what_the_reference_draws():
    precise = tiny.model().double()
    asked: list[dict[str, Any]] = [
        {}, {"window": 5, "rounds": 2}, {"prompt": ["ab__e", "c" + "_" * 20]}
    ]  # fmt: skip
    for options in asked:
        drawn = [ss.generate(precise, 3, seed=2, batch_size=2, engine=engine, **options)
                 for engine in (None, "reference", ss.Engine(precise, 2))]  # fmt: skip
        assert all(torch.equal(drawn[0].tokens, other.tokens) for other in drawn[1:])
        assert all(torch.equal(drawn[0].nfe, other.nfe) for other in drawn[1:])


def test_what_the_engine_cannot_run_is_drawn_by_the_reference(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "selfspec")

    class Own(ss.AnyOrderSampler):
        def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
            return super().log_probs(logits)

    made = tiny.model()
    samples = ss.generate(made, 2, sampler=Own(made), length=5)
    assert samples.trunk_passes.tolist() == [5, 5]
    assert "drawn by the reference, not by the engine: Own has its own `log_probs`" in caplog.text


def test_a_given_sampler_is_used(model: ss.SSMD):
    samples = ss.generate(model, 2, sampler=ss.AnyOrderSampler(model))
    assert samples.trunk_passes.tolist() == [tiny.LENGTH] * 2
    with pytest.raises(ValueError, match="`sampler` brings its own settings"):
        ss.generate(model, sampler=ss.AnyOrderSampler(model), nfe=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 0}, "`num` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num": 1.5}, r"`num` must be a whole number, got 1\.5"),
        ({"batch_size": 2.5}, r"`batch_size` must be a whole number, got 2\.5"),
        ({"seed": 1.5}, r"`seed` must be a whole number, got 1\.5"),
        ({"rounds": 1.5}, r"`rounds` must be a whole number, got 1\.5"),
        ({"window": 3.5}, r"`window` must be a whole number, got 3\.5"),
        ({"length": 3.5}, r"`length` must be a whole number, got 3\.5"),
        ({"first": -1}, r"`first` must be at least 0, got -1"),
        ({"length": 25}, r"`length` must be in 1\.\.24, the model's, got 25"),
        ({"length": 0}, r"`length` must be in 1\.\.24, the model's, got 0"),
        (
            {"prompt": "a" * 25},
            "`prompt` may have at most 24 tokens, the model's length, got 25",
        ),
        ({"prompt": "abc", "length": 2}, "`length` must be at least 3, the prompt's, got 2"),
        ({"prompt": ""}, "`prompt` must have at least one character, got none"),
        ({"prompt": []}, "`prompt` must hold at least one text"),
        ({"prompt": "ab_é"}, "got 'é' at index 3"),
        ({"prompt": "a_", "mask_char": "b"}, "`mask_char` must be one character outside"),
        ({"nfe": 0}, "`nfe` must be at least 1, got 0"),
        ({"window": 0}, "`window` must be at least 1, got 0"),
        ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"engine": "fast"}, "`engine` must be an Engine, \"reference\" or None, got 'fast'"),
        ({"nfe": 4, "rounds": 2}, "give one of"),
        ({"nfe": 4}, "`nfe` needs a calibration table, which this checkpoint lacks"),
        ({"quality": "fast"}, "`quality` needs a calibration table"),
        ({"prompt": 5}, "`prompt` must be a text or several, got 5"),
        ({"prompt": b"a_"}, "`prompt` must be a text or several, got b'a_'"),
        ({"prompt": ["a_", 5]}, r"`prompt` must be a text or several, got \['a_', 5\]"),
        ({"prompt": "a_", "mask_char": 5}, "`mask_char` must be one character outside"),
        ({"nfe": "4"}, "`nfe` must be a number, got '4'"),
        ({"temperature": "1"}, "`temperature` must be a number, got '1'"),
        ({"top_p": "1"}, "`top_p` must be a number, got '1'"),
        ({"order": "uniform"}, r"`order` must be a rule, such as UniformOrder\(\), got 'uniform'"),
        ({"order": ss.UniformOrder}, "`order` must be a rule"),
        ({"sampler": "plain"}, "`sampler` must be a Sampler, got 'plain'"),
    ],
)
def test_bad_requests_name_argument_rule_and_value(model: ss.SSMD, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ss.generate(model, **options)


MADE, JUDGE = tiny.model(), tiny.judge()
TOKENS = torch.zeros(1, 3, dtype=torch.int64)
NO_MODEL = "`model` must be a masked diffusion model, as `load` gives, got 'books27'"


@pytest.mark.parametrize(
    ("call", "wrong", "message"),
    [
        (lambda x: ss.generate(x), "books27", NO_MODEL),
        (lambda x: ss.generate(x), JUDGE, "as `load` gives, got AutoregressiveModel"),
        (lambda x: ss.SpeculativeSampler(x), "books27", NO_MODEL),
        (lambda x: ss.Engine(x), "books27", NO_MODEL),
        (lambda x: ss.log_likelihood(x, TOKENS), "books27", NO_MODEL),
        (lambda x: ss.one_pass_score(x, TOKENS), "books27", NO_MODEL),
        (lambda x: ss.mutation_effect(x, "MK", ["M1K"]), "books27", NO_MODEL),
        (lambda x: ss.train_head(x, "text", "run"), "books27", NO_MODEL),
        (lambda x: ss.train_adapted(x, "text", "run"), "books27", NO_MODEL),
        (lambda x: ss.calibrate(x, JUDGE), "books27", NO_MODEL),
        (lambda x: ss.calibrate(MADE, x), "books27-judge", "`judge` must be a judge, as `load_ju"),
        (
            lambda x: ss.save(x, "out"),
            "x",
            "`model` must be a masked diffusion model or a judge, g",
        ),
        (lambda x: ss.train(x, "data"), "text8", "`what` must be a recipe or a model, got 'text8'"),
        (
            lambda x: ss.log_likelihood(MADE, x),
            [[1]],
            r"`tokens` must be a \(B, L\) int64 tensor, ",
        ),
        (lambda x: ss.log_likelihood(MADE, TOKENS, pad=x), [], "`pad` must be a bool tensor of th"),
        (lambda x: ss.AnyOrderSampler(MADE).sample(x), None, r"`tokens` must be a \(B, L\) int64 "),
    ],
)
def test_arguments_of_another_kind_are_named(
    call: Callable[[Any], object], wrong: Any, message: str
):
    with pytest.raises(ValueError, match=message):
        call(wrong)


def test_prompts_are_laid_out_with_pads():
    tokens, pad = prompts.layout(["a_", "bcd"], ss.CharTokenizer(), MASK, longest=5)
    assert tokens[0].tolist()[:2] == [1, MASK]
    assert pad.tolist() == [[False, False, True], [False, False, False]]


# Checkpoints


def test_a_round_trip_gives_the_same_texts(tmp_path: Path):
    made = tiny.model()
    made.calibration = [tiny.row(8, 5.0)]
    ss.save(made, tmp_path / "mine")
    loaded = ss.load(tmp_path / "mine")
    assert list(ss.generate(loaded, 2, nfe=9)) == list(ss.generate(made, 2, nfe=9))


def test_models_and_judges_are_told_apart(tmp_path: Path):
    ss.save(tiny.judge(), tmp_path / "judge")
    ss.save(tiny.model(), tmp_path / "model")
    with pytest.raises(ValueError, match="must be a masked diffusion model"):
        ss.load(tmp_path / "judge")
    with pytest.raises(ValueError, match="must be an autoregressive judge"):
        ss.load_judge(tmp_path / "model")


# Training


def test_a_recipe_trains_and_resumes(corpus: Path, tmp_path: Path):
    settings = TrainConfig(steps=3, batch_size=2, valid_every=2, save_every=1)
    recipe = Recipe("tiny", TrunkConfig(27, 24, 16, 2, 2), Diffusion(), settings)
    ss.train(recipe, corpus, tmp_path, progress=False, device="cpu")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["training"]["step"] == 3
    again = ss.train(recipe, corpus, tmp_path, steps=3, progress=False, device="cpu")
    stored = ss.load(tmp_path / "model")
    for name, weight in stored.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_a_model_trains_further_as_a_copy(corpus: Path):
    made = tiny.model()
    before = {name: weight.clone() for name, weight in made.state_dict().items()}
    trained = ss.train(made, corpus, steps=2, batch_size=2, progress=False, device="cpu")
    assert all(torch.equal(w, before[n]) for n, w in made.state_dict().items())
    assert any(not torch.equal(w, before[n]) for n, w in trained.state_dict().items())


def test_what_a_recipe_or_a_model_brings_itself_is_not_taken_twice(corpus: Path):
    settings = TrainConfig(steps=1, batch_size=2)
    recipe = Recipe("tiny", TrunkConfig(27, 24, 16, 2, 2), Diffusion(), settings)
    with pytest.raises(ValueError, match="`objective` goes with a model"):
        ss.train(recipe, corpus, objective=Diffusion())
    with pytest.raises(ValueError, match="`start` goes with a recipe"):
        ss.train(tiny.model(), corpus, start=tiny.model(), steps=1, batch_size=2)


def test_data_without_a_training_split(tmp_path: Path):
    write_corpus(tmp_path, {"valid": ["abc"]}, ss.CharTokenizer())
    with pytest.raises(ValueError, match="`data` must have a split 'train'"):
        ss.train(tiny.model(), tmp_path, steps=1, batch_size=1)


# The package


def test_the_public_function_is_found_after_its_namesake_package():
    import selfspec.train

    assert ss.train is public.train
    assert callable(selfspec.train)
    assert "generate" in dir(ss)
    with pytest.raises(AttributeError, match="nothing"):
        ss.nothing  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_project():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{ss.__version__}"\n' in project


def test_a_sampler_is_of_the_model_and_brings_its_own_temperature():
    model, other = tiny.model(), tiny.model(seed=1)
    sampler = ss.FixedCountSampler(model, steps=2)
    with pytest.raises(ValueError, match="`sampler` brings its own settings"):
        ss.generate(model, sampler=sampler, temperature=0.5)
    with pytest.raises(ValueError, match="`sampler` brings its own settings"):
        ss.generate(model, sampler=sampler, top_p=0.5)
    with pytest.raises(ValueError, match="`sampler` must be one of `model`, got another model's"):
        ss.generate(other, sampler=sampler)
