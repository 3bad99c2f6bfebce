"""From a causal model to a sampler with a head, on the command line and from Python."""

import json
from pathlib import Path
from typing import Any

import hubs
import pytest
import torch
from hubs import SEP

import selfspec as ss
from selfspec.cli import main
from selfspec.recipes import adapt_ar
from selfspec.recipes.adapt_ar import settings

FAST: dict[str, Any] = {"steps": 12, "batch_size": 8, "length": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published Llama of letters."""
    folder = tmp_path_factory.mktemp("hub") / "llama"
    hubs.llama().save_pretrained(folder)
    hubs.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Documents in which every letter is followed by the next one."""
    path = tmp_path / "text.jsonl"
    letters = hubs.LETTERS * 4
    rows = (json.dumps({"text": letters[i % 20 : i % 20 + 30 + i % 9]}) for i in range(80))
    path.write_text("\n".join(rows))
    return path


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_from_a_causal_model_to_samples(
    source: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def run(*arguments: Any) -> dict[str, Any]:
        assert main([*map(str, arguments), "--json", "--device", "cpu"]) == 0
        return json.loads(capsys.readouterr().out)

    base, head = tmp_path / "base", tmp_path / "head"
    size = ["--data", text, "--length", 16, "--batch-size", 16]
    told = run("adapt", source, *size, "--out", base, "--steps", 150)
    first = next(line["draft"] for line in log(base) if "draft" in line)
    assert told["draft"] < first - 0.3  # the neighbours on either side decide a letter
    assert not [key for key in told if key in ("target", "window")]
    trained = ss.load(base / "model")
    assert trained.length == 16
    told = run("attach", base / "model", *size, "--out", head, "--steps", 4, "--heads", 2)
    model = ss.load(head / "model")
    tokens = torch.full((2, 16), model.mask_id)
    tokens[:, 3] = 9
    with torch.no_grad():
        drafts = (one.draft(one.encode(tokens)) for one in (trained, model))
        assert next(drafts).equal(next(drafts))
    run("sample", "--checkpoint", head / "model", "--num", 2, "--rounds", 2, "--length", 8)
    assert ss.generate(model, prompt="AC__F", rounds=1).text is not None


def test_documents_stand_one_after_another_with_what_ends_one_between(
    source: str, text: Path, tmp_path: Path
):
    trainer = adapt_ar(ss.adapt_causal(source), text, tmp_path / "run", progress=False, **FAST)
    rows = trainer.feed(0).tokens
    trainer.feed.close()
    assert rows.shape == (8, 16)
    assert bool((rows == SEP).any())
    assert trainer.objective.observed == ()  # type: ignore[attr-defined]


def test_a_run_goes_on_where_it_was_killed(source: str, text: Path, tmp_path: Path):
    def trainer(folder: str, **more: Any) -> Any:
        options = {**FAST, "save_every": 5, **more}
        return adapt_ar(ss.adapt_causal(source), text, tmp_path / folder, progress=False, **options)

    whole = trainer("whole")
    whole.run(progress=False)
    killed = trainer("killed")
    for _ in range(5):
        killed.update()
    killed.save()
    killed.feed.close()
    resumed = trainer("killed")
    resumed.run(progress=False)
    for one, other in zip(whole.params.values(), resumed.params.values(), strict=True):
        assert one.equal(other)


def test_what_is_refused(source: str, text: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="must be one from `adapt_causal`, without head"):
        adapt_ar(ss.attach_head(hubs.bert(), heads=2, mask_id=4), text, tmp_path)
    model = ss.adapt_causal(source)
    with pytest.raises(ValueError, match="an adapted model cannot write yet"):
        adapt_ar(model, "self", tmp_path)
    with pytest.raises(ValueError, match=r"`length` must be in 1\.\.39, got 40"):
        adapt_ar(model, text, tmp_path, length=40)
    assert main(["adapt", str(tmp_path / "nowhere"), "--data", str(text), "--out", "x"]) == 2


def test_short_runs_warm_up_for_less_time():
    assert settings(steps=100).schedule.warmup == 10  # type: ignore[attr-defined]
    assert settings().schedule.warmup == 500  # type: ignore[attr-defined]
    assert settings(clip=2.0).clip == 2
