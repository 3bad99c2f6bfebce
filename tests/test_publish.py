import shutil
from pathlib import Path
from typing import Any

import hubs
import huggingface_hub
import pytest
import tiny
import yaml

import selfspec as ss
from selfspec import checkpoint
from selfspec.data.corpus import write_corpus
from selfspec.hub.publish import model_card


class Api:
    """The Hub, as far as it is needed, in a folder."""

    shelf: Path
    asked: list[Any]

    def __init__(self, token: str | None = None):
        Api.asked = [token]

    def create_repo(self, repo_id: str, **options: Any) -> None:
        Api.asked.append((repo_id, options))

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
        Path(folder_path).rename(self.shelf / repo_id.replace("/", "--"))
        Path(folder_path).mkdir()
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Api.shelf = tmp_path
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)

    def snapshot_download(repo_id: str, **options: Any) -> str:
        folder = tmp_path / repo_id.replace("/", "--")
        if not folder.is_dir():
            raise OSError(f"404: {repo_id}")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return tmp_path


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def test_a_checkpoint_goes_up_with_its_card_and_comes_down_again(shelf: Path):
    model = tiny.model()
    model.calibration = [tiny.row(12, 4.0), tiny.plain_row(7.3, 4.5)]
    address = ss.push_to_hub(model, "me/letters", licence="mit", private=True, token="t")
    assert address.startswith("https://huggingface.co/me/letters")
    assert Api.asked == ["t", ("me/letters", {"private": True, "exist_ok": True})]
    files = {path.name for path in (shelf / "me--letters").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors"}
    card = (shelf / "me--letters" / "README.md").read_text()
    assert front_matter(card)["license"] == "mit"
    assert 'ss.load("me/letters")' in card
    assert "| speculative | uniform | kind cosine, dtau 0.1, rounds 2 | 12 | 4.0 |" in card
    assert "| plain | respaced | schedule linear, steps 8 | 7.3 | 4.5 |" in card
    loaded = ss.load("me/letters")
    assert loaded.head is not None
    assert loaded.calibration == model.calibration
    with pytest.raises(OSError, match=r"me/nothing: no such folder here, .* \(404"):
        ss.load("me/nothing")


def test_a_head_names_its_trunk(shelf: Path, tmp_path: Path):
    hubs.bert().save_pretrained(tmp_path / "bert")
    hubs.tokenizer().save_pretrained(tmp_path / "bert")
    model = ss.attach_head(tmp_path / "bert", heads=2)
    training = {"step": 7, "validation": {"target": 1.25}}
    with pytest.raises(ValueError, match="`merge` must be True for a trunk that nobody else"):
        ss.push_to_hub(model, "me/head", training=training)
    ss.save(model, tmp_path / "head", training=training)
    config = checkpoint.load_config(tmp_path / "head")
    assert "base_model" not in front_matter(model_card(config, "me/head"))  # a folder of mine
    config["trunk"] |= {"name": "owner/bert", "revision": "abc"}
    card = model_card(config, "me/head")
    assert front_matter(card)["base_model"] == "owner/bert"
    for fact in ("the head alone, float32", "| trunk's revision | abc |", "| target 1.2500 |",
                 config["trunk"]["sha256"], "heads 2, blocks 1"):  # fmt: skip
        assert fact in card
    assert "{" not in card
    ss.push_to_hub(model, "me/whole", merge=True)
    assert "trunk and head in one file" in (shelf / "me--whole" / "README.md").read_text()
    assert (shelf / "me--whole" / "tokenizer").is_dir()


def test_the_card_of_a_model_from_a_run_says_how_it_was_trained(shelf: Path):
    facts = ("| steps of training | 2 |", "| data | sha256:", "| validation, nats per token | dr")
    texts = {"train": ["abc " * 99], "valid": ["abc " * 9]}
    write_corpus(shelf / "data", texts, ss.CharTokenizer())
    settings = {"steps": 2, "batch_size": 2, "device": "cpu", "progress": False}
    trained = ss.train(tiny.model(), shelf / "data", shelf / "run", **settings)
    for one in (trained, ss.load(shelf / "run" / "model")):
        ss.save(one, shelf / "copy")
        ss.push_to_hub(ss.load(shelf / "copy"), "me/copy")
        card = (shelf / "me--copy" / "README.md").read_text()
        assert [fact for fact in facts if fact not in card] == []
        shutil.rmtree(shelf / "me--copy")


def test_a_wrong_name_is_refused_before_any_work(shelf: Path):
    with pytest.raises(ValueError, match="`repo_id` must be 'owner/name', got 'letters'"):
        ss.push_to_hub(tiny.model(), "letters")
