"""The arena: sweeps resume and never mix runs, reports can be read back, figures are legible."""

import json
import re
import shutil
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_readme import load_script
from torch import Tensor

from selfspec.arena import (
    Reference,
    Result,
    Row,
    Setting,
    Sweep,
    accounts,
    figures,
    reduction_table,
    reductions,
    report,
    row_table,
    write_report,
)
from selfspec.data.tokenizers import CharTokenizer
from selfspec.interfaces import Samples
from selfspec.metrics import count_words, ngram_counts, vocabulary
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.sampling import FixedCountSampler, SpeculativeSampler
from selfspec.schedules import CosineWindow

LENGTH, N, STEPS = 16, 24, (2, 4, 8)
TEXT = "the cat sat on the mat and the cat saw the rat on the mat " * 40
DECODE = CharTokenizer().decode
DATA = CharTokenizer().encode(TEXT)[: LENGTH * N].reshape(N, LENGTH)
REFERENCE = Reference(DECODE, vocabulary(count_words([TEXT])), ngram_counts(DATA))


def trunk(causal: bool = False) -> Trunk:
    config = TrunkConfig(vocab_size=27, length=LENGTH, width=8, blocks=3, heads=2, causal=causal)
    return Trunk(config)


@pytest.fixture(scope="module")
def model() -> SSMD:
    torch.manual_seed(0)
    return SSMD(trunk(), CausalHead(HeadConfig(heads=2), 8)).eval()


@pytest.fixture
def sweep(model: SSMD, tmp_path: Path) -> Sweep:
    torch.manual_seed(1)
    judge = AutoregressiveModel(trunk(causal=True)).eval()
    return Sweep(model, judge.log_probs, REFERENCE, tmp_path / "rows", n=N, batch_size=N)


def settings(model: SSMD) -> list[Setting]:
    plain = [
        Setting("plain", "uniform", {"steps": k}, FixedCountSampler(model, steps=k)) for k in STEPS
    ]
    speculative = SpeculativeSampler(model, window=CosineWindow(0.2), rounds=2)
    return [*plain, Setting("self-speculative", "uniform", {"rounds": 2}, speculative)]


class Recorded:
    """A sampler that remembers the seeds it was given."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.seeds = sampler, []

    def sample(self, tokens: Tensor, seeds: Tensor) -> Samples:
        self.seeds.append(seeds)
        return self.sampler.sample(tokens, seeds)


def recorded(model: SSMD) -> list[Setting]:
    return [replace(setting, run=Recorded(setting.run)) for setting in settings(model)]


def calls(given: list[Setting]) -> list[int]:
    return [len(setting.run.seeds) for setting in given]  # pyright: ignore


def same(a: Result, b: Result) -> bool:
    """But for seconds, and for what drew them: an engine, which does not run a `Recorded`."""
    arrays = all(np.array_equal(a.arrays[k], b.arrays[k]) for k in a.arrays.keys() | b.arrays)
    return arrays and _untimed(a.row) == _untimed(b.row)


def _untimed(row: Row) -> Row:
    return replace(row, seconds=None, engine=None)


def test_a_row_is_the_mean_of_its_samples(model: SSMD, sweep: Sweep) -> None:
    for k, result in zip(STEPS, sweep.run(settings(model), progress=False), strict=False):
        row, arrays = result.row, result.arrays
        assert (row.trunk_passes, row.head_passes, row.acceptance) == (k, 0, 1)
        assert row.nfe == pytest.approx(k * 3 / 4)  # three blocks of trunk, one of head
        assert arrays["tokens"].shape == (N, LENGTH)
        assert row.judge == pytest.approx(arrays["judge"].mean())
        assert row.judge_low < row.judge < row.judge_high
        assert row.n == N


def test_the_speculative_row_counts_both_kinds_of_passes(model: SSMD, sweep: Sweep) -> None:
    row = sweep.measure(settings(model)[-1]).row
    assert row.head_passes > 0
    assert row.nfe == pytest.approx((3 * row.trunk_passes + row.head_passes) / 4)
    assert 0 < (row.acceptance or 0) <= 1


def test_real_text_scores_as_itself(sweep: Sweep) -> None:
    row = sweep.measure_data(DATA.astype(np.uint8)).row
    assert (row.sampler, row.nfe, row.kl_4gram) == ("data", 0, 0)
    assert row.spelling == 1


def test_spelling_is_known_words_over_words(sweep: Sweep) -> None:
    misspelt = np.where(np.arange(N)[:, None] % 2, DATA, np.where(DATA == 20, 26, DATA))  # t to z
    result = sweep.measure_data(misspelt)
    known, words = result.arrays["known_words"], result.arrays["words"]
    assert result.row.spelling == known.sum() / words.sum()
    assert (known[1::2] == words[1::2]).all()
    assert 0.1 < known[::2].sum() / words[::2].sum() < 0.5


def test_the_samples_do_not_depend_on_the_batch_size(model: SSMD, sweep: Sweep) -> None:
    whole = sweep.measure(settings(model)[-1])
    parts = replace(sweep, batch_size=7).measure(settings(model)[-1])
    np.testing.assert_array_equal(whole.arrays["tokens"], parts.arrays["tokens"])
    np.testing.assert_array_equal(whole.arrays["nfe"], parts.arrays["nfe"])


def test_all_settings_share_the_seeds_of_their_rows(model: SSMD, sweep: Sweep) -> None:
    given = recorded(model)
    replace(sweep, batch_size=10).run(given, progress=False)
    seeds = [torch.cat(setting.run.seeds) for setting in given]  # pyright: ignore
    assert len(seeds[0].unique()) == N
    assert all(torch.equal(seeds[0], other) for other in seeds)


def test_a_finished_setting_is_read_not_drawn(model: SSMD, sweep: Sweep) -> None:
    assert not any(map(sweep.finished, settings(model)))
    first = sweep.run(settings(model), progress=False)
    assert all(map(sweep.finished, settings(model)))
    given = recorded(model)
    again = sweep.run(given, progress=False)
    assert calls(given) == [0, 0, 0, 0]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert all(isinstance(result.row, Row) for result in again)


def test_no_setting_is_begun_when_time_is_up(model: SSMD, sweep: Sweep) -> None:
    first = sweep.run(settings(model)[1:2], progress=False)
    given = recorded(model)
    found = sweep.run(given, progress=False, stop_after=0)
    assert calls(given) == [0, 0, 0, 0]
    assert len(found) == 1
    assert same(found[0], first[0])


@pytest.mark.parametrize(("every", "reports"), [(0, [1, 2, 3, 4, 4]), (1000, [4])])
def test_a_report_is_written_as_curves_fill(
    model: SSMD, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, every: int, reports: list[int]
) -> None:
    script = load_script("quality")
    monkeypatch.setattr(script, "REPORT_EVERY", every)
    jobs = [(sweep, setting) for setting in settings(model)]
    written: list[list[str | None]] = []

    def write(results: list[Result]) -> dict[str, Any]:
        written.append([result.row.model for result in results])
        return {"rows": [asdict(result.row) for result in results], "reduction": []}

    def named(sweep: Sweep, setting: Setting, result: Result) -> Result:
        return replace(result, row=replace(result.row, model=setting.label))

    found = script.fill(jobs, write, completed=named)
    assert [len(rows) for rows in written] == reports
    assert written[-1] == [setting.label for _, setting in jobs]
    assert [result.row.model for result in found] == written[-1]
    late = (replace(sweep, seed=1), settings(model)[0])
    again = script.fill([late, *jobs], write, deadline=time.monotonic() - 1)
    assert [a.row.nfe for a in again] == [b.row.nfe for b in found]  # what was measured before


def test_an_interrupted_sweep_goes_on_where_it_stopped(model: SSMD, sweep: Sweep) -> None:
    class Interrupted(Recorded):
        def sample(self, tokens: Tensor, seeds: Tensor) -> Samples:
            raise KeyboardInterrupt

    broken = settings(model)
    broken[2] = replace(broken[2], run=Interrupted(None))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(broken, progress=False)
    assert not list(sweep.folder.glob("*.part"))
    given = recorded(model)
    resumed = sweep.run(given, progress=False)
    assert calls(given) == [0, 0, 1, 1]
    whole = replace(sweep, folder=sweep.folder / "whole").run(settings(model), progress=False)
    assert all(same(a, b) for a, b in zip(resumed, whole, strict=True))


@pytest.mark.parametrize("damage", ["row cut", "arrays cut", "no arrays", "other fields"])
def test_a_damaged_result_is_named(model: SSMD, sweep: Sweep, damage: str) -> None:
    sweep.run(settings(model)[:1], progress=False)
    (row,), (arrays,) = (list(sweep.folder.glob(f"*.{kind}")) for kind in ("json", "npz"))
    if damage == "no arrays":
        arrays.unlink()
    elif damage == "other fields":
        row.write_text('{"nfe": 3}')
    else:
        (row if damage == "row cut" else arrays).write_bytes(b"{")
    with pytest.raises(ValueError, match=f"{re.escape(str(row))}: not a readable result"):
        sweep.run(settings(model)[:1], progress=False)
    row.unlink()
    assert sweep.run(settings(model)[:1], progress=False)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"n": N - 1},
        {"length": 8},
        {"judge": AutoregressiveModel(trunk(causal=True)).eval().log_probs},
        {"reference": replace(REFERENCE, vocabulary=frozenset({"cat"}))},
        {"identity": {"text": "other"}},
        {"engine": "reference"},
        {"model": SSMD(trunk()).eval()},
        {"heldout": lambda setting: np.ones(3)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_run_never_meets_old_rows(
    model: SSMD, sweep: Sweep, change: dict[str, Any]
) -> None:
    sweep.run(settings(model)[:1], progress=False)
    given = recorded(model)[:1]
    replace(sweep, **change).run(given, progress=False)
    assert calls(given) == [1]


def test_what_has_no_reference_is_none(model: SSMD, sweep: Sweep) -> None:
    row = replace(sweep, reference=Reference()).measure(settings(model)[0]).row
    assert (row.spelling, row.word_entropy, row.distinct_4, row.kl_4gram) == (None,) * 4
    assert row.heldout_bits is None
    assert row.entropy > 0


def test_the_held_out_law_is_asked_of_every_setting(model: SSMD, sweep: Sweep) -> None:
    def heldout(setting: Setting) -> np.ndarray | None:
        steps = setting.settings.get("steps")
        return None if steps is None else np.array([1.0, 2.0]) * steps

    results = replace(sweep, heldout=heldout).run(settings(model), progress=False)
    assert [result.row.heldout_bits for result in results] == [3, 6, 12, None]
    assert results[0].arrays["heldout_bits"].tolist() == [2, 4]


def test_wall_clock_is_the_median_of_at_least_five_warm_batches(model: SSMD, sweep: Sweep) -> None:
    few = replace(sweep, n=23, batch_size=4).measure(settings(model)[0])  # five full, one smaller
    enough = replace(sweep, n=24, batch_size=4).measure(settings(model)[0])
    assert few.row.seconds is None
    assert (enough.row.seconds or 0) > 0


def result(sampler: str, nfe: float, judge: float, **row: Any) -> Result:
    """A made-up result, with trunk passes for plain sampling and little spread."""
    noise = np.random.default_rng(int(100 * nfe)).normal(size=64)
    noise -= noise.mean()
    passes = nfe * 4 / 3
    arrays = {"judge": judge + 0.02 * noise, "nfe": np.full(64, nfe)}
    arrays["trunk_passes"] = np.full(64, passes)
    values = {
        "settings": {"k": nfe}, "nfe": nfe, "trunk_passes": passes,
        "head_passes": float(sampler != "plain"), "judge": judge, "judge_low": judge - 0.01,
        "judge_high": judge + 0.01, "heldout_bits": judge - 0.2, "spelling": 0.8,
        "word_entropy": 6 + judge / 10, "distinct_4": 0.9 + judge / 100, "kl_4gram": judge - 2,
        "entropy": 2.8, "n": 64, "order": "uniform", "acceptance": None, "seconds": nfe / 1000,
    }  # fmt: skip
    return Result(Row(sampler=sampler, **(values | row)), arrays)


PLAIN = [result("plain", k, 2.5 + 8 / k) for k in (4, 8, 16, 32, 64)]
METHODS = [result("self-speculative", k, 2.5 + 4 / k) for k in (6, 12, 24)]
REAL = result("data", 0, 2.1, order="", settings={}, seconds=None)
RECORDS = reductions(PLAIN, METHODS, accounts(3, 1))


def test_both_accounts_and_the_wall_clock_are_compared() -> None:
    ratios = {a: [r["ratio"] for r in RECORDS if r["account"] == a] for a in
              ("same trunk", "separate model", "wall-clock")}  # fmt: skip
    assert ratios["same trunk"] == pytest.approx([2, 2, 2], rel=0.1)
    assert ratios["wall-clock"] == pytest.approx(ratios["same trunk"])
    np.testing.assert_allclose(ratios["separate model"], np.array(ratios["same trunk"]) * 4 / 3)
    assert {r["account"] for r in reductions(PLAIN, [*METHODS, replace_seconds()], {"one": 1})} == {
        "one"
    }


def replace_seconds() -> Result:
    return Result(replace(METHODS[0].row, seconds=None), METHODS[0].arrays)


def test_a_score_that_nobody_has_is_not_compared() -> None:
    assert reductions(PLAIN, METHODS, accounts(3, 1), score="heldout_bits") == []


def test_a_report_is_strict_json_with_all_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    beyond = reductions(PLAIN, [result("self-speculative", 40, 2.4)], accounts(3, 1))
    judges = {"judge": {"unit": "bits per character"}}
    written = write_report(path, [*PLAIN, *METHODS], RECORDS + beyond, 7, judges, "make it")
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == written
    assert set(read) == {"rows", "reduction", "machine", "seed", "command", "commit", "n", "judges"}
    assert read["rows"][0] == asdict(PLAIN[0].row)
    assert (read["seed"], read["n"], read["command"]) == (7, 64, "make it")
    assert read["reduction"][-1]["bound"] == "at least"
    assert read["reduction"][-1]["high"] is None
    assert read["machine"]["torch"] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_the_tables_align_and_say_what_is_only_a_bound() -> None:
    beyond = reductions(PLAIN, [result("self-speculative", 40, 2.4)], accounts(3, 1))
    lines = reduction_table(RECORDS + beyond).split("\n")
    assert len(lines) == 2 + len(RECORDS) + len(beyond)
    assert len({len(line) for line in lines}) == 1
    assert "≥" in lines[-1]
    assert "≥" not in lines[2]
    rows = row_table([asdict(r.row) for r in [*PLAIN, REAL]]).split("\n")
    assert rows[0].index("NFE") + 3 == rows[2].index(" 4.0") + 4
    assert "accept" not in rows[0]  # no row has it


@pytest.mark.parametrize("program", ["/env/bin/selfspec", "/src/selfspec/__main__.py"])
def test_the_command_is_one_to_type(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [program, "benchmark", "my model"])
    assert report.running() == "selfspec benchmark 'my model'"


def test_the_commit_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git")
    file = tmp_path / "report.py"
    file.write_text("1")
    monkeypatch.setattr(report, "__file__", str(file))
    monkeypatch.delenv("SELFSPEC_COMMIT", raising=False)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert report.commit() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another's")
    assert report.commit() is None
    git("add", "report.py")
    git("commit", "-q", "-m", "ours")
    assert report.commit() == git("rev-parse", "HEAD")
    file.write_text("2")
    assert report.commit() == git("rev-parse", "HEAD") + "-dirty"


@pytest.fixture(scope="module")
def drawn() -> dict[str, Any]:
    """A report with crowded curves: four of them, which meet on the right."""
    spaced = [result(r.row.sampler, r.row.nfe, r.row.judge - 0.3 / r.row.nfe**0.7, order="spaced")
              for r in [*PLAIN, *METHODS]]  # fmt: skip
    rows = [asdict(r.row) for r in [*PLAIN, *METHODS, *spaced, REAL]]
    judges = {"judge": {"unit": "bits per character"}}
    return {"rows": rows, "reduction": RECORDS, "judges": judges, "n": 64}


def test_labels_touch_neither_each_other_nor_the_frame(drawn: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    figure = figures.quality_figure(drawn)
    figure.draw_without_rendering()
    frame = figure.axes[0].get_window_extent()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    names = {text.get_text() for text in texts}
    far = f"real text: {REAL.row.judge:.3g} ↓"  # too far below for the curves to be told apart
    assert {"plain, uniform order", "self-speculative, spaced order", far} <= names
    boxes = [text.get_window_extent() for text in texts if "fewer" not in text.get_text()]
    for i, box in enumerate(boxes):
        assert frame.padded(2).contains(*box.min)
        assert frame.padded(2).contains(*box.max)
        assert not any(box.overlaps(other) for other in boxes[:i])
    shown = next(text for text in names if "fewer" in text)
    assert shown in {f"{r['ratio']:.1f}× fewer passes" for r in RECORDS}


@pytest.mark.parametrize("kind", ["quality", "heldout", "diversity"])
def test_figures_are_written_and_can_be_written_again(
    drawn: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("matplotlib")
    draw = getattr(figures, f"{kind}_figure")
    files = []
    for name in ("a", "b"):
        figures.save_figure(draw(drawn), tmp_path / "new" / name)
        files.append((tmp_path / "new" / f"{name}.svg").read_bytes())
    assert files[0] == files[1]
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == [
        "a.png", "a.svg", "b.png", "b.svg"
    ]  # fmt: skip


def test_a_figure_of_nothing_is_refused(drawn: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    rows = [row | {"heldout_bits": None} for row in drawn["rows"]]
    with pytest.raises(ValueError, match="must have rows with a number for 'heldout_bits'"):
        figures.heldout_figure(drawn | {"rows": rows})


def test_a_curve_runs_along_its_best_settings(drawn: dict[str, Any]) -> None:
    rows = [*drawn["rows"], drawn["rows"][0] | {"nfe": 20.0, "judge": 9.0}]
    curve = figures.curves(rows)[0]
    assert (curve.sampler, curve.order, curve.plain) == ("plain", "uniform", True)
    assert [row["nfe"] for row in curve.best("judge")] == [4, 8, 16, 32, 64]


def test_many_curves_are_named_in_the_corner(drawn: dict[str, Any]) -> None:
    """And a separately trained model has a colour of its own."""
    pytest.importorskip("matplotlib")
    plain = [row for row in drawn["rows"] if (row["sampler"], row["order"]) == ("plain", "uniform")]
    more = [
        row | {"sampler": sampler, "judge": row["judge"] + 0.1 * i}
        for i, sampler in enumerate(("plain, separate model", "threshold", "lookahead"), start=1)
        for row in plain
    ]
    figure = figures.quality_figure(drawn | {"rows": [*drawn["rows"], *more]})
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 7
    assert not any("order" in text.get_text() for text in figure.axes[0].texts)
    colours = {c.sampler: c.colour for c in figures.curves([*plain, *more])}
    assert colours["plain, separate model"] != colours["plain"] == colours["threshold"]
