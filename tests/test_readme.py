"""Every code block of the README runs, on small numbers; its links and its results hold."""

import ast
import builtins
import itertools
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

import selfspec as ss
from selfspec import calibration, checkpoint, cli, measuring
from selfspec.arena import Reference, Setting, Sweep, accounts, reductions, write_report

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SMALL = {
    "--num 8": "--num 2",
    "selfspec train": "selfspec train --steps 2 --batch-size 2 --device cpu",
    "--calibrate": "--calibrate --num 1",
    "steps=4000, batch_size=256": "steps=2, batch_size=2",
}
SELFSPEC = """
import sys
from selfspec import cli, measuring
measuring.SWEEP, measuring.PLAIN_SWEEP = measuring.SWEEP[:2], measuring.PLAIN_SWEEP[:1]
measuring.REMASKED_SWEEP = ()
sys.exit(cli.main())
"""
PREPARE = "selfspec prepare books27 --source books --out data/books27"


def load_script(name: str) -> Any:
    """benchmarks/<name>.py as a module."""
    spec = spec_from_file_location(f"{name}_script", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def small(code: str) -> str:
    """The same commands on small numbers."""
    for old, new in SMALL.items():
        code = code.replace(old, new)
    return code


def run(command: list[str], place: Path) -> None:
    """In a folder, with the `selfspec` of this repository on the path."""
    tools = place / "bin"
    tools.mkdir(exist_ok=True)
    script = tools / "selfspec"
    script.write_text(f"#!{sys.executable}\n{SELFSPEC}")
    script.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=env)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the blocks run: with a folder of books, and the data that one block leaves to the next.

    The blocks may run in different processes, so each finds all that it needs.
    """
    place = tmp_path_factory.mktemp("readme")
    books = place / "books"
    books.mkdir()
    shutil.copy(ROOT / "tests" / "data" / "books-excerpt.jsonl.xz", books / "train-00.jsonl.xz")
    for split in ("valid", "test"):
        text = "It was the best of times, it was the worst of times. " * 12
        (books / f"{split}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert PREPARE in README
    run(shlex.split(PREPARE), place)
    return place


def test_the_readme_has_its_blocks():
    assert [language for language, _ in BLOCKS] == ["bash", "bash", "python", "bash", "python"]


def test_the_first_two_commands_are_targets_of_make():
    assert BLOCKS[0][1] == "make demo\nmake test\n"
    for target, last in {"demo": "selfspec demo", "test": "pytest -n 2"}.items():
        told = subprocess.run(
            ["make", "--dry-run", target], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert last in told.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_block(number: int, place: Path):
    language, code = BLOCKS[number]
    shell = ["bash", "-euo", "pipefail", "-c"]
    run([*(shell if language == "bash" else [sys.executable, "-c"]), small(code)], place)


def blocks(page: str, language: str = "") -> list[str]:
    """Code of a page, a command a line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    joined = [(kind, re.sub(r"\\\n\s*|\n\s+(?=-)", " ", code)) for kind, code in found]
    return [code for kind, code in joined if language in ("", kind)]


def test_torchrun_is_told_where_its_own_options_end():
    told = [ROOT / page for page in PAGES] + list((ROOT / "selfspec").rglob("*.py"))
    lines = [line for path in told for line in path.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if "-m selfspec" in line and "python" not in line]
    assert sum("-m -- selfspec" in line for line in lines) >= 6


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_such_as_the_verbs_take(page: str, monkeypatch: pytest.MonkeyPatch):
    def parsed(verb: Callable[..., object]) -> Callable[..., None]:
        return wraps(verb)(lambda *_, **__: None)

    verbs = {name: parsed(verb) for name, verb in cli.all_verbs().items()}
    monkeypatch.setattr(cli, "all_verbs", lambda: verbs)
    for line in "\n".join(blocks(page)).splitlines():
        if command := re.search(r"(?:^|\| |-m |-- )selfspec ([a-z].*)", line):
            words = re.split(r"\s{3,}", command[1])[0]  # what stands behind says what it is
            assert cli.main(shlex.split(words)) == 0, words


READERS_OWN = {"my_model", "my_tokenizer", "input_ids"}


@pytest.mark.parametrize("page", PAGES)
def test_python_brings_what_it_uses(page: str):
    for code in blocks(page, "python"):
        nodes = list(ast.walk(ast.parse(code)))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        made |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
        made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        made |= {node.name for node in nodes if isinstance(node, ast.ClassDef)}
        assert {node.id for node in names} <= made | READERS_OWN | {*dir(builtins)}, code


def test_examples_for_clusters_are_bash_and_yaml():
    (job,) = (code for code in blocks("docs/training.md", "bash") if "#SBATCH" in code)
    subprocess.run(["bash", "-n", "-c", job], check=True)
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    assert [part["kind"] for part in yaml.safe_load_all(*found)] == ["Service", "Job"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_results_are_those_of_the_report():
    script = load_script("readme")
    for name, blocks in script.PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for mark, (report, content) in blocks.items():
            assert text.count(f"<!-- {mark} -->") == 1
            written = content(json.loads((script.RESULTS / report).read_text()))
            assert script.filled(text, mark, written) == text


def test_the_rows_of_the_summary_are_apart_and_none_is_beaten():
    script = load_script("readme")
    report = json.loads((script.RESULTS / script.CURVE).read_text())
    rows = script.compared(report, script.APART)
    nfe, judge = [row["nfe"] for row in rows], [row["judge"] for row in rows]
    lines = script.headline(report).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [f"{cost:.1f}" for cost in nfe]
    assert len(lines) > 5
    assert all(after >= 1.2 * before for before, after in itertools.pairwise(nfe))
    assert judge == sorted(judge, reverse=True)


def test_a_report_becomes_tables_and_a_calibration(tmp_path: Path):
    model = tiny.model()
    settings = [
        Setting("plain", "uniform", {"schedule": "cosine", "steps": k},
                ss.FixedCountSampler(model, steps=k))
        for k in (2, 8)
    ] + [
        Setting("self-speculative", name, {"rounds": 2, "dtau": 0.2},
                ss.SpeculativeSampler(model, order, ss.CosineWindow(0.2), 2))
        for name, order in {"uniform": ss.UniformOrder(), "respaced": ss.RespacedOrder()}.items()
    ]  # fmt: skip
    sweep = Sweep(model, tiny.judge().log_probs, Reference(), tmp_path, n=8, batch_size=8)
    results = sweep.run(settings, progress=False)
    found = reductions(results[:2], results[2:], accounts(2, 1), "plain uniform")
    path = tmp_path / "report.json"
    write_report(path, results, found, 0, {"judge": {"unit": "bits"}})
    report = json.loads(path.read_text())
    script = load_script("readme")
    _, published, budgets, beside, others, plain, separate = script.page(report).split("\n## ")
    assert "| 2, 0.2 |" in published
    assert f"| {results[2].row.nfe:.1f} | {results[2].row.judge:.3f} (" in published
    ratio = next(r for r in found if r["order"] == "uniform" and r["account"] == "same trunk")
    assert f"{ratio['ratio']:.2f}×" in published
    assert "| self-speculative | respaced | 2, 0.2 |" in others
    assert "| cosine, 8 |" in plain
    assert "plain" not in published
    assert beside.startswith("Diversity")
    assert script.headline(report) in script.summary(report)
    assert script.budgets(report) in budgets
    assert "| cosine, 8 |" not in separate
    scores = {r["order"]: r["judge"] for r in report["rows"] if r["sampler"] == "self-speculative"}
    best = min(r["judge"] for r in report["rows"] if r["sampler"] != "data")
    last = script.budgets(report).splitlines()[-1]
    assert last.count("**") == 2
    assert f"**{best:.3f}**" in last
    assert f"{scores['uniform']:.3f}" in last
    for row in report["rows"]:
        row["distinct_4"] = row["judge"] / 10  # linear in the score: what is beside it is known
    worst, best = (pick(r["judge"] for r in report["rows"] if r["sampler"] == "plain")
                   for pick in (max, min))  # fmt: skip
    score = scores["uniform"]
    line = f"| {score / 10:.4f} / {min(max(score, best), worst) / 10:.4f} |"
    assert line in script.diversity(report)
    model.calibration = load_script("calibrate").table(report)
    points = [calibration.Point.from_row(row) for row in model.calibration]
    verified, plain = ([p for p in points if p.verified == kind] for kind in (True, False))
    assert [point.settings["rounds"] for point in verified] == [2, 2]
    kinds = {(point.settings["steps"], type(point.settings["schedule"])) for point in plain}
    assert kinds <= {(k, ss.CosineSchedule) for k in (2, 8)}
    assert measuring.worthwhile(model.calibration) == model.calibration


def test_the_table_of_the_bundled_model_is_that_of_its_reports():
    """Orders that the first one lacks come from the others, on the scale of its judge."""
    names = ("books27-quality", "arena-books27", "books27-order-cells")
    paths = [ROOT / "benchmarks/results" / f"{name}.json" for name in names]
    first, arena, cells = (json.loads(path.read_text()) for path in paths)
    table = checkpoint.load_config(checkpoint.resolve("books27"))["calibration"]
    script = load_script("calibrate")
    assert script.table(first, arena, cells) == table
    assert script.table(first) == [row for row in table if row["order"] != "cells"]
    known = {script.named(row): row["judge"] for row in script.own_rows(first)}
    pairs = [(row["judge"], known.get(script.named(row))) for row in arena["rows"]]
    shift = statistics.mean(ours - theirs for theirs, ours in pairs if ours is not None)
    assert 0.01 < shift < 0.02  # another judge of the same kind
    for row in table:
        if row["order"] == "cells" and row["sampler"] != "plain":
            name = "self-speculative" + (", remasked" if row["sampler"] == "remasked" else "")
            found = [other["judge"] + shift for other in (*arena["rows"], *cells["rows"])
                     if other["sampler"] == name and other["order"] == "cells"
                     and other.get("model") in (None, "books27")
                     and round(other["nfe"], 2) == row["nfe"]]  # fmt: skip
            assert min(abs(score - row["judge"]) for score in found) < 4e-3  # by other texts
    back = [(row["rounds"], row["window"]["dtau"]) for row in table if row["sampler"] == "remasked"]
    assert back == [(rounds, window.dtau) for rounds, window in measuring.REMASKED_SWEEP]
    points = [calibration.Point.from_row(row) for row in table]
    for nfe in (5.6, 8, 9.5, 10, 11.5, 14, 16, 20, 45, 250):
        best = min(row["judge"] for row in table if row["nfe"] <= nfe)
        assert calibration.by_budget(points, nfe).judge == best
    with pytest.raises(ValueError, match="`more` must share rows"):
        script.table(first, cells)
