"""Self-distillation through time, against its definition."""

import dataclasses
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RuggedTrunk, make_rugged, make_toy
from test_recipes import shrunk

from selfspec.data.loader import write_store
from selfspec.model import SSMD
from selfspec.recipes import books27, distil
from selfspec.recipes.sdtt import Distilled
from selfspec.train import AdamWConfig, Chance, Distillation, TrainConfig, Trainer

ROW = torch.tensor([[0, 1, 2, 0]])


def drafts(model: SSMD, row: tuple[int, ...]) -> np.ndarray:
    with torch.no_grad():
        return model.draft(model.encode(torch.tensor([row])))[0].softmax(-1).numpy()


def mean_targets(model: SSMD, time: float, step: float) -> np.ndarray:
    """Of three masked positions 0, 1, 2 of ROW, m = 2: the mean over coins and tokens, (3, V)."""
    first, mean = drafts(model, (3, 3, 3, 0)), np.zeros((3, 3))
    shown = step / 2 / time
    for coins in product([True, False], repeat=3):
        chance = np.prod([shown if coin else 1 - shown for coin in coins])
        at = [i for i in range(3) if coins[i]]
        for values in product(range(3), repeat=len(at)):
            row = [3, 3, 3, 0]
            for i, v in zip(at, values, strict=True):
                row[i] = v
            weight = chance * np.prod([first[i, row[i]] for i in at])
            second = drafts(model, tuple(row))
            mean += weight * np.stack([first[i] if coins[i] else second[i] for i in range(3)])
    return mean


def numbers(rows: int, time: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draws given that the first three positions, and they alone, are masked."""
    generator = torch.Generator().manual_seed(seed)
    v = time * torch.rand(rows, 4, generator=generator, dtype=torch.float64)
    v[:, 3] = 2
    u = torch.rand(rows, 4, generator=generator, dtype=torch.float64)
    return {"tokens": ROW.expand(rows, -1), "time": torch.full((rows,), time), "u": u, "v": v}


def test_targets_are_the_teachers_steps(rugged: SSMD):
    given = numbers(20_000, 0.8)
    targets = Distillation(rugged, step=0.6).targets(**given)[:, :3].exp()
    error = targets.std(0).numpy() / len(targets) ** 0.5
    gap = np.abs(targets.mean(0).numpy() - mean_targets(rugged, 0.8, 0.6))
    assert (gap < 4.5 * error).all()
    # One step is no two.
    assert (np.abs(drafts(rugged, (3, 3, 3, 0))[:3] - targets.mean(0).numpy()) > 9 * error).any()
    once = Distillation(rugged, step=0.6, substeps=1).targets(**given)[:, :3].exp()
    np.testing.assert_allclose(once[7], drafts(rugged, (3, 3, 3, 0))[:3], atol=1e-6)


def test_the_last_target_is_that_of_what_stays_masked(rugged: SSMD):
    """Everything but position 2 is drawn in the first of three steps."""
    given = numbers(1, 0.9)
    given["v"][0, :3] = torch.tensor([0.7, 0.8, 0.1])
    targets = Distillation(rugged, step=0.6, substeps=3).targets(**given)[0].exp()
    first = drafts(rugged, (3, 3, 3, 0))
    np.testing.assert_allclose(targets[:2], first[:2], atol=1e-6)
    drawn = [int(np.searchsorted(first[i].cumsum(), float(given["u"][0, i]))) for i in range(2)]
    np.testing.assert_allclose(targets[2], drafts(rugged, (*drawn, 3, 0))[2], atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_loss_is_its_divergence(rugged: SSMD, reverse: bool):
    student, given = make_rugged(3, 1), numbers(5, 0.8)
    objective = Distillation(rugged, step=0.6, reverse=reverse)
    targets = objective.targets(**given).exp().numpy()
    own = drafts(student, (3, 3, 3, 0))
    expected = np.mean([
        np.mean([np.sum(p * np.log(p / q)) for p, q in zip(*pair, strict=True)])
        for t in targets[:, :3]
        for pair in [(own[:3], t) if reverse else (t, own[:3])]
    ])  # fmt: skip
    loss, _ = objective.loss(student, **given)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_what_is_drawn_covers_all_times_and_leaves_what_is_observed(rugged: SSMD):
    tokens = torch.tensor([[0, 1, 2, 0, 1, 7]] * 8)
    pad = torch.arange(6).expand(8, 6) == 5
    chance = Chance(torch.Generator().manual_seed(0))
    drawn = Distillation(rugged, observed=(1,)).draw(tokens, chance, pad)
    assert sorted((drawn["time"] * 8).ceil().tolist()) == list(range(1, 9))
    never = (drawn["v"] > 1).all(0)
    assert never.tolist() == [False, True, False, False, True, True]


def test_a_forbidden_token_has_no_gradient(rugged: SSMD, monkeypatch: pytest.MonkeyPatch):
    own, student = RuggedTrunk.unembed, make_rugged(3, 1)

    def unembed(self: RuggedTrunk, hidden: torch.Tensor) -> torch.Tensor:
        return own(self, hidden).index_fill(-1, torch.tensor([1]), -torch.inf)

    monkeypatch.setattr(RuggedTrunk, "unembed", unembed)
    for reverse in (False, True):
        loss, _ = Distillation(rugged, step=0.6, reverse=reverse).loss(student, **numbers(5, 0.8))
        gradients = torch.autograd.grad(loss, list(student.trunk.parameters()))
        assert all(bool(g.isfinite().all()) for g in gradients)


class Rows:
    """Always the same."""

    def batch(self, step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(3, size=(64, 4))


def test_the_student_learns_the_mean_of_two_steps():
    """At step 1 and time 1: from nothing known, the marginals of the teacher's two steps."""
    teacher, student = make_rugged(3, 4), make_toy(3, 5, head_blocks=0)
    settings = TrainConfig(
        steps=150, batch_size=64, adamw=AdamWConfig(lr=0.02), ema_decay=0, log_every=50
    )
    objective = Distillation(teacher, step=1.0)
    before = teacher.trunk.state_dict()["embedding"].clone()
    rows = Rows().batch(0)
    trainer = Trainer(student, objective, settings, Rows(), valid=rows)
    first = trainer.validate()["distillation"]
    assert trainer.run(progress=False)
    assert trainer.validation["distillation"] < 0.5 * first
    assert torch.equal(teacher.trunk.state_dict()["embedding"], before)


def test_rounds_follow_one_another(tmp_path: Path):
    tokens = np.random.default_rng(0).integers(27, size=2000)
    store = write_store(tmp_path / "train.bin", [tokens], 27)
    start = shrunk(books27.trunk()).build()
    recipe = shrunk(books27.sdtt())
    assert isinstance(recipe, Distilled)
    assert isinstance(start, SSMD)
    made = distil(recipe, start, tmp_path, store, rounds=2, device="cpu", progress=False)
    assert isinstance(made, SSMD)
    assert (tmp_path / "round-2" / "model" / "model.safetensors").exists()
    again = distil(recipe, start, tmp_path, store, rounds=2, device="cpu", progress=False)
    assert isinstance(again, SSMD)
    for name, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    other = dataclasses.replace(recipe, reverse=True)
    with pytest.raises(ValueError, match="objective"):
        distil(other, start, tmp_path, store, rounds=1, device="cpu", progress=False)


def test_bad_settings_are_named(rugged: SSMD):
    with pytest.raises(ValueError, match="`step` must be above 0 and at most 1, got 2"):
        Distillation(rugged, step=2)
    with pytest.raises(ValueError, match="`substeps` must be at least 1, got 0"):
        Distillation(rugged, substeps=0)
