"""The small networks that guide samplers: their shape, their files, their training."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import make_rugged, make_scorer
from test_readme import load_script
from torch import Tensor

from selfspec import checkpoint
from selfspec.data.corpus import write_corpus
from selfspec.data.tokenizers import CharTokenizer
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.scorer import Scorer, ScorerConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.sampling import GuidedStarShapedSampler, PolicySampler
from selfspec.train import GRPO, AdamWConfig, Chance, Errors, Likelihood, TrainConfig, Trainer
from selfspec.train.guides import Rollouts

SETTINGS = TrainConfig(
    steps=150,
    batch_size=48,
    adamw=AdamWConfig(lr=0.02),
    ema_decay=0,
    log_every=5,
)


class Constant:
    """Rows of one token each."""

    def __init__(self, rows: int = 48):
        self.rows = np.arange(rows).repeat(6).reshape(rows, 6) % 3

    def batch(self, step: int) -> np.ndarray:
        return self.rows


def fresh(**shape: int) -> Scorer:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Scorer(ScorerConfig(width=16, heads=2, **shape)).double()


def logged(folder: Path, name: str) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines if name in json.loads(line)]


@pytest.mark.parametrize("shape", [{"vocab_size": 5}, {"features": 3}])
def test_a_scorer_is_saved_and_sees_no_pad(tmp_path: Path, shape: dict[str, int]):
    scorer = make_scorer(**shape).float()
    x = torch.randint(5, (2, 6)) if "vocab_size" in shape else torch.rand(2, 6, 3)
    pad = torch.arange(6).expand(2, 6) >= 4
    short, long = scorer(x[:, :4]), scorer(x, pad)
    assert short.shape == (2, 4)
    torch.testing.assert_close(long[:, :4], short)
    scorer.save(tmp_path / "made", note="kept")
    torch.testing.assert_close(Scorer.load(tmp_path / "made")(x, pad), long)
    assert not Scorer(scorer.config)(x).any()  # untrained, it prefers nothing
    with pytest.raises(ValueError, match="not a readable scorer"):
        Scorer.load(tmp_path)
    with pytest.raises(ValueError, match="one of `vocab_size` and `features`"):
        ScorerConfig()


def test_its_cost_is_a_share_of_the_trunk():
    assert make_scorer(features=3).share(width=16, blocks=10) == pytest.approx(0.25 / 10)


def odd_ones(sampler: GuidedStarShapedSampler) -> float:
    """The share of tokens that are not those of their row's majority."""
    drawn = sampler.sample(torch.full((2000, 6), 3)).tokens
    return (drawn != drawn.mode(1, keepdim=True).values).double().mean().item()


def test_the_error_predictor_learns_to_see_errors(rugged: SSMD, tmp_path: Path):
    """All rows of the data are of one token, and the model knows nothing of it."""
    predictor, objective = fresh(vocab_size=3), Errors(rugged)
    before = odd_ones(GuidedStarShapedSampler(rugged, predictor.eval(), 48, 1))
    Trainer(predictor, objective, SETTINGS, Constant(), tmp_path).run(progress=False)
    losses = logged(tmp_path, "errors")
    assert losses[-1] < 0.6 * losses[0]
    read = Scorer.load(tmp_path / "model").double()
    texts = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 2, 0, 0, 0]])
    assert (read(texts) > 0).tolist() == [[False] * 6, [i == 2 for i in range(6)]]
    after = odd_ones(GuidedStarShapedSampler(rugged, read, 48, 1))
    assert after < 0.7 * before


def test_what_is_known_is_no_error(rugged: SSMD):
    objective = Errors(rugged, observed=(1,))
    tokens, generator = torch.tensor([[0, 1, 2, 0, 1, 2]] * 4), torch.Generator().manual_seed(0)
    pad = torch.arange(6).expand(4, 6) >= 5
    drawn = objective.draw(tokens, Chance(generator), pad)
    seen: list[Tensor] = []

    class Spy(Scorer):
        def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
            seen.append(x)
            return super().forward(x, pad)

    scorer = Spy(ScorerConfig(vocab_size=3, width=8, heads=1)).double()
    loss, _ = objective.loss(scorer, **drawn)
    assert loss.item() == pytest.approx(np.log(2))  # untrained
    assert (seen[0][:, [1, 4]] == 1).all()
    loss.backward()
    assert scorer.output.weight.grad is not None
    assert all(p.grad is None for p in rugged.parameters())


@pytest.mark.parametrize("kind", ["errors", "policy"])
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(rugged: SSMD, tmp_path: Path, kind: str):
    settings = TrainConfig(steps=3, batch_size=12, save_every=2)
    shape = {"vocab_size": 3} if kind == "errors" else {"features": 3}

    def trainer(name: str) -> Trainer:
        made = Errors(rugged) if kind == "errors" else GRPO(rugged, quality=always, group=4)
        return Trainer(fresh(**shape), made, settings, Constant(12), tmp_path / name)

    assert trainer("whole").run(progress=False)
    assert not trainer("parts").run(stop_after=0, progress=False)
    assert trainer("parts").run(progress=False)
    whole, parts = (Scorer.load(tmp_path / name / "model") for name in ("whole", "parts"))
    assert whole.output.weight.any()
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value)


# The policy


def always(texts: Tensor, pad: Tensor) -> Tensor:
    """Every text is right."""
    return torch.ones(len(texts))


def grpo(model: SSMD, quality, folder: Path, alpha: float = 1.0) -> tuple[Scorer, list[float]]:
    policy = fresh(features=3)
    objective = GRPO(model, quality=quality, group=8, alpha=alpha)
    settings = TrainConfig(
        steps=40, batch_size=8, adamw=AdamWConfig(lr=0.05), ema_decay=0, log_every=2
    )
    Trainer(policy, objective, settings, Constant(8), folder).run(progress=False)
    return policy, logged(folder, "reward")


def test_a_policy_that_is_paid_for_speed_reveals_all_at_once(rugged: SSMD, tmp_path: Path):
    policy, rewards = grpo(rugged, always, tmp_path)
    assert rewards[0] < 0.6
    assert rewards[-1] > 0.75  # of 5/6 with one step of six
    steps = PolicySampler(rugged, policy).sample(torch.full((500, 6), 3)).trunk_passes
    untrained = PolicySampler(rugged, fresh(features=3)).sample(torch.full((500, 6), 3))
    assert steps.mean() < 0.7 * untrained.trunk_passes.mean()
    assert {"reward", "steps", "reward_bits"} - set(
        (tmp_path / "log.jsonl").read_text().replace('"', " ").split()
    ) == {"reward_bits"}


def test_a_policy_that_is_paid_for_patience_takes_its_time(tmp_path: Path):
    """The second token repeats the first if it sees it: one at a time is always right."""
    model = echo()
    policy, rewards = grpo(model, repeats, tmp_path, alpha=0.05)
    assert rewards[-1] > rewards[0] + 0.1
    out = PolicySampler(model, policy).sample(torch.full((500, 6), 3))
    assert repeats(out.tokens).mean() > 0.9


def repeats(texts: Tensor, pad: Tensor | None = None) -> Tensor:
    """Whether all tokens are the same."""
    return (texts == texts[:, :1]).all(1).double()


def echo() -> SSMD:
    """Uniform drafts until a token is known; then that token."""
    model = make_rugged(3, 0)

    class Echo(type(model.trunk)):
        def forward(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
            counts = torch.stack([(tokens == v).sum(1) for v in range(3)], -1)
            return (
                torch.nn.functional.pad(counts, (0, 5))
                .double()[:, None]
                .repeat(1, tokens.shape[1], 1)
            )

        def unembed(self, hidden: Tensor) -> Tensor:
            return 30 * hidden[..., :3]

    model.trunk.__class__ = Echo
    return model


def test_the_probability_of_what_the_policy_did_is_that_of_its_coins(rugged: SSMD):
    """Over all coins of the first step it sums to one; and over a whole run, by plain loops."""
    policy = make_scorer(seed=7, features=3)
    rollouts = Rollouts(rugged, policy, 0.5)
    tokens = torch.full((200, 4), 3)
    out = rollouts.sample(tokens, 1)
    logp, steps = rollouts.log_prob(200)
    passes = out.trunk_passes - steps * rollouts.cost
    torch.testing.assert_close(passes, steps)
    expected = np.zeros(200)
    for index, features, _, masked, taken in rollouts.seen:
        b = policy(features).detach() / 0.5
        for k, row in enumerate(index.tolist()):
            for i in masked[k].nonzero().flatten().tolist():
                chance = 1 / (1 + np.exp(-b[k, i].item()))
                expected[row] += np.log(chance if taken[k, i] else 1 - chance)
    np.testing.assert_allclose(logp.detach().numpy(), expected, atol=1e-9)
    first = rollouts.seen[0]
    total = 0.0
    for coins in itertools.product([False, True], repeat=4):
        once = Rollouts(rugged, policy, 0.5)
        once.seen = [(*(x[:1] for x in first[:4]), torch.tensor([coins]))]
        total += once.log_prob(1)[0].exp().item()
    assert total == pytest.approx(1)


def test_the_gradient_is_that_of_the_expected_reward():
    """Two tokens that are the same for sure if one is drawn after the other, else in a third."""
    policy, rows = make_scorer(seed=7, features=3), torch.zeros(100, 2, dtype=torch.int64)
    weight, estimates = policy.output.weight, []
    objective = GRPO(echo(), quality=repeats, alpha=0.0, group=64)
    for seed in range(10):
        drawn = objective.draw(rows, Chance(torch.Generator().manual_seed(seed)))
        (gradient,) = torch.autograd.grad(objective.loss(policy, **drawn)[0], weight)
        estimates.append(-gradient)
    together = policy(torch.tensor([[[1 / 3, 1, 1]] * 2]).double())[0].sigmoid().prod()
    value = 1 - together * 2 / 3
    (exact,) = torch.autograd.grad(value, weight)
    exact = exact / (value * (1 - value)).sqrt().detach()  # A is in units of the reward's spread
    mean, error = torch.stack(estimates).mean(0), torch.stack(estimates).std(0) / 10**0.5
    assert (exact.abs() > 10 * error).any()
    # The spread of a group is an estimate, and noisy: it changes the length, not the direction.
    length = (mean * exact).sum() / (exact * exact).sum()
    assert 0.8 < length < 1.05
    assert ((mean - length * exact).abs() < 4.5 * error).all()


def test_likelihood_is_that_of_the_judge():
    torch.manual_seed(0)
    judge = AutoregressiveModel(Trunk(TrunkConfig(3, 6, 8, 1, 1, causal=True)))
    texts = torch.randint(3, (4, 6))
    pad = torch.arange(6) >= torch.tensor([6, 6, 4, 1]).unsqueeze(1)
    logp = judge.log_probs(texts)
    expected = [logp[k, : int((~pad[k]).sum())].mean().exp().item() for k in range(4)]
    found = Likelihood(judge)(texts.masked_fill(pad, -7), pad)
    assert found.tolist() == pytest.approx(expected)


def test_rows_of_several_lengths_are_rewarded_each_by_its_own(rugged: SSMD):
    tokens = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, -7, -7, -7]])
    pad, seen = tokens < 0, []

    def quality(texts: Tensor, pads: Tensor) -> Tensor:
        seen.append((texts, pads))
        return torch.ones(len(texts))

    objective = GRPO(rugged, (1,), quality=quality, group=2)
    drawn = objective.draw(tokens, Chance(torch.Generator().manual_seed(0)), pad)
    _, parts = objective.loss(make_scorer(scale=0, features=3), **drawn)
    texts, pads = seen[0]
    assert torch.equal(pads, pad.repeat_interleave(2, 0))
    assert (texts[:, 1] == 1).all()  # observed
    assert 0 < parts["reward"] < 1


def test_a_step_a_token_earns_nothing(rugged: SSMD):
    """Of the tokens to generate: pads and what is observed take no step."""

    class Timid(Scorer):
        def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
            return super().forward(x, pad) - 50

    tokens = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, -7, -7, -7]])
    objective = GRPO(rugged, (1,), quality=always, group=2)
    drawn = objective.draw(tokens, Chance(torch.Generator().manual_seed(0)), tokens < 0)
    _, parts = objective.loss(Timid(ScorerConfig(features=3, width=8, heads=1)).double(), **drawn)
    assert parts["steps"] == (4 + 2) / 2
    assert parts["reward"] == 0


def test_bad_settings_are_named(rugged: SSMD):
    with pytest.raises(ValueError, match="`group` must be at least 2, got 1"):
        GRPO(rugged, quality=repeats, group=1)
    with pytest.raises(ValueError, match="`alpha` must be at least 0, got -1"):
        GRPO(rugged, quality=repeats, alpha=-1)


def test_the_guides_of_the_arena_are_trained_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint.save(tiny.model(), tmp_path / "model")
    checkpoint.save(tiny.judge(), tmp_path / "judge", training={"validation": {"judge": 3.0}})
    text = "it was the best of times it was the worst of times " * 20
    splits = {split: [text] for split in ("train", "valid", "test")}
    write_corpus(tmp_path / "data", splits, CharTokenizer())
    given = {"--model": "model", "--data": "data", "--judge": "judge"}
    common = [part for name, at in given.items() for part in (name, str(tmp_path / at))]
    runs = tmp_path / "runs"
    argv = ["guides.py", *common, "--runs", str(runs), "--tiny", "errors", "policy"]
    monkeypatch.setattr(sys, "argv", argv)
    load_script("guides").main()
    scorers = {"predictor": runs / "errors/model", "policy": runs / "policy/model"}
    guided = [part for name, at in scorers.items() for part in (f"--{name}", str(at))]
    out = tmp_path / "report.json"
    places = ["--folder", str(tmp_path / "arena"), "--out", str(out), *common, *guided]
    small = "--n 2 --batch-size 2 --steps 2 --profile 1 --length 24 --against plain guided policy"
    monkeypatch.setattr(sys, "argv", ["arena.py", *places, *small.split()])
    load_script("arena").main()
    report = json.loads(out.read_text())
    assert {"plain", "star-shaped, guided", "policy"} < {row["sampler"] for row in report["rows"]}
    facts = report["judges"]["guides"]
    assert [facts[name]["step"] for name in scorers] == [2, 2]
    assert 0 < facts["predictor"]["validation"]["errors"] < 1
    assert {row["commit"] for row in report["rows"]} == {report["commit"], None}
