"""Samplers, engine and scores on trunks of the Hub: frames, pads and logits of -inf."""

from typing import Any

import hubs
import pytest
import torch
from test_hub import MODELS, attached
from torch import Tensor, nn

import selfspec as ss
from selfspec import sampling
from selfspec.engine import Engine
from selfspec.hub import HubTrunk
from selfspec.prompts import in_frame, layout

PROMPTS = ["AC____W", "____________", "K__", "M_A_C_D_E_"]
SAMPLERS: dict[str, Any] = {
    "speculative": lambda m: ss.SpeculativeSampler(m, ss.UniformOrder(), ss.CosineWindow(0.2), 3),
    "spaced, nucleus": lambda m: ss.SpeculativeSampler(
        m, ss.RespacedOrder(), ss.ConstantWindow(4), 2, 0.7, 0.9
    ),
    "plain": lambda m: ss.FixedCountSampler(m, steps=3),
    "one a pass": ss.AnyOrderSampler,
}


def framed_model(name: str) -> Any:
    """MDLM's vocabulary has a mask of its own, and no tokenizer of letters fits it."""
    return attached(name, tokenizer=None if name == "MDLM" else hubs.tokenizer())


def prompted(model: Any, name: str) -> tuple[Tensor, Tensor]:
    """Masked rows of several lengths with their frames, and their pads."""
    if name == "MDLM":
        rows = [torch.full((n,), model.mask_id) for n in (7, 12, 3)]
        rows[0][1:3] = 6
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return tokens, torch.arange(12) >= torch.tensor([[7], [12], [3]])
    prompts = PROMPTS[1:2] if name == "LLaDA" else PROMPTS  # which sees pads
    return layout(prompts, model.tokenizer, model.mask_id, model.length, frame=model.frame)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", MODELS)
def test_the_engine_draws_row_for_row_what_the_reference_draws(name: str, sampler: str):
    model = framed_model(name)
    tokens, pad = prompted(model, name)
    tokens, pad = tokens.repeat_interleave(3, 0), pad.repeat_interleave(3, 0)
    made = SAMPLERS[sampler](model)
    plain = made.sample(tokens, 5, pad)
    longer = 0 if name == "LLaDA" else 3
    engine = Engine(model, 4, tokens.shape[1] + longer)  # rows take turns in the slots
    fast = engine.sample(made, tokens, 5, pad)
    assert fast.tokens.equal(plain.tokens)
    for count in ("trunk_passes", "head_passes", "drafted", "accepted"):
        assert getattr(fast, count).equal(getattr(plain, count)), count
    drawn = plain.tokens[(tokens == model.mask_id) & ~pad]
    assert not model.trunk.forbidden[drawn].any()
    assert len(drawn.unique()) > 3
    if name != "MDLM":
        around = in_frame(pad, model.frame)
        assert plain.tokens[around].equal(tokens[around])
        assert around.sum() == len(tokens) * sum(map(len, model.frame))


@pytest.mark.parametrize("name", MODELS)
def test_generate_is_the_same_by_engine_and_reference(name: str):
    model = framed_model(name)
    options: dict[str, Any] = {"num": 3, "rounds": 2, "seed": 4}
    if name in ("MDLM", "LLaDA"):
        options["length"] = 9
    else:
        options["prompt"] = PROMPTS
    fast, plain = (ss.generate(model, engine=x, **options) for x in (None, "reference"))
    assert fast.tokens.equal(plain.tokens)
    assert fast.text == plain.text
    assert fast.nfe.equal(plain.nfe)


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_text_are_finite(name: str):
    model = framed_model(name)
    tokens, pad = prompted(model, name)
    samples = ss.SpeculativeSampler(model, rounds=2).sample(tokens, 1, pad)
    options: Any = {"pad": pad, "observed": in_frame(pad, model.frame)}
    if name == "MDLM":
        options["observed"] = torch.zeros_like(pad)
    spaced = {"order": ss.RespacedOrder(), "window": ss.CosineWindow(0.2), "rounds": 2}
    for score in (
        ss.log_likelihood(model, samples.tokens, rounds=2, **options),
        ss.one_pass_score(model, samples.tokens, **options),
        ss.estimate_log_likelihood(model, samples.tokens, **spaced, **options),
    ):
        assert score.isfinite().all()
        assert (score < 0).all()


class Spoken(nn.Module):
    """The same trunk in a vocabulary of what may be drafted, and the mask behind it."""

    def __init__(self, inner: HubTrunk):
        super().__init__()
        self.inner, self.allowed = inner, (~inner.forbidden).nonzero().flatten()
        self.vocab_size = self.mask_id = len(self.allowed)
        self.width, self.length, self.num_blocks = inner.width, inner.length, inner.num_blocks
        self.ids = torch.cat([self.allowed, torch.tensor([inner.mask_id])])

    def forward(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.inner(self.ids[tokens], pad)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.inner.embed(self.ids[tokens])

    def unembed(self, hidden: Tensor) -> Tensor:
        return self.inner.unembed(hidden)[..., self.allowed]


APART = {"Sampler", "PlainSampler", "StaleCacheSampler", "DualDiffusionSampler",
         "GuidedStarShapedSampler", "PolicySampler"}  # fmt: skip
"""Abstract, or in need of a network of their own or of a trunk that keeps keys and values."""
KINDS = [kind for name, kind in vars(sampling).items()
         if name.endswith("Sampler") and name not in APART]  # fmt: skip
MORE: dict[str, Any] = {
    "KLASS, loose": lambda m: ss.KLASSSampler(m, tau=0.05, epsilon=10.0),
    "PUNT, loose": lambda m: ss.PUNTSampler(m, epsilon=0.5),
    "entropy": lambda m: ss.SpeculativeSampler(
        m, ss.ScoreOrder(ss.Entropy()), ss.EntropyBoundWindow(5.0), 2
    ),
    "margin": lambda m: ss.SpeculativeSampler(
        m, ss.CellOrder(ss.Margin()), ss.ConstantWindow(4), 2
    ),
    "span": lambda m: ss.SpeculativeSampler(
        m, ss.SpanOrder(), ss.ThresholdWindow(0.2), 2, 0.8, 0.9
    ),
    "factor": lambda m: ss.SpeculativeSampler(m, ss.ScoreOrder(), ss.FactorWindow(3.0), 2),
}


@pytest.mark.parametrize(
    "make", [*KINDS, *MORE.values()], ids=[*(kind.__name__ for kind in KINDS), *MORE]
)
def test_forbidden_tokens_change_nothing(make: Any):
    """Entropies, divergences and ranks too: 0 · log 0 is 0, not nan."""
    model = attached("BERT", forbidden=range(4)).double()
    spoken = ss.SSMD(Spoken(model.trunk), model.head)
    tokens = torch.full((4, 16), spoken.mask_id)
    tokens[:, 3], tokens[1, 5:9] = 7, 2
    ids: Any = spoken.trunk.ids
    one, other = make(model).sample(ids[tokens], 5), make(spoken).sample(tokens, 5)
    assert one.tokens.equal(ids[other.tokens])
    assert one.nfe.equal(other.nfe)
    assert one.accepted.equal(other.accepted)
