import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel

from selfspec import checkpoint
from selfspec.data.tokenizers import CharTokenizer
from selfspec.files import locked
from selfspec.losses import next_token_loss, ssmd_loss
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.attention import rotation
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Block, Trunk, TrunkConfig
from selfspec.train import (
    AdamWConfig,
    Chance,
    CheckpointError,
    Cosine,
    Diffusion,
    MuonConfig,
    NextToken,
    TrainConfig,
    Trainer,
    initialise,
    parallel,
)
from selfspec.train.blocks import compiled
from selfspec.train.feed import Feed
from selfspec.train.process import interrupts
from selfspec.train.report import Meter, Report
from selfspec.train.state import checkpoints, read_about
from selfspec.train.trainer import VALID as VALIDATION
from selfspec.train.trainer import key

V, L, WIDTH = 5, 12, 32
CONFIG = TrainConfig(
    steps=12,
    batch_size=8,
    adamw=AdamWConfig(lr=3e-3),
    schedule=Cosine(warmup=2),
    ema_decay=0.8,
    log_every=2,
    valid_every=6,
    save_every=3,
)
SHAPE = TrunkConfig(vocab_size=V, length=L, width=WIDTH, blocks=2, heads=2, dropout=0.1)


class Toy:
    """Rows that count upwards modulo V from a random start; may misbehave at one step."""

    def __init__(self, rows: int = 8, at: int = -1, do=None) -> None:
        self.rows, self.at, self.do = rows, at, do

    def batch(self, step: int) -> np.ndarray:
        if step == self.at and self.do:
            self.do()
        start = np.random.default_rng(step).integers(V, size=(self.rows, 1))
        return (start + np.arange(L)) % V


VALID = Toy(rows=20).batch(10_000)


class Killed(Exception):
    pass


def die():
    raise Killed


def diffusion_model(head: bool = True) -> SSMD:
    torch.manual_seed(0)
    head_config = HeadConfig(heads=2, dropout=0.1)
    model = SSMD(Trunk(SHAPE), CausalHead(head_config, WIDTH) if head else None)
    if model.head is not None:  # away from target = draft
        torch.nn.init.normal_(model.head.project.weight, std=0.1)
    return model


def judge_model() -> AutoregressiveModel:
    torch.manual_seed(0)
    return AutoregressiveModel(Trunk(replace(SHAPE, causal=True)))


JOBS = {
    "joint": (diffusion_model, Diffusion()),
    "frozen": (diffusion_model, Diffusion(freeze_trunk=True)),
    "plain": (lambda: diffusion_model(head=False), Diffusion()),
    "judge": (judge_model, NextToken()),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer(job: str, folder: Path | None = None, config=CONFIG, batches=None, valid=VALID):
    build, objective = JOBS[job]
    return Trainer(build(), objective, config, batches or Toy(), folder, valid)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def log_lines(folder: Path) -> list[dict]:
    timing = ("elapsed", "tokens_per_second")
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def all_but_lock(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {"tensorboard", "lock"}


# Exact resume


@pytest.mark.parametrize("job", JOBS)
def test_killed_and_resumed_equals_uninterrupted(job, tmp_path):
    config = replace(CONFIG, muon=MuonConfig(), accumulate=2)
    whole = trainer(job, tmp_path / "whole", config)
    assert whole.run(progress=False)

    with pytest.raises(Killed):
        trainer(job, tmp_path / "cut", config, Toy(at=8, do=die)).run(progress=False)
    resumed = trainer(job, tmp_path / "cut", config)
    for p in resumed.params.values():
        torch.nn.init.normal_(p)  # whatever it holds, the checkpoint counts
    resumed.resume()
    assert resumed.step == 6
    assert resumed.run(progress=False)
    assert_same(weights(whole.model), weights(resumed.model))
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "cut")
    assert_same(
        weights(whole.model), weights(checkpoint.load(tmp_path / "cut" / "model")),
    )  # fmt: skip


def test_what_is_frozen_is_not_stored_and_must_be_the_same(tmp_path):
    assert trainer("frozen", tmp_path).run(progress=False)
    last, before = checkpoints(tmp_path / "state")
    assert (last.name, before.name) == ("00000012", "00000009")
    (file,) = last.glob("*.safetensors")
    assert all("/head." in name for name in load_file(file))
    assert len(read_about(last)["run"]["frozen"]) == 64
    model = diffusion_model()
    torch.nn.init.normal_(next(model.trunk.parameters()))
    other = Trainer(model, JOBS["frozen"][1], CONFIG, Toy(), tmp_path, VALID)
    with pytest.raises(ValueError, match="`frozen` must be"):
        other.run(progress=False)


def test_what_was_frozen_before_a_run_is_so_afterwards():
    free, model = trainer("frozen"), diffusion_model()
    model.trunk.requires_grad_(False)
    run = Trainer(model, JOBS["frozen"][1], CONFIG, Toy())
    run.run(progress=False)
    free.run(progress=False)
    assert not any(p.requires_grad for p in run.model.trunk.parameters())
    assert all(p.requires_grad for p in free.model.parameters())


SCRIPT = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import torch
    from test_trainer import Toy, trainer
    torch.set_num_threads(1)
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    trainer("joint", {folder!r}, batches=Toy(at=8, do=kill)).run(progress=False)
"""


def test_sigkill_of_a_process_and_resume(tmp_path):
    tests = str(Path(__file__).parent)
    script = textwrap.dedent(SCRIPT.format(tests=tests, folder=str(tmp_path / "cut")))
    ended = subprocess.run([sys.executable, "-c", script], cwd=Path(tests).parent, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    torn = tmp_path / "cut" / "state" / "00000009.part"
    torn.mkdir()
    (torn / "about.json.1.part").write_bytes(b"torn")
    resumed, whole = trainer("joint", tmp_path / "cut"), trainer("joint", tmp_path / "whole")
    assert resumed.run(progress=False)
    assert whole.run(progress=False)
    assert_same(weights(whole.model), weights(resumed.model))
    assert all_but_lock(tmp_path / "cut") == all_but_lock(tmp_path / "whole")


def test_ctrl_c_saves_says_one_line_and_resumes_exactly(tmp_path, capsys):
    interrupt = Toy(at=5, do=lambda: os.kill(os.getpid(), signal.SIGINT))
    cut = trainer("joint", tmp_path / "cut", batches=interrupt)
    handler = signal.getsignal(signal.SIGINT)
    assert not cut.run(progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    assert 4 <= cut.step < 12
    assert capsys.readouterr() == ("", f"stopped at step {cut.step}; run it again to resume\n")
    resumed, whole = trainer("joint", tmp_path / "cut"), trainer("joint")
    assert resumed.run(progress=False)
    assert whole.run(progress=False)
    assert_same(weights(whole.model), weights(resumed.model))


def test_a_second_ctrl_c_ends_at_once():
    with interrupts() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_batch_is_that_of_the_step_whatever_was_read_ahead():
    feed = Feed(Toy(), torch.device("cpu"))
    for step in (0, 1, 5, 0):
        assert np.array_equal(feed(step).tokens, Toy().batch(step))
    feed.close()


def test_stop_after_and_again_in_the_same_process(tmp_path):
    cut, whole = trainer("plain", tmp_path), trainer("plain")
    assert not cut.run(stop_after=0, progress=False)
    assert cut.step == 1
    assert [path.name for path in checkpoints(tmp_path / "state")] == ["00000001"]
    assert cut.run(progress=False)
    assert whole.run(progress=False)
    assert_same(weights(whole.model), weights(cut.model))


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_never_comes_is_refused(seconds):
    with pytest.raises(ValueError, match="`stop_after` must be at least 0 seconds, got"):
        trainer("joint", None).run(stop_after=seconds, progress=False)


def test_clock_and_validation_go_on(tmp_path):
    with pytest.raises(Killed):
        trainer("plain", tmp_path, batches=Toy(at=7, do=die)).run(progress=False)
    about, resumed = read_about(checkpoints(tmp_path / "state")[0]), trainer("plain", tmp_path)
    resumed.resume()
    assert resumed.validation == about["validation"] != {}
    assert resumed.run(progress=False)
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    elapsed = [line["elapsed"] for line in lines]
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] > about["elapsed"] > 0


def test_a_finished_run_does_nothing_more(tmp_path):
    first = trainer("plain", tmp_path)
    first.run(progress=False)
    for file in (tmp_path / "model").iterdir():  # as if killed between state and model
        file.unlink()
    second = trainer("plain", tmp_path, batches=Toy(at=12, do=die))
    assert second.run(progress=False)
    assert_same(weights(first.model), weights(second.model))
    assert_same(weights(first.model), weights(checkpoint.load(tmp_path / "model")))


def test_another_run_is_not_resumed(tmp_path):
    trainer("joint", tmp_path).run(progress=False)
    with pytest.raises(ValueError, match=r"`seed` must be 0, .*, got 1"):
        trainer("joint", tmp_path, replace(CONFIG, seed=1)).run(progress=False)
    with pytest.raises(ValueError, match="`objective` must be"):
        trainer("frozen", tmp_path).run(progress=False)
    with pytest.raises(ValueError, match=r"`blocks` must be 1, .*, got 0"):
        trainer("plain", tmp_path).run(progress=False)
    longer = SSMD(Trunk(replace(SHAPE, blocks=SHAPE.blocks + 1)), diffusion_model().head)
    with pytest.raises(ValueError, match=r"got other parameters: trunk\..* was none, is "):
        Trainer(longer, Diffusion(), CONFIG, Toy(), tmp_path, VALID).run(progress=False)
    other = Trainer(diffusion_model(), Diffusion(), CONFIG, Toy(), tmp_path, VALID, data="other")
    with pytest.raises(ValueError, match=r"`data` must be None, .*, got other"):
        other.run(progress=False)
    assert trainer("joint", tmp_path, replace(CONFIG, log_every=5)).run(progress=False)


def test_a_run_may_go_on_in_more_micro_batches(tmp_path):
    config = replace(CONFIG, accumulate=4)
    cut = trainer("judge", tmp_path, batches=Toy(at=7, do=die))
    with pytest.raises(Killed):
        cut.run(progress=False)
    resumed = trainer("judge", tmp_path, config)
    resumed.resume()
    assert resumed.step == 6
    seen, to_device = [], resumed.feed.to_device
    resumed.feed.to_device = lambda tokens: seen.append(len(tokens)) or to_device(tokens)
    assert resumed.run(progress=False)
    assert set(seen) == {2}  # nor does validation take more memory


# The step


@pytest.mark.parametrize("job", ["joint", "frozen", "plain"])
def test_two_half_batches_equal_one_batch(job):
    runs = []
    for accumulate in (1, 2, 4):
        config = replace(CONFIG, accumulate=accumulate, clip=1e9)
        build, objective = JOBS[job]
        model = build().double()
        for module in model.modules():  # draws of dropout belong to a micro-batch
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run = Trainer(model, objective, config, Toy())
        for _ in range(3):
            run.update()
        runs.append((weights(model), run._read_meter()))
    for other, meter in runs[1:]:
        for name, weight in runs[0][0].items():
            torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-12)
        parts = {k: v for k, v in meter.items() if k != "tokens_per_second"}
        assert parts == pytest.approx({k: runs[0][1][k] for k in parts}, abs=1e-12)


def test_a_frozen_trunk_stays_bitwise_and_the_head_moves():
    run = trainer("frozen")
    before = weights(run.model)
    run.run(progress=False)
    for name, weight in weights(run.model).items():
        assert torch.equal(weight, before[name]) == name.startswith("trunk."), name


def test_a_frozen_trunk_has_no_dropout_and_a_trained_one_has():
    frozen, joint = trainer("frozen"), trainer("joint")
    frozen.update()
    joint.update()
    assert not any(module.training for module in frozen.model.trunk.modules())
    assert all(module.training for module in frozen.model.head.modules())
    assert all(module.training for module in joint.model.modules())


def test_clipping_bounds_the_gradient_that_the_optimiser_sees(monkeypatch):
    run = trainer("joint", config=replace(CONFIG, clip=1e-3))
    norms = []
    step = run.optimisers.step

    def spy(factor):
        gradients = [p.grad.flatten() for p in run.params.values() if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        step(factor)

    monkeypatch.setattr(run.optimisers, "step", spy)
    run.update()
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert run._read_meter()["grad_norm"] > 0.01


def test_a_run_depends_on_its_seed_only_and_leaves_the_global_generator():
    outcomes = {}
    for name, seed, state in [("a", 0, 1), ("b", 0, 2), ("c", 1, 1)]:
        run = trainer("joint", config=replace(CONFIG, seed=seed))
        torch.manual_seed(state)
        expected = torch.random.get_rng_state()
        run.run(progress=False)
        assert torch.equal(torch.random.get_rng_state(), expected)
        outcomes[name] = weights(run.model)["head.fuse.weight"]
    assert torch.equal(outcomes["a"], outcomes["b"])
    assert not torch.equal(outcomes["a"], outcomes["c"])


def test_a_step_is_the_formula():
    """Draws, loss, clipping, schedule, optimiser and average, in a plain loop."""
    adamw = AdamWConfig(lr=3e-3, betas=(0.8, 0.9), weight_decay=0.1, eps=1e-3)
    changes = {"schedule": Cosine(warmup=3), "clip": 0.3, "seed": 3, "accumulate": 2}
    config = replace(CONFIG, steps=6, adamw=adamw, **changes)
    run, model = (SSMD(Trunk(replace(SHAPE, dropout=0.0))).double() for _ in range(2))
    model.load_state_dict(run.state_dict())
    trained = Trainer(run, Diffusion(), config, Toy())
    params = list(model.parameters())
    average = [p.detach().clone() for p in params]
    split = [[p for p in params if p.ndim > 1], [p for p in params if p.ndim == 1]]
    optimizer = torch.optim.AdamW(
        [{"params": split[0]}, {"params": split[1], "weight_decay": 0.0}],
        lr=3e-3, betas=(0.8, 0.9), weight_decay=0.1, eps=1e-3,
    )  # fmt: skip
    norms = []
    for step, factor in enumerate([1 / 3, 2 / 3, 1, 1, 0.75, 0.25]):
        tokens = torch.from_numpy(Toy().batch(step))
        generator = torch.Generator().manual_seed(key(3, 0, step))
        loss = ssmd_loss(model, **Diffusion().draw(tokens, Chance(generator)))
        optimizer.zero_grad()
        loss.total.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, 0.3)))
        for group in optimizer.param_groups:
            group["lr"] = adamw.lr * factor
        optimizer.step()
        decay = min(0.8, (step + 1) / (step + 10))
        for a, w in zip(average, params, strict=True):
            a.lerp_(w.detach(), 1 - decay)
        trained.update()
    assert min(norms) > 0.3
    assert trained._read_meter()["grad_norm"] == pytest.approx(np.mean(norms))
    for ours, w in zip(run.parameters(), params, strict=True):
        torch.testing.assert_close(ours, w, rtol=0, atol=1e-12)
    for ours, a in zip(trained.ema.average, average, strict=True):
        torch.testing.assert_close(ours, a, rtol=0, atol=1e-12)


def test_dropout_has_a_seed_for_every_run_step_rank_and_micro_batch(monkeypatch):
    runs = {}
    for seed, rank in [(0, 0), (0, 1), (1, 0)]:
        config = replace(CONFIG, seed=seed, accumulate=2, batch_size=16)
        runs[seed, rank] = Trainer(judge_model(), NextToken(), config, Toy())
        runs[seed, rank].rank, runs[seed, rank].world = rank, 2
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for run in runs.values():
        run.update()
        run.update()
        assert run._meter._tokens == 2 * 16 * L  # of all ranks
    assert len(set(seeds)) == len(seeds) == 3 * 2 * 2


def test_each_step_and_rank_draws_its_own_orders(monkeypatch):
    drawn = []
    draw = Diffusion.draw

    def spy(self, tokens, chance, pad):
        drawn.append(draw(self, tokens, chance, pad)["order"])
        return draw(self, tokens, chance, pad)

    monkeypatch.setattr(Diffusion, "draw", spy)
    for rank in (0, 1):
        config = replace(CONFIG, batch_size=16)
        run = trainer("joint", config=config)
        run.rank, run.world = rank, 2
        run.update()
        run.update()
    assert len({tuple(order.flatten().tolist()) for order in drawn}) == 4


def damage(path: Path, how: str) -> None:
    """What a disk, or a person, may do to a checkpoint."""
    (shard,) = path.glob("*.safetensors")
    if how == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif how == "emptied":
        shard.write_bytes(b"")
    elif how == "lost":
        shard.unlink()
    else:
        (path / "about.json").write_text("{")


@pytest.mark.parametrize("how", ["truncated", "emptied", "lost", "garbled"])
def test_a_damaged_checkpoint_costs_one_save_interval(how, tmp_path, caplog):
    with pytest.raises(Killed):
        trainer("joint", tmp_path, batches=Toy(at=8, do=die)).run(progress=False)
    last, before = checkpoints(tmp_path / "state")
    damage(last, how)
    resumed, whole = trainer("joint", tmp_path), trainer("joint", tmp_path / "whole")
    resumed.resume()
    assert resumed.step == int(before.name) == 3
    assert f"{last}: not a readable training state" in caplog.text
    assert resumed.run(progress=False)
    assert whole.run(progress=False)
    assert_same(weights(whole.model), weights(resumed.model))
    names = [path.name for path in checkpoints(tmp_path / "state")]
    assert names == ["00000012", "00000009"]


def test_a_damaged_checkpoint_goes_when_an_earlier_one_is_written(tmp_path):
    with pytest.raises(Killed):
        trainer("plain", tmp_path, batches=Toy(at=10, do=die)).run(progress=False)
    damage(checkpoints(tmp_path / "state")[0], "emptied")
    assert not trainer("plain", tmp_path).run(stop_after=0, progress=False)
    assert [path.name for path in checkpoints(tmp_path / "state")] == ["00000007", "00000006"]


def test_if_no_checkpoint_is_readable_that_is_said(tmp_path):
    run = trainer("plain", tmp_path)
    run.update()
    run.save()
    damage(tmp_path / "state" / "00000001", "truncated")
    with pytest.raises(ValueError, match=r"state/00000001: not a readable training state"):
        trainer("plain", tmp_path).resume()


def test_data_parallel_training_does_not_cut_compiled_blocks(tmp_path, monkeypatch):
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compile_(f, **{**kw, "backend": counter}))
    block, turns = Block(256, heads=2), rotation(torch.arange(4), 128, torch.float32)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with compiled(block):
            wrapped = DistributedDataParallel(block, bucket_cap_mb=1)  # of 3 MB
            wrapped(torch.randn(1, 4, 256), turns, turns)
    finally:
        dist.destroy_process_group()
    assert counter.frame_count == 1


@pytest.mark.parametrize(("local", "cap"), [("2", 1 << 20), ("1", None), (None, None)])
def test_gradients_go_in_one_piece_on_one_machine_alone(monkeypatch, local, cap):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.setattr(parallel, "group", lambda: parallel.Group(0, 2))
    monkeypatch.setattr(parallel, "DistributedDataParallel", lambda loss, **options: options)
    options: Any = parallel.distributed(torch.nn.Linear(1, 1), "ddp", torch.device("cpu"))
    assert options["bucket_cap_mb"] == cap


def test_blocks_are_compiled_for_as_long_as_the_run_lasts():
    model = diffusion_model()
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert len(blocks) > 1
    with compiled(model):
        assert all(block._compiled_call_impl is not None for block in blocks)
    assert all(block._compiled_call_impl is None for block in blocks)


def test_a_frozen_trunk_minimises_the_target_alone():
    draws = Diffusion().draw(torch.from_numpy(VALID), Chance(torch.Generator()))
    for objective in (Diffusion(), Diffusion(freeze_trunk=True)):
        total, parts = objective.loss(diffusion_model().eval(), **draws)
        wanted = parts["target"] + (0 if objective.freeze_trunk else parts["draft"])
        assert total.item() == pytest.approx(wanted.item())


@pytest.mark.parametrize("job", JOBS)
def test_the_loss_falls_on_a_learnable_toy(job):
    config = replace(CONFIG, steps=60, batch_size=32, adamw=AdamWConfig(lr=1e-2), log_every=60)
    run = trainer(job, config=config, batches=Toy(rows=32))
    before = run.validate()
    run.run(progress=False)
    after = run.validate()
    name = {"frozen": "target", "joint": "target", "plain": "draft", "judge": "judge"}[job]
    assert after[name] < 0.85 * before[name]
    assert (after.get("draft") == before.get("draft")) == (job in ("frozen", "judge"))


# Validation


def test_validation_is_the_loss_of_the_averaged_weights_in_nats():
    run = trainer("joint")
    for _ in range(4):
        run.update()
    live = weights(run.model)
    measured = run.validate()
    assert_same(live, weights(run.model))
    torch.manual_seed(99)
    assert run.validate() == measured

    averaged = diffusion_model().eval()
    for name, average in zip(run.params, run.ema.average, strict=True):
        averaged.get_parameter(name).data.copy_(average)
    expected = {"draft": 0.0, "target": 0.0}
    for index, rows in enumerate(torch.from_numpy(VALID).split(CONFIG.batch_size)):
        chance = Chance(torch.Generator().manual_seed(key(0, VALIDATION, index)))
        loss = ssmd_loss(averaged, **Diffusion().draw(rows, chance))
        assert loss.target is not None
        expected["draft"] += loss.draft.item() * len(rows) / len(VALID)
        expected["target"] += loss.target.item() * len(rows) / len(VALID)
    assert measured == pytest.approx(expected)


def test_validation_does_not_depend_on_the_training_seed():
    first, other = trainer("joint"), trainer("joint", config=replace(CONFIG, seed=7))
    assert first.validate() == other.validate()


def test_the_last_step_is_validated(tmp_path):
    trainer("plain", tmp_path, replace(CONFIG, steps=5, valid_every=4)).run(progress=False)
    assert [line["step"] for line in log_lines(tmp_path) if "valid_draft" in line] == [4, 5]


def test_validation_weighs_rows_equally_when_the_last_chunk_is_short():
    run = trainer("judge")
    with torch.no_grad():
        expected = next_token_loss(run.model.eval(), torch.from_numpy(VALID)).item()
    assert len(VALID) % CONFIG.batch_size
    assert run.validate()["judge"] == pytest.approx(expected, rel=1e-6)


# Files


def test_the_log_has_nats_and_bits(tmp_path):
    trainer("joint", tmp_path).run(progress=False)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 6, 8, 9, 10, 12, 12]
    training, validation = lines[0], lines[4]
    assert set(training) == {
        "step", "draft", "target", "draft_bits", "target_bits", "lr", "grad_norm",
    }  # fmt: skip
    assert training["lr"] == 3e-3
    assert lines[2]["lr"] == pytest.approx(3e-3 * CONFIG.schedule.factor(3, 12))
    assert lines[2]["lr"] < 3e-3
    assert validation["valid_draft_bits"] == pytest.approx(validation["valid_draft"] / np.log(2))


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_used_where_it_is_installed(installed, tmp_path, monkeypatch):
    if installed:
        pytest.importorskip("tensorboard")
    else:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert trainer("plain", tmp_path).run(progress=False)
    assert any((tmp_path / "tensorboard").glob("events.*")) == installed
    assert len(log_lines(tmp_path)) == 10


def test_tensorboard_shows_what_the_log_has(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Killed):
        trainer("plain", tmp_path, batches=Toy(at=11, do=die)).run(progress=False)
    assert trainer("plain", tmp_path).run(progress=False)  # from step 9
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    steps = [line["step"] for line in log_lines(tmp_path) if "draft" in line]
    assert [event.step for event in found.Scalars("draft")] == steps


def test_the_meter_counts_tokens_a_second():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)})
    meter.add({"loss": torch.tensor(2.0)}, 0.5)
    meter.end_step(1000)
    meter._start -= 100
    assert meter.read() == pytest.approx({"loss": 2.0, "tokens_per_second": 10}, rel=0.01)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    run = trainer("plain", tmp_path)
    for _ in range(3):
        run.update()
    run.save()
    (kept,) = checkpoints(tmp_path / "state")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left.*before it is intact"):
            trainer("plain", tmp_path).run(progress=False)
        with pytest.raises(CheckpointError, match=r"No space left.*there is none before it"):
            trainer("plain", tmp_path / "new").run(progress=False)
    assert checkpoints(tmp_path / "state") == [kept]
    assert not list(tmp_path.rglob("*.part"))
    resumed, whole = trainer("plain", tmp_path), trainer("plain")
    resumed.resume()
    assert resumed.step == 3
    assert resumed.run(progress=False)
    whole.run(progress=False)
    assert_same(weights(whole.model), weights(resumed.model))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is full")
def test_a_log_that_cannot_be_written_is_named(tmp_path):
    report = Report(tmp_path, 0, 1, progress=False)
    report._path = Path("/dev/full")
    with pytest.raises(OSError, match="'/dev/full'"):
        report.write(1, 0.0, {})
    report.close()


def test_lines_stand_for_a_bar_that_nobody_sees(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr(sys.modules[Report.__module__], "time", clock)
    reports = [Report(None, 0, 9, progress=progress) for progress in (True, False)]
    for step, now, name in ((1, 1.0, "draft"), (2, 2.0, "draft"), (3, 3.0, "valid_draft"),
                            (4, 62.0, "draft"), (5, 64.0, "draft")):  # fmt: skip
        clock.now = now
        for report in reports:
            report.write(step, now, {f"{name}_bits": step / 2, "tokens_per_second": 1000.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 3 of 9, 3 s: draft 1.000, tok/s 1,000, valid_draft 1.500",
        "step 5 of 9, 64 s: draft 2.500, tok/s 1,000, valid_draft 1.500",
    ]


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(RuntimeError, match="another run is at work in"),
    ):
        trainer("plain", tmp_path).run(progress=False)
    assert all_but_lock(tmp_path) == set()
    assert trainer("plain", tmp_path).run(progress=False)


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path):
    run = trainer("plain", tmp_path)

    def spoil():
        # Unseen by autograd: this is the thread that reads ahead, while a step may be under way.
        run.model.trunk.norm.weight.data.fill_(float("nan"))

    run.feed._batches = Toy(at=8, do=spoil)
    with pytest.raises(RuntimeError, match="not finite by step"):
        run.run(progress=False)
    fresh = trainer("plain", tmp_path)
    fresh.resume()
    assert fresh.step == 6
    assert all(weight.isfinite().all() for weight in weights(fresh.model).values())


# Starting points and errors


def test_initialise_takes_the_trunk_then_both(tmp_path):
    trunk_only, both = trainer("plain", tmp_path), trainer("frozen", tmp_path / "head")
    trunk_only.run(progress=False)
    initialise(both.model, tmp_path / "model")
    assert_same(weights(trunk_only.model.trunk), weights(both.model.trunk))
    both.run(progress=False)
    joint = diffusion_model()
    initialise(joint, both.model)
    assert_same(weights(both.model), weights(joint))
    joint.tokenizer, both.model.tokenizer = CharTokenizer("abcde"), CharTokenizer("edcba")
    with pytest.raises(ValueError, match="`source` must have the tokenizer of the data"):
        initialise(joint, both.model)


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="`freeze_trunk` needs a model with a head"):
        Trainer(diffusion_model(head=False), Diffusion(freeze_trunk=True), CONFIG, Toy())
    with pytest.raises(ValueError, match="`valid` must have at least one row"):
        trainer("plain", valid=VALID[:0])
    with pytest.raises(ValueError, match=r"`batches` must be of 8 rows .*, got 4"):
        trainer("plain", batches=Toy(rows=4)).run(progress=False)
    with pytest.raises(ValueError, match=r"`source` must have the model's trunk, .* in 'blocks\.0"):
        initialise(
            diffusion_model(), AutoregressiveModel(Trunk(replace(SHAPE, width=16, causal=True)))
        )


def test_windows_of_training_are_those_of_the_generated_places_alone():
    """Δτ is at most .3, of the tokens that are neither observed nor pads."""
    tokens = torch.zeros(4096, 40, dtype=torch.int64)
    tokens[:, ::4] = 1  # ten to generate, thirty observed, four of which are pads
    pad = (torch.arange(40) >= 35).expand_as(tokens) & (tokens == 0)
    objective = Diffusion(window_weight=1.0, observed=(0,))
    drawn = objective.draw(tokens, Chance(torch.Generator().manual_seed(0)), pad)
    generated, window = drawn["revealed"] - (tokens == 0)[0].sum() + pad[0].sum(), drawn["window"]
    for i in range(10):
        tau = math.acos(1 - i / 10) * 2 / math.pi
        least, most = (
            max(1, 10 - i - math.floor(10 * math.cos(math.pi / 2 * min(1, tau + dtau))))
            for dtau in (0.01, 0.3)
        )
        found = window[generated == i]
        assert found.min() == least
        assert most - 1 <= found.max() <= most
