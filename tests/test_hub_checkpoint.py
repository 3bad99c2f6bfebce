import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hubs
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import selfspec as ss
from selfspec import checkpoint
from selfspec.cli import main
from selfspec.hub import HubTrunk, mdlm
from selfspec.hub.bert import MaskedLMTrunk

MAKE = {
    "bert": hubs.bert,
    "roberta": hubs.roberta,
    "modernbert": hubs.modernbert,
    "esm": hubs.esm,
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model as its owner published it."""
    return publish(hubs.bert(), tmp_path / "source")


def publish(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    hubs.tokenizer().save_pretrained(folder)
    return folder


def attached(source: Any, **options: Any) -> Any:
    """With a head that disagrees with its trunk."""
    model = ss.attach_head(source, heads=2, **options)
    assert model.head is not None
    nn.init.normal_(model.head.project.weight)
    return model


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def same(one: Any, other: Any) -> bool:
    """Drafts, targets and settings of two models."""
    tokens = torch.arange(5, 15).repeat(2, 1)
    tokens[:, 3:6] = one.mask_id
    order = torch.arange(10).flip(0).repeat(2, 1)
    revealed = torch.zeros(2, dtype=torch.int64)

    @torch.no_grad()
    def laws(model: Any) -> tuple[Tensor, Tensor]:
        hidden = model.encode(tokens)
        return model.draft(hidden), model.target(hidden, tokens, order, revealed)

    equal = all(x.equal(y) for x, y in zip(laws(one), laws(other), strict=True))
    return equal and (one.trunk.vocabulary, one.length) == (other.trunk.vocabulary, other.length)


def test_the_head_alone_is_saved_and_finds_its_trunk(source: Path, tmp_path: Path):
    model = attached(source, length=20, forbidden=[7])
    ss.save(model, tmp_path / "head")
    stored = load_file(tmp_path / "head" / "model.safetensors")
    assert all(name.startswith("head.") for name in stored)
    described = config_of(tmp_path / "head")["trunk"]
    assert (described["name"], described["revision"]) == (str(source), None)
    loaded = ss.load(tmp_path / "head")
    assert same(model, loaded)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.trunk.parameters())
    prompt = {"prompt": "AC__W", "rounds": 2, "seed": 3}
    assert ss.generate(model, **prompt).text == ss.generate(loaded, **prompt).text


def test_a_folder_is_found_from_anywhere(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model = attached(source.name)
    ss.save(model, tmp_path / "head")
    monkeypatch.chdir("/")
    assert same(model, ss.load(tmp_path / "head"))


def test_another_trunk_is_refused(source: Path, tmp_path: Path):
    ss.save(attached(source), tmp_path / "head")
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if name.endswith("intermediate.dense.weight"))
    weights[name][0, 0] += 1e-3  # one weight of all
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"`trunk` must have the weights that the head was made"):
        ss.load(tmp_path / "head")


def test_a_trunk_can_be_handed_in(source: Path, tmp_path: Path):
    model = attached(source)
    ss.save(model, tmp_path / "head")
    moved = source.rename(tmp_path / "elsewhere")
    assert same(model, ss.load(tmp_path / "head", trunk=str(moved)))
    own = hubs.bert()
    assert same(model, ss.load(tmp_path / "head", trunk=own))
    with pytest.raises(ValueError, match="got others"):
        ss.load(tmp_path / "head", trunk=hubs.bert(hidden_act="relu").bfloat16())
    with pytest.raises(ValueError, match="which is gone: give where it is as `trunk`"):
        ss.load(tmp_path / "head")


@pytest.mark.parametrize("family", MAKE)
def test_trunk_and_head_in_one_file(family: str, tmp_path: Path):
    source = publish(MAKE[family](), tmp_path / "source")
    model = attached(source)
    ss.save(model, tmp_path / "whole", merge=True)
    source.rename(tmp_path / "gone")
    loaded = ss.load(tmp_path / "whole")
    assert same(model, loaded)
    assert ss.generate(loaded, prompt="A_", rounds=1).text is not None
    assert loaded.trunk.source == model.trunk.source


def test_mdlm_in_one_file(tmp_path: Path):
    model = attached(hubs.dit())
    ss.save(model, tmp_path)
    assert same(model, ss.load(tmp_path))


def test_a_model_without_a_name_is_written_whole(tmp_path: Path):
    model = attached(hubs.bert(), tokenizer=hubs.tokenizer())
    ss.save(model, tmp_path)
    assert same(model, ss.load(tmp_path))


def test_a_trunk_that_was_trained_further_is_written_whole(source: Path, tmp_path: Path):
    model = attached(source)
    with torch.no_grad():
        model.trunk.model.bert.encoder.layer[0].output.dense.weight[0, 0] += 1e-3
    ss.save(model, tmp_path / "whole")
    assert config_of(tmp_path / "whole")["trunk"]["name"] == ""
    loaded = ss.load(tmp_path / "whole")
    assert same(model, loaded)
    ss.save(loaded, tmp_path / "again")  # it cannot be had from elsewhere, so whole again
    assert same(model, ss.load(tmp_path / "again"))


def test_half_precision_is_kept(tmp_path: Path):
    source = publish(hubs.bert().bfloat16(), tmp_path / "source")
    model = attached(source)
    assert model.trunk.dtype == torch.bfloat16
    for merge in (False, True):
        ss.save(model, tmp_path / "saved", merge=merge)
        loaded = ss.load(tmp_path / "saved")
        assert loaded.trunk.dtype == torch.bfloat16
        assert same(model, loaded)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head, saved alone, on a trunk whose classes are its owner's; the trunk has moved."""
    copies = str(tmp_path / "modules")  # where the library puts code, instead of one's home
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", copies)
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = hubs.publish_remote(tmp_path / "source")
    model = attached(str(source), trust_remote_code=True)
    assert isinstance(model.trunk, MaskedLMTrunk)
    ss.save(model, tmp_path / "head")
    source.rename(tmp_path / "moved")
    return tmp_path


def verbs(folder: Path) -> dict[str, list[str]]:
    """The command lines of those that load a model."""
    (folder / "text").write_text("ACDE")
    quick = ["--checkpoint", str(folder / "head"), "--rounds", "1", "--device", "cpu"]
    return {
        "sample": ["sample", *quick, "--length", "6"],
        "infill": ["infill", "AC__E", *quick],
        "score": ["score", str(folder / "text"), *quick, "--orders", "2"],
        "evaluate": ["evaluate", str(folder / "head"), "--rounds", "1", "--device", "cpu",
                     "--num", "2", "--length", "6", "--metrics", "entropy"],
    }  # fmt: skip


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of ours, under progress bars of the library."""
    out, err = capsys.readouterr()
    *others, line = err.splitlines()
    assert out == ""
    assert line.startswith("selfspec: ")
    assert all("weights" in other for other in others if other)
    return line


@pytest.mark.parametrize("verb", ["sample", "infill", "score", "evaluate"])
def test_a_verb_is_told_where_the_trunk_is_and_that_its_code_is_trusted(
    remote: Path, verb: str, capsys: pytest.CaptureFixture[str]
):
    command, where = verbs(remote)[verb], ["--trunk", str(remote / "moved")]

    def refused(*more: str) -> str:
        capsys.readouterr()
        assert main([*command, *more]) == 2
        return complaint(capsys)

    assert "which is gone: give where it is as `trunk`" in refused("--trust-remote-code")
    assert "`trust_remote_code` must be True to run the code of" in refused(*where)
    assert main([*command, *where, "--trust-remote-code"]) == 0
    path = remote / "moved" / "model.safetensors"
    weights = load_file(path)
    weights["base.wte.weight"][7, 0] += 1e-3
    save_file(weights, path, {"format": "pt"})
    message = refused(*where, "--trust-remote-code")
    assert "`trunk` must have the weights that the head was made for" in message


def test_a_trunk_of_another_family_is_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ss.save(attached(source), tmp_path / "head")
    expected = {
        hubs.esm: "`trunk` must have the weights that the head was made for",
        hubs.roberta: "`trunk` must have the weights that the head was made for",
        hubs.gpt2: "must be a masked (bidirectional) language model, got the causal",
    }
    for make, message in expected.items():
        make().save_pretrained(folder := tmp_path / make.__name__)
        capsys.readouterr()
        assert main([*verbs(tmp_path)["infill"], "--trunk", str(folder)]) == 2
        assert message in complaint(capsys)
    capsys.readouterr()
    assert main([*verbs(tmp_path)["infill"], "--trunk", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such model in a folder here or on the Hub" in complaint(capsys)


def test_a_trunk_is_not_named_for_a_checkpoint_that_holds_its_own(source: Path, tmp_path: Path):
    ss.save(attached(source), tmp_path / "whole", merge=True)
    for checkpoint_with_its_own in (str(tmp_path / "whole"), "books27"):
        with pytest.raises(ValueError, match="`trunk` goes with a checkpoint of a head alone"):
            ss.load(checkpoint_with_its_own, trunk=str(source))


def test_an_adapter_of_ones_own_is_handed_in(source: Path, tmp_path: Path):
    class Mine(HubTrunk):
        def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
            return self.model.bert(tokens, attention_mask=real)[0]

        def logits(self, hidden: Tensor) -> Tensor:
            return self.model.cls(hidden)

    model = attached(source, adapter=Mine)
    ss.save(model, tmp_path / "head")
    with pytest.raises(ValueError, match="its adapter 'Mine' is not of this package"):
        ss.load(tmp_path / "head")
    assert same(model, ss.load(tmp_path / "head", trunk=model.trunk))


def test_remote_code_is_not_written_whole(remote: Path):
    model: Any = ss.load(remote / "head", trunk=remote / "moved", trust_remote_code=True)
    with pytest.raises(ValueError, match="and `merge` be False, where the trunk is remote code"):
        ss.save(model, remote / "whole", merge=True)
    assert not (remote / "whole" / "config.json").exists()
    own = model.trunk.model
    model.trunk.source = replace(model.trunk.source, name="")
    ss.save(model, remote / "unnamed")
    with pytest.raises(ValueError, match="its trunk has no name: give the model as `trunk`"):
        ss.load(remote / "unnamed")
    assert same(model, ss.load(remote / "unnamed", trunk=own))


def test_the_core_refuses_what_it_cannot_reunite(source: Path, tmp_path: Path):
    ss.save(attached(source), tmp_path / "head")
    with pytest.raises(ValueError, match=r"use `selfspec\.load`"):
        checkpoint.load(tmp_path / "head")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sha256", None, "must describe a model of the Hub"),
        ("vocabulary", {"size": 3, "mask": 7}, r"`mask` must be in 0\.\.3"),
        ("dtype", "float7", "must describe a model of the Hub"),
        ("adapter", "Nobody", "its adapter 'Nobody'"),
        ("length", 99, r"`length` must be in 1\.\.40"),
    ],
)
def test_a_broken_description_is_named(
    source: Path, tmp_path: Path, field: str, value: Any, message: str
):
    ss.save(attached(source), tmp_path / "head")
    config = config_of(tmp_path / "head")
    config["trunk"][field] = value
    if value is None:
        del config["trunk"][field]
    (tmp_path / "head" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ss.load(tmp_path / "head")


def test_a_head_that_lacks_a_weight_is_refused(source: Path, tmp_path: Path):
    ss.save(attached(source), tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["head.norm.weight"]
    save_file(weights, path)
    import hashlib

    config = config_of(tmp_path)
    config["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks 'head\.norm\.weight'"):
        ss.load(tmp_path)


def test_the_tokenizer_of_training_comes_with_the_head(tmp_path: Path):
    """Of another name than the trunk's: the trunk's own, or none, would read prompts otherwise."""
    other = hubs.tokenizer(hubs.LETTERS[::-1])
    other.save_pretrained(tmp_path / "other")
    source = publish(hubs.bert(), tmp_path / "source")
    model = attached(source, tokenizer=str(tmp_path / "other"))
    ss.save(model, tmp_path / "head")
    (tmp_path / "other").rename(tmp_path / "gone")
    loaded = ss.load(tmp_path / "head")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("AC").tolist() == [24, 23]
    given = ss.load(tmp_path / "head", trunk=str(source), tokenizer=hubs.tokenizer())
    assert given.tokenizer is not None
    assert given.tokenizer.encode("AC").tolist() == [5, 6]


def test_a_tokenizer_of_another_size_is_refused(source: Path, tmp_path: Path):
    ss.save(attached(source), tmp_path / "head")
    large, small = hubs.tokenizer(hubs.LETTERS + "abc"), hubs.tokenizer(hubs.LETTERS[:-1])
    message = r"`tokenizer` must have ids in 0\.\.24, .* got 27 for 'c'"
    with pytest.raises(ValueError, match=message):
        ss.load(tmp_path / "head", tokenizer=large)
    with pytest.raises(ValueError, match=message):
        ss.attach_head(source, tokenizer=large)
    with pytest.raises(ValueError, match=r"ids up to 24, .* got up to 23"):
        ss.load(tmp_path / "head", tokenizer=small)


def test_a_pad_that_was_added_to_the_tokenizer_alone_is_no_text(tmp_path: Path):
    """As to Llama's; and an adapted model's mask is beyond its vocabulary too."""
    hubs.llama().save_pretrained(tmp_path / "llama")
    own = hubs.tokenizer()
    own.add_special_tokens({"mask_token": "<m>", "pad_token": "<p>"})
    assert (own.mask_token_id, own.pad_token_id) == (25, 26)
    model = ss.adapt_causal(tmp_path / "llama", tokenizer=own)
    assert model.mask_id == 25
    ss.save(model, tmp_path / "adapted", merge=True)
    loaded = ss.load(tmp_path / "adapted", tokenizer=own)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("A_C", "_").tolist() == [5, 25, 6]
    with pytest.raises(ValueError, match="got 25 for 'a'"):
        ss.load(tmp_path / "adapted", tokenizer=hubs.tokenizer(hubs.LETTERS + "a"))


def test_a_model_that_is_handed_in_is_written_whole(source: Path, tmp_path: Path):
    """Its name may be of weights that it was trained away from."""
    import transformers

    own: Any = transformers.AutoModelForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        own.bert.encoder.layer[0].output.dense.weight[0, 0] += 1.0
    model = attached(own, tokenizer=str(source))  # a tokenizer by its name
    ss.save(model, tmp_path / "saved")
    assert config_of(tmp_path / "saved")["trunk"]["model"]
    assert same(model, ss.load(tmp_path / "saved"))


def test_the_contact_head_of_esm_is_no_part_of_the_trunk(tmp_path: Path):
    """It may be missing from published weights: then it is another one with every loading."""
    source = publish(hubs.esm(), tmp_path / "source")
    path = source / "model.safetensors"
    weights = load_file(path)
    assert [weights.pop(name) for name in [*weights] if "contact_head" in name]
    save_file(weights, path, {"format": "pt"})
    model = attached(source)
    ss.save(model, tmp_path / "head")
    loaded: Any = ss.load(tmp_path / "head")
    assert same(model, loaded)
    heads = [x.trunk.model.esm.contact_head.regression.weight for x in (model, loaded)]
    assert not heads[0].equal(heads[1])


def test_an_adapter_handed_in_takes_the_vocabulary_of_the_checkpoint(source: Path, tmp_path: Path):
    model = attached(source, forbidden=[7], length=20)
    ss.save(model, tmp_path / "head")
    other = attached(source)
    loaded = ss.load(tmp_path / "head", trunk=other.trunk)
    assert same(model, loaded)
    assert other.trunk.vocabulary != loaded.trunk.vocabulary


def test_a_foreign_adapter_around_a_model_without_a_name(source: Path, tmp_path: Path):
    class Mine(MaskedLMTrunk):
        pass

    model = attached(hubs.bert(), adapter=Mine, tokenizer=hubs.tokenizer())
    ss.save(model, tmp_path / "head")  # it could not be made again from a config
    with pytest.raises(ValueError, match="its adapter 'Mine' is not of this package"):
        ss.load(tmp_path / "head")
    assert same(model, ss.load(tmp_path / "head", trunk=model.trunk))
    with pytest.raises(ValueError, match="`merge` be False, where the trunk is remote code"):
        ss.save(model, tmp_path / "whole", merge=True)


def test_the_revision_of_mdlm_is_kept(tmp_path: Path):
    published = hubs.dit()
    config = {**published.config.to_dict(), "time_conditioning": False, "_commit_hash": "abc"}
    save_file({f"backbone.{k}": p for k, p in published.named_parameters()},
              tmp_path / "model.safetensors")  # fmt: skip
    model = mdlm.load(str(tmp_path), config)
    assert model.config._commit_hash == "abc"
    assert ss.attach_head(model, heads=2).trunk.source.revision == "abc"  # type: ignore[union-attr]


def test_an_interrupted_save_leaves_the_tokenizer_as_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = attached(source)
    ss.save(model, tmp_path / "head")
    before = {path: path.read_bytes() for path in tmp_path.rglob("head/**/*") if path.is_file()}
    assert tmp_path / "head" / "tokenizer" / "tokenizer.json" in before
    nn.init.normal_(model.head.project.weight)
    model.tokenizer.inner.add_tokens(["zz"])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ss.save(model, tmp_path / "head")
    after = {path: path.read_bytes() for path in tmp_path.rglob("head/**/*") if path.is_file()}
    assert before == after
