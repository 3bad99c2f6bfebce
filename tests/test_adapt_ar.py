"""From a causal model to a sampler with a head, on the command line and from Python."""

import json
from pathlib import Path
from typing import Any

import hubs
import pytest
import ranks
import torch
from hubs import SEP
from safetensors.torch import load_file
from test_parallel import on_ranks

import selfspec as ss
from selfspec.cli import main
from selfspec.recipes import adapt_ar
from selfspec.recipes.adapt_ar import settings

CLOCK = {"elapsed", "tokens_per_second"}
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
    return write_text(tmp_path / "text.jsonl")


def write_text(path: Path) -> Path:
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


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both families, trained by one process and by two; GPT-2 ties its tables, and drops nothing
    here: every rank has dropout of its own.
    """
    folder = tmp_path_factory.mktemp("ranks")
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    for name, made in {"llama": hubs.llama(), "gpt2": hubs.gpt2(**still)}.items():
        made.save_pretrained(folder / name)
        hubs.tokenizer().save_pretrained(folder / name)
    write_text(folder / "text.jsonl")
    done = on_ranks(2, "adapt", folder)
    assert done.returncode == 0, done.stderr
    (folder / "told-2").write_text(done.stdout)
    ranks.adapt(folder)
    return folder


@pytest.mark.parametrize("family", ranks.FAMILIES)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_adapt_as_one(adapted: Path, family: str, kind: str):
    one, two = (adapted / f"{family}-{kind}-{world}" for world in (1, 2))
    lines, others = ([{k: v for k, v in line.items() if k not in CLOCK} for line in log(run)]
                     for run in (two, one))  # fmt: skip
    assert len(lines) == len(others) >= 12 + 3
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, rel=1e-9, abs=0)
    weights, expected = (load_file(run / "model" / "model.safetensors") for run in (two, one))
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-9)
    start: Any = ss.adapt_causal(adapted / family).trunk
    moved = weights["trunk.mask_embedding"] - start.mask_embedding
    assert moved.abs().max() > 1e-4


def test_the_command_line_adapts_on_two_processes(
    adapted: Path, capsys: pytest.CaptureFixture[str]
):
    text = (adapted / "told-2").read_text()
    told = json.loads(text[text.index("{") :])  # of one process; PyTorch 2.9 speaks first
    assert told["step"] == 3
    assert main(ranks.adapt_command(adapted, 1)) == 0
    assert told["draft"] == pytest.approx(json.loads(capsys.readouterr().out)["draft"], rel=1e-5)
    assert ss.generate(ss.load(adapted / "run-2" / "model"), prompt="AC__F", nfe=2).text


def test_short_runs_warm_up_for_less_time():
    assert settings(steps=100).schedule.warmup == 10  # type: ignore[attr-defined]
    assert settings().schedule.warmup == 500  # type: ignore[attr-defined]
    assert settings(clip=2.0).clip == 2
