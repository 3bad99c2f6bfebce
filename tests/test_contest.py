"""The arena of all samplers: contenders, Pareto marks, figures, page."""

import json
import re
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tiny
import torch
from conftest import make_scorer
from test_readme import load_script

import selfspec as ss
from selfspec import checkpoint
from selfspec.arena import CONTENDERS, PREPARED, Reference, Setting, Sweep, contenders, row_table
from selfspec.arena.contenders import BASELINE
from selfspec.arena.contest import contest_figure, marks, save_page, write_contest
from selfspec.arena.pareto import diverse, front
from selfspec.arena.results import Result, Row
from selfspec.cli.benchmark import Contender
from selfspec.data.corpus import write_corpus
from selfspec.metrics import ngram_counts
from selfspec.model import SSMD
from selfspec.sampling import Sampler, SpeculativeSampler
from selfspec.train import Trainer


@pytest.fixture(scope="module")
def model() -> SSMD:
    return tiny.model()


PROFILE = np.linspace(3, 1, tiny.LENGTH).tolist()


@pytest.fixture(scope="module")
def everything(model: SSMD) -> list[Setting]:
    parts = {"predictor": make_scorer(vocab_size=27), "policy": make_scorer(features=3)}
    orders = ("uniform", "van-der-corput")
    return contenders(model, ["all"], orders, (2, 4), PROFILE, **parts)


def test_all_are_there_once(everything: list[Setting]):
    keys = [(s.sampler, s.order, json.dumps(dict(s.settings))) for s in everything]
    assert len(set(keys)) == len(keys)
    kinds = {type(setting.run) for setting in everything}
    samplers = {kind for kind in _concrete(Sampler) if kind.__module__.startswith("selfspec")}
    assert kinds == samplers
    assert any((s.sampler, s.order) == BASELINE for s in everything)


def test_orders_that_read_drafts_take_part_unasked(everything: list[Setting]):
    found = {s.order for s in everything if s.sampler == "self-speculative"}
    assert found == {"uniform", "van-der-corput", "cells", "entropy", "confidence", "spans"}


@pytest.mark.parametrize("name", ["dilated", "draft-orders", "bounded", "optimal"])
def test_what_verification_adds_is_measured(model: SSMD, name: str):
    """Each of these is swept with the head and without it."""
    found = contenders(model, [name], steps=(4,), profile=PROFILE)
    verified = [s for s in found if isinstance(s.run, SpeculativeSampler)]
    assert len(verified) == len(found) / 2 > 0
    headless = contenders(tiny.model(head=False), [name], steps=(4,), profile=PROFILE)
    assert [s.label for s in headless] == [s.label for s in found if s not in verified]


def _concrete(kind: type) -> set[type]:
    """Those of a kind that are for users."""
    own = kind.__name__.endswith("Sampler") and not kind.__abstractmethods__  # type: ignore[attr-defined]
    found = {kind} if own else set()
    return found.union(*(_concrete(child) for child in kind.__subclasses__()))


def test_the_command_line_knows_their_names():
    assert {*get_args(Contender), "self-speculative"} == {*CONTENDERS, *PREPARED, "all"}


def test_unknown_names_are_named(model: SSMD):
    with pytest.raises(ValueError, match=r"`names` must be of plain, .* got 'plane'"):
        contenders(model, ["plane"])
    for name, part in PREPARED.items():
        with pytest.raises(ValueError, match=f"`{part}` must be given for '{name}', got None"):
            contenders(model, [name])


def test_settings_say_what_they_run(everything: list[Setting], model: SSMD):
    """Knobs are JSON, samples are whole, and no sampler takes more passes than it was given."""
    masked = torch.full((3, tiny.LENGTH), model.mask_id)
    for setting in everything:
        assert json.loads(json.dumps(dict(setting.settings))) == dict(setting.settings)
        out = setting.run.sample(masked, torch.arange(3))
        assert ((out.tokens >= 0) & (out.tokens < 27)).all()
        assert (out.nfe > 0).all()
        if "steps" in setting.settings and "lookahead" not in setting.sampler:
            most = setting.settings["steps"] * (1 + getattr(setting.run, "cost", 0))
            if not setting.settings.get("rounds"):
                assert (out.trunk_passes <= most).all()


def test_another_profile_gives_other_settings(model: SSMD):
    """So that none is taken for finished that was cut elsewhere."""
    steep = np.r_[10.0, np.ones(tiny.LENGTH - 1)].tolist()
    a, b = ([s.settings for s in contenders(model, ["optimal"], steps=(4,), profile=profile)]
            for profile in (PROFILE, steep))  # fmt: skip
    assert not [knobs for knobs in a if knobs in b]


def row(sampler: str = "plain", order: str = "uniform", **values: Any) -> dict[str, Any]:
    given = {
        "sampler": sampler, "settings": {}, "nfe": 8.0, "trunk_passes": 8.0, "head_passes": 0.0,
        "judge": 3.0, "judge_low": 2.9, "judge_high": 3.1, "heldout_bits": None, "spelling": 0.5,
        "word_entropy": 7.0, "distinct_4": 0.99, "kl_4gram": 0.5, "entropy": 2.7, "n": 10,
        "order": order, "acceptance": 1.0, "seconds": 0.01,
    }  # fmt: skip
    return given | values


STANDARD = [
    row(judge=4.0, word_entropy=8.0, kl_4gram=0.9),
    row(judge=3.0, word_entropy=7.0, kl_4gram=0.5, distinct_4=0.98),
]
REAL = row("data", "", judge=1.5, word_entropy=6.5, kl_4gram=0.0, distinct_4=0.97, nfe=0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"judge": 3.5, "word_entropy": 7.5, "kl_4gram": 0.7}, True),
     ({"judge": 3.5, "word_entropy": 6.45, "kl_4gram": 0.7}, False),
     ({"judge": 3.5, "word_entropy": 6.6, "kl_4gram": 0.7}, True),  # as varied as real text
     ({"judge": 3.5, "word_entropy": 7.5, "kl_4gram": 0.72}, False),
     ({"judge": 2.0, "word_entropy": 6.5, "kl_4gram": 0.5}, True),  # beyond the standard's best
     ({"judge": 2.0, "word_entropy": 6.5, "kl_4gram": 0.6}, False),
     ({"judge": 3.0, "distinct_4": 0.9}, False),
     ({"judge": 3.0, "word_entropy": None, "distinct_4": None, "kl_4gram": None}, True)],
)  # fmt: skip
def test_diversity_is_compared_at_the_same_judge_score(values: dict[str, Any], expected: bool):
    rows = [*STANDARD, row("threshold", "", **values), REAL]
    assert diverse(rows, STANDARD) == [True, True, expected, False]


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"distinct_kmers": 0.9, "composition": 0.02}, True),
     ({"distinct_kmers": 0.8, "composition": 0.02}, True),  # as varied as real proteins
     ({"distinct_kmers": 0.79, "composition": 0.02}, False),
     ({"distinct_kmers": 0.9, "composition": 0.023}, False)],
)  # fmt: skip
def test_proteins_are_as_diverse_as_their_kmers_and_composition(
    values: dict[str, Any], expected: bool
):
    words: dict[str, Any] = {"word_entropy": None, "distinct_4": None, "kl_4gram": None}
    standard = [row(**words, distinct_kmers=0.9, composition=0.02)]
    real = row("data", "", **words, distinct_kmers=0.8, composition=0.0, nfe=0)
    assert diverse([row("threshold", "", **words, **values), real], standard) == [expected, False]


def test_samples_that_repeat_a_token_are_not_diverse_without_words_either():
    words: dict[str, Any] = {"word_entropy": None, "distinct_4": None, "kl_4gram": None}
    rows = [row("path planning", "", **words, entropy=value) for value in (2.68, 2.66, 1.0)]
    assert diverse(rows, [row(**words, entropy=2.7)]) == [True, False, False]


def test_without_a_standard_all_count():
    assert diverse([row("punt", ""), row("klass", "")], []) == [True, True]


def test_the_front_is_that_of_the_allowed():
    rows = [row(nfe=8, judge=3.0), row(nfe=8, judge=2.9), row(nfe=16, judge=2.5),
            row(nfe=4, judge=1.0), row(nfe=32, judge=2.6)]  # fmt: skip
    assert front(rows, [True, True, True, False, True], "nfe") == [False, True, True, False, False]
    assert front(rows, [False] * 5, "nfe") == [False] * 5


def results(*rows: dict[str, Any]) -> list[Result]:
    return [Result(Row(**values), {}) for values in rows]


def test_marks_are_cost_diversity_and_fronts():
    greedy = row("greedy", "", nfe=2, judge=1.0, word_entropy=2.0, seconds=None)
    found = marks(results(*STANDARD, greedy, row("fast", "", nfe=4, judge=2.9), REAL))
    assert [m["ms_per_sample"] for m in found] == [10.0, 10.0, None, 10.0, 10.0]
    assert [m["diverse"] for m in found] == [True, True, False, True, False]
    assert [m["pareto_nfe"] for m in found] == [False, False, False, True, False]
    assert [m["pareto_ms"] for m in found] == [False, False, False, True, False]


class Page(HTMLParser):
    """Tags, and the text of the cells."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_report_has_rows_figures_and_a_page(tmp_path: Path):
    odd = row("<b>&", "", settings={"tau": 0.5}, nfe=4, judge=2.9, head_passes=3.0)
    greedy = row("greedy", "", nfe=2, judge=1.0, word_entropy=2.0, seconds=None)
    path = tmp_path / "arena.json"
    report = write_contest(path, results(*STANDARD, odd, greedy, REAL), 0, {}, command="run <me>")
    assert json.loads(path.read_text()) == report
    for name in ("sampler", "settings", "nfe", "ms_per_sample", "judge", "judge_low", "judge_high",
                 "word_entropy", "distinct_4", "kl_4gram", "entropy", "spelling", "n"):  # fmt: skip
        assert all(name in fields for fields in report["rows"])
    assert "less diverse" in row_table(report["rows"])
    save_page(report, tmp_path / "arena.html")
    text = (tmp_path / "arena.html").read_text()
    found = Page(text)
    assert sum(tag == "svg" for tag, _ in found.tags) == 2
    assert sum(tag == "tr" for tag, _ in found.tags) == 1 + 5
    assert "&lt;b&gt;&amp;" in text
    assert "KL 4-grams" in text
    assert "6-mers" not in text  # nobody has them
    assert "<b>" not in text
    assert not re.search(r'(src|href)="(?!#)', text.replace('xlink:href="#', ""))
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    own = [name for name in ids if name in ("front", "diverse")]
    assert own == ["front", "diverse"]
    assert "no less diverse than the standard sampler" in text
    save_page({**report, "rows": report["rows"][2:]}, tmp_path / "arena.html")
    assert "however little diverse" in (tmp_path / "arena.html").read_text()
    with pytest.raises(ValueError, match="`report` must have rows with a number for 'seconds_x'"):
        contest_figure({**report, "rows": [r | {"seconds_x": None} for r in report["rows"]]},
                       "seconds_x")  # fmt: skip


def test_only_what_is_on_a_front_has_a_name_and_a_colour():
    from matplotlib.collections import LineCollection

    greedy = row("greedy", "", nfe=2, judge=1.0, word_entropy=2.0)
    rows = [*STANDARD, REAL | {"judge": 0.5}, row("fast", "", nfe=4, judge=2.9), greedy,
            row("slow", "", nfe=32, judge=3.5),
            row("cheap", "", nfe=16, judge=2.95, seconds=0.001, head_passes=1.0)]  # fmt: skip
    report = {"rows": [r | m for r, m in zip(rows, marks(results(*rows)), strict=True)],
              "judges": {}}  # fmt: skip
    colours = []
    for cost in ("nfe", "ms_per_sample"):
        ax = contest_figure(report, cost).axes[0]
        curves = {str(line.get_gid())[6:]: line for line in ax.lines if line.get_gid()}
        assert set(curves) == {"plain, uniform", "fast", "slow", "greedy", "cheap"}
        named = {label for label, line in curves.items() if line.get_label() == label}
        assert named == {"plain, uniform", "fast", "cheap"}
        assert [curves["cheap"].get_linestyle(), curves["fast"].get_linestyle()] == ["-", "--"]
        colours.append({label: curves[label].get_color() for label in named})
        lines = [drawn for drawn in ax.collections if isinstance(drawn, LineCollection)]
        bars = [np.asarray(bar).tolist() for drawn in lines for bar in drawn.get_segments()]
        x = 4 if cost == "nfe" else 10
        assert [[x, 2.9], [x, 3.1]] in bars  # the interval of "fast"
        low, high = ax.get_ylim()
        assert 1 < low < 2.9 < 4.0 < high
        assert "real text: 0.5 ↓" in {text.get_text() for text in ax.texts}
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == 3


def test_curves_of_the_page_say_their_names(tmp_path: Path):
    odd = row("a <b>", "", nfe=4, judge=2.9)
    report = write_contest(tmp_path / "r.json", results(*STANDARD, odd), 0, {})
    save_page(report, tmp_path / "r.html")
    found = Page((tmp_path / "r.html").read_text())
    assert sum(attrs.get("class") == "curve" for _, attrs in found.tags) == 2 * 2 * 2
    assert sum(tag == "title" for tag, _ in found.tags) == 1 + 2 * 2 * 2
    assert not [a for _, a in found.tags if a.get("id", "").startswith("curve ")]


def test_a_tiny_arena_runs_and_resumes(model: SSMD, tmp_path: Path, everything: list[Setting]):
    some = [s for s in everything if s.sampler in ("plain", "punt", "remdm loop", "klass")]
    data = np.random.default_rng(0).integers(0, 27, (8, tiny.LENGTH))
    tokenizer = model.tokenizer
    assert tokenizer is not None
    reference = Reference(tokenizer.decode, None, ngram_counts(data))
    judge = tiny.judge()
    sweep = Sweep(model, judge.log_probs, reference, tmp_path, n=4, batch_size=4)
    first = sweep.run(some, progress=False)
    assert all(sweep.finished(setting) for setting in some)
    again = sweep.run(some, progress=False)
    assert [asdict(r.row) for r in first] == [asdict(r.row) for r in again]
    found = write_contest(tmp_path / "arena.json", [*first, sweep.measure_data(data)], 0, {})
    assert len(found["rows"]) == len(some) + 1
    assert contest_figure(found, "nfe").axes


def test_the_benchmark_draws_in_parts_and_writes_the_table_of_budgets(
    model: SSMD, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    text = "it was the best of times it was the worst of times " * 50
    splits = {split: [text] for split in ("train", "test")}
    write_corpus(tmp_path / "data", splits, ss.CharTokenizer())
    checkpoint.save(model, tmp_path / "model")
    checkpoint.save(tiny.judge(), tmp_path / "judge", training={"validation": {"judge": 3.0}})
    script = load_script("arena")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    values = {"model": "model", "judge": "judge", "data": "data", "folder": "rows", "out": "a.json"}
    given = [
        part for name, value in values.items() for part in (f"--{name}", str(tmp_path / value))
    ]
    given += ["--n", "3", "--batch-size", "2", "--length", "24", "--steps", "2", "24", "--orders",
              "uniform", "--against", "plain", "optimal", "self-speculative"]  # fmt: skip

    def run(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["arena.py", *given, *more])
        script.main()

    run("--profile", "2", "--part", "0/2")
    half = {path.name for path in (tmp_path / "rows").iterdir()}
    run("--profile", "2", "--part", "1/2")
    run("--profile", "2")
    report = json.loads((tmp_path / "a.json").read_text())
    rows = [row for row in report["rows"] if row["sampler"] != "data"]
    everything = {path.name for path in (tmp_path / "rows").iterdir()}
    assert len(half) < len(everything) == 2 * len(rows) + 1
    assert len(report["rows"]) == len(rows) + 1
    assert (tmp_path / "figures" / "arena-nfe.svg").exists()
    run("--profile", "3", "--against", "optimal")  # of another profile nothing is reused
    assert len(list((tmp_path / "rows").glob("profile-*"))) == 2

    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "samplers.md"
    page.write_text("a\n<!-- arena-nfe -->\nold\n<!-- /arena-nfe -->\nb\n")
    (tmp_path / "a.json").write_text(json.dumps(report))
    run("--docs")
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("a", "b", False)
    best = {row["nfe"]: row for row in rows if row["diverse"]}
    told = next(line for line in lines if line.startswith("| 32 |"))
    assert f"{min(row['judge'] for row in best.values()):.3f} (" in told
    assert next(line for line in lines if line.startswith("| 8 |")).count("–") >= 1


@pytest.mark.parametrize(("cost", "least"), [("nfe", [8, 16, 32]), ("ms_per_sample", [0.5, 1, 2])])
def test_a_budget_buys_the_best_diverse_row_within_it(cost: str, least: list[float]):
    """Of either cost; a row that was not timed has no place in a table of milliseconds."""
    cheap, between, dear = (x * least[0] for x in (1.0, 1.5, 2.0))
    rows = [row("cheap", "", judge=3.0) | {cost: cheap}, row("dear", "", judge=2.5) | {cost: dear},
            row("verified", "spaced", judge=2.8, head_passes=3.0) | {cost: between},
            row("greedy", "", judge=1.0) | {cost: cheap / 2}]  # fmt: skip
    marked = [r | {"diverse": r["sampler"] != "greedy"} for r in rows]
    marked += [row("untimed", "", judge=0.5) | {cost: None, "diverse": True}]
    report = {"rows": marked, "n": 10, "machine": {"device": "CPU"},
              "judges": {"judge": {"unit": "bits"}}}  # fmt: skip
    found = load_script("arena").budgets(report, cost).split("\n\n")[1].splitlines()[2:]
    cells = [[cell.split(" (")[0].strip() for cell in line.split("|")[1:-1]] for line in found]
    assert cells[:3] == [
        [f"{least[0]:g}", "cheap", "cheap", "–"],
        [f"{least[1]:g}", "dear", "dear", "verified, spaced"],
        [f"{least[2]:g}", "dear", "dear", "verified, spaced"],
    ]


DOCS = Path(__file__).parents[1] / "docs" / "samplers.md"


def test_the_page_on_samplers_names_them_all():
    text = DOCS.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DOCS.parent / link).exists(), link
    samplers = {k.__name__ for k in _concrete(Sampler) if k.__module__.startswith("selfspec")}
    assert samplers <= set(re.findall(r"\w+Sampler", text))
    for name in re.findall(r"\w+(?:Sampler|Order|Window)\b", text):
        assert hasattr(ss, name), name


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Training leaves what it began with: only the calls are tested here."""

    def run(self: Trainer, progress: bool = True) -> bool:
        assert self.folder is not None
        self.folder.mkdir(parents=True)
        self.save()
        return True

    text = "it was the best of times it was the worst of times " * 50
    write_corpus(tmp_path / "data" / "books27", {"train": [text]}, ss.CharTokenizer())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "run", run)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    for code in blocks:
        exec(compile(code.replace("model, 4,", "model, 1,"), "samplers.md", "exec"), names)
    assert len(blocks) == 2
    assert (tmp_path / "runs" / "sdtt" / "round-7" / "model").is_dir()
