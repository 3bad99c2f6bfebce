import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import hubs
import pytest
import torch
import transformers
from hubs import CLS, MASK, PAD, SEP
from safetensors.torch import load_file, save_file
from scipy import stats
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

import selfspec as ss
from selfspec.data.tokenizers import ESM_ALPHABET
from selfspec.engine import Engine
from selfspec.hub import HubTrunk, Vocabulary
from selfspec.hub.llada import DreamTrunk, LLaDATrunk
from selfspec.hub.tokenizer import HubTokenizer
from selfspec.hub.trunk import read_vocabulary
from selfspec.inputs import check_tokens
from selfspec.likelihood.profile import information_profile
from selfspec.likelihood.tables import draw_order
from selfspec.losses import ssmd_loss
from selfspec.train import Chance, Diffusion

hf: Any = transformers
attach_head: Any = ss.attach_head

MODELS = {
    "BERT": hubs.bert,
    "RoBERTa": hubs.roberta,
    "ModernBERT": hubs.modernbert,
    "DeBERTa": hubs.deberta,
    "DistilBERT": hubs.distilbert,
    "ELECTRA": hubs.electra,
    "ESM": hubs.esm,
    "ESM-1b": lambda: hubs.esm(position_embedding_type="absolute"),
    "MDLM": hubs.dit,
    "LLaDA": hubs.llada,
    "Dream": hubs.dream,
}


def attached(name: str, **options: Any) -> Any:
    """A head that disagrees with the trunk, unless it is untrained."""
    untrained = options.pop("untrained", False)
    mask_id = None if name == "MDLM" else MASK
    model = attach_head(MODELS[name](), heads=2, mask_id=mask_id, **options)
    if not untrained:
        with torch.random.fork_rng([]):
            torch.manual_seed(9)
            nn.init.normal_(model.head.project.weight)
    return model


def rows(model: Any, num: int = 4, length: int = 11) -> Tensor:
    """Random tokens that may be drafted, a third of them masked."""
    generator = torch.Generator().manual_seed(5)
    text = (~model.trunk.forbidden).nonzero().flatten()
    tokens = text[torch.randint(len(text), (num, length), generator=generator)]
    hidden = torch.rand(tokens.shape, generator=generator) < 1 / 3
    return tokens.masked_fill(hidden, model.mask_id)


def own_logits(model: Any, tokens: Tensor) -> Tensor:
    """By the model's own forward; Dream's are for the position behind."""
    if isinstance(model.trunk.model.config, hubs.mdlm.DiTConfig):
        return model.trunk.model.unembed(model.trunk.model(tokens))
    logits = model.trunk.model(input_ids=tokens).logits
    if isinstance(model.trunk, DreamTrunk):
        return torch.cat([logits[:, :1], logits[:, :-1]], 1)
    return logits


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_drafts_are_the_models_own_bit_for_bit(name: str):
    model = attached(name)
    tokens, allowed = rows(model), ~model.trunk.forbidden
    draft = model.draft(model.encode(tokens))
    assert draft[..., allowed].equal(own_logits(model, tokens)[..., allowed])
    assert (draft[..., ~allowed] == -torch.inf).all()
    assert not allowed[model.mask_id]
    # What is compared depends on all tokens, and differs from place to place.
    assert draft[..., allowed].std(1).min() > 1e-3


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_target_is_the_draft_until_the_head_is_trained(name: str):
    model = attached(name, untrained=True)
    tokens = rows(model)
    order = torch.rand(tokens.shape).argsort(1)
    hidden = model.encode(tokens)
    target = model.target(hidden, tokens, order, torch.zeros(4, dtype=torch.int64))
    allowed = ~model.trunk.forbidden
    drafted = model.draft(hidden, order)
    torch.testing.assert_close(target[..., allowed], drafted[..., allowed], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_padded_row_is_the_row_alone(name: str):
    model = attached(name).double()
    tokens = rows(model, num=3)
    sizes = torch.tensor([11, 8, 5])
    pad = torch.arange(11) >= sizes.unsqueeze(1)
    drafts = model.draft(model.encode(tokens.masked_fill(pad, -7), pad))
    for row, size in enumerate(sizes):
        alone = model.draft(model.encode(tokens[row : row + 1, :size]))
        torch.testing.assert_close(drafts[row : row + 1, :size], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "MDLM"])
@torch.no_grad()
def test_drafts_beside_pads_are_the_models_own_bit_for_bit(name: str, dtype: torch.dtype):
    model = attach_head(MODELS[name]().to(dtype), heads=2, mask_id=MASK)
    tokens, allowed = rows(model, num=3), ~model.trunk.forbidden
    right = torch.arange(11) >= torch.tensor([[11], [8], [5]])
    for pad in (right, right.flip(1)):
        given = tokens.masked_fill(pad, model.trunk.vocabulary.pad)
        own = model.trunk.model(input_ids=given, attention_mask=(~pad).long()).logits
        if isinstance(model.trunk, DreamTrunk):
            own = torch.cat([own[:, :1], own[:, :-1]], 1)
        draft = model.draft(model.encode(tokens, pad))
        assert draft[~pad][:, allowed].equal(own[~pad][:, allowed])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_token_never_moves_the_target_at_its_own_or_an_earlier_place(name: str):
    model = attached(name).double()
    text = (~model.trunk.forbidden).nonzero().flatten()
    tokens = text[torch.randint(len(text), (6, 9), generator=torch.Generator().manual_seed(1))]
    order = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)).argsort(1)
    revealed = torch.full((6,), 2)
    seen = tokens.scatter(1, order[:, 2:], model.mask_id)
    hidden = model.encode(seen)
    for place in range(2, 9):
        moved = tokens.clone()
        at = torch.arange(6), order[:, place]
        moved[at] = text[(torch.searchsorted(text, moved[at]) + 1) % len(text)]
        before, after = (
            model.target(hidden, x, order, revealed).softmax(-1) for x in (tokens, moved)
        )
        change = (after - before).abs().amax(-1)
        assert (change[:, : place + 1] < 1e-13).all()  # of the order of rounding
        assert (change[:, place + 1 :] > 1e-9).all()


def test_shapes_are_read_from_the_model():
    for name, length in {"BERT": 40, "RoBERTa": 38, "ESM": 39, "MDLM": 40}.items():
        model = attached(name)
        assert (model.length, model.num_trunk_blocks, model.vocab_size) == (length, 2, 25)
        assert model.trunk.width == 32
    for width, heads in {
        64: 2,
        48: 1,
        66: 1,
        104: 2,
        320: 10,
    }.items():  # 104 are not cut into 3 · 2 parts
        assert attach_head(hubs.bert(hidden_size=width), mask_id=4).head.config.heads == heads
    assert attach_head(hubs.esm(pad_token_id=1), mask_id=MASK).length == 38
    assert attached("BERT", length=12).length == 12
    assert attach_head(hubs.bert(), blocks=0, mask_id=MASK).head is None


def test_the_trunk_is_frozen_and_the_head_is_not():
    model = attached("BERT")
    assert not any(p.requires_grad for p in model.trunk.parameters())
    assert all(p.requires_grad for p in model.head.parameters())
    assert not model.training


def test_a_model_in_training_mode_is_compared_without_its_dropout():
    model = attach_head(hubs.bert(hidden_dropout_prob=0.5).train(), heads=2, mask_id=MASK)
    assert not model.trunk.model.training


def test_the_seed_decides_the_head():
    first, again, other = (attached("BERT", untrained=True, seed=seed).head for seed in (0, 0, 1))
    assert first.fuse.weight.equal(again.fuse.weight)
    assert not first.fuse.weight.equal(other.fuse.weight)


@torch.no_grad()
def test_a_trunk_in_half_precision_keeps_its_drafts_and_has_a_head_in_full_precision():
    own = hubs.bert().bfloat16()
    model = attach_head(own, heads=2, mask_id=MASK)
    tokens, allowed = rows(model), ~model.trunk.forbidden
    hidden = model.encode(tokens)
    assert hidden.dtype == torch.float32
    logits = own(input_ids=tokens).logits
    assert model.draft(hidden)[..., allowed].equal(logits[..., allowed])
    order = torch.rand(tokens.shape).argsort(1)
    model.target(hidden, tokens, order, torch.zeros(4, dtype=torch.int64))
    model.eval().requires_grad_(False)
    assert ss.generate(model, 2, length=6, rounds=2).tokens.shape == (2, 6)


# Special tokens


def test_specials_are_forbidden_and_stand_around_what_is_drawn():
    model = attach_head(hubs.bert(), heads=2, tokenizer=hubs.tokenizer())
    assert model.frame == ((CLS,), (SEP,))
    assert model.trunk.vocabulary.forbidden == (0, 1, 2, 3, 4)
    samples = ss.generate(model, 3, length=8, rounds=2)
    assert samples.tokens.shape == (3, 10)
    assert (samples.tokens[:, 0] == CLS).all()
    assert (samples.tokens[:, -1] == SEP).all()
    assert (samples.tokens[:, 1:-1] > MASK).all()
    assert all(len(text) == 8 and set(text) <= set(hubs.LETTERS) for text in samples)
    assert ss.generate(model, rounds=2).tokens.shape == (1, 40)


def test_prompts_are_read_letter_by_letter_and_kept():
    model = attach_head(hubs.bert(), heads=2, tokenizer=hubs.tokenizer())
    samples = ss.generate(model, prompt=["AC__DE", "_W"], rounds=2, trace=True)
    first, second = samples
    assert (first[:2], first[4:], second[1]) == ("AC", "DE", "W")
    assert samples.tokens[1, 3] == SEP
    assert samples.trunk_passes.max() <= 2
    with pytest.raises(ValueError, match="must consist of the model's characters, got 'B' at"):
        ss.generate(model, prompt="AB_")
    with pytest.raises(ValueError, match="at most 38 tokens"):
        ss.generate(model, prompt="_" * 39)
    with pytest.raises(ValueError, match=r"`length` must be in 1\.\.38"):
        ss.generate(model, length=39)


def test_further_tokens_can_be_forbidden():
    model = attached("BERT", tokenizer=hubs.tokenizer(), forbidden=range(5, 23))
    assert set("".join(ss.generate(model, 4, length=10, rounds=2))) <= set("WY")
    with pytest.raises(ValueError, match="`forbidden` must leave a token"):
        attached("BERT", forbidden=range(25))
    with pytest.raises(ValueError, match=r"`forbidden` must be in 0\.\.24, got 25"):
        attached("BERT", forbidden=[25])


def test_what_writes_specials_may_draft_them():
    tokenizer = hubs.tokenizer()
    kept = read_vocabulary(30, None, tokenizer, writes_specials=True)
    assert kept.forbidden == (MASK, *range(25, 30))
    assert (kept.begin, kept.end, kept.pad) == ((), (), PAD)
    assert attached("MDLM").mask_id == 24  # the last, in the published vocabulary as here


def test_what_a_tokenizer_puts_behind_a_text_alone_is_its_end():
    inner = hubs.tokenizer()
    inner._tokenizer.post_processor = TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", SEP)]
    )
    assert inner("A")["input_ids"] == [5, SEP]
    found = read_vocabulary(25, SimpleNamespace(pad_token_id=7), inner)
    assert (found.begin, found.end) == ((), (SEP,))
    assert read_vocabulary(25, SimpleNamespace(pad_token_id=7), mask_id=MASK).forbidden == (MASK, 7)


def test_the_mask_inside_the_vocabulary_is_no_text():
    model = attached("BERT", tokenizer=hubs.tokenizer())
    tokens = rows(model)
    check_tokens(model, tokens, torch.zeros_like(tokens, dtype=torch.bool), masked=True)
    with pytest.raises(ValueError, match=r"in 0\.\.24 without the mask token 4, got 4"):
        ss.log_likelihood(model, tokens)
    law = ss.log_likelihood(model, rows(model).masked_fill(tokens == MASK, SEP), rounds=2)
    assert (law == -torch.inf).all()  # a special token is never drawn


# The law


class LeftToRight:
    fixed: ClassVar[bool] = True

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        return torch.arange(masked.shape[1]).expand_as(u).double() / masked.shape[1]


def ternary() -> tuple[Any, Tensor]:
    """A tiny BERT of three letters, and all 27 texts of three of them, framed."""
    model = attach_head(hubs.bert(vocab_size=8), heads=2, tokenizer=hubs.tokenizer("ACD"))
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        nn.init.normal_(model.head.project.weight, std=2.0)
    letters = torch.tensor(list(product((5, 6, 7), repeat=3)))
    return model.double(), nn.functional.pad(
        nn.functional.pad(letters, (1, 0), value=CLS), (0, 1), value=SEP
    )


def test_the_sampler_follows_the_exact_likelihood():
    model, texts = ternary()
    observed = (texts == CLS) | (texts == SEP)
    settings = {"order": LeftToRight(), "window": ss.UnboundedWindow(), "rounds": 2}
    laws = {}  # of the two orders in which the observed tokens may stand first
    for seed in range(8):
        seeds = ss.row_seeds(seed, 1).expand(27)
        sigma, _ = draw_order(LeftToRight(), texts[:1], seeds[:1], observed=observed[:1])
        one = ss.log_likelihood(model, texts, observed=observed, seeds=seeds, **settings).exp()
        torch.testing.assert_close(one.sum().item(), 1.0, rtol=0, atol=1e-9)
        laws[tuple(sigma[0].tolist())] = one
    assert set(laws) == {(0, 4, 1, 2, 3), (4, 0, 1, 2, 3)}
    law = torch.stack(list(laws.values())).mean(0)
    sampler = ss.SpeculativeSampler(model, LeftToRight(), ss.UnboundedWindow(), 2)
    masked = texts[:1].masked_fill(~observed[:1], MASK).expand(4000, -1)
    samples = sampler.sample(masked, 11)
    assert samples.acceptance < 0.9  # the head disagrees: there is something to see
    index = ((samples.tokens[:, 1:-1] - 5) * torch.tensor([9, 3, 1])).sum(1)
    counts = torch.bincount(index, minlength=27).numpy()
    expected = law.numpy() * 4000
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    drafts = ss.FixedCountSampler(model, LeftToRight(), steps=1).sample(masked, 11)
    index = ((drafts.tokens[:, 1:-1] - 5) * torch.tensor([9, 3, 1])).sum(1)
    plain = torch.bincount(index, minlength=27).numpy()
    assert stats.chisquare(plain, expected).pvalue < 1e-6  # plain drafts are told apart


def test_scores_are_conditional_on_what_is_observed():
    model, texts = ternary()
    observed = (texts == CLS) | (texts == SEP)
    observed[:, 2] = True
    same = texts[:, 2] == 6
    for law in (ss.log_likelihood, ss.one_pass_score):
        seeds = ss.row_seeds(3, 1).expand(9)
        score = law(model, texts[same], observed=observed[same], seeds=seeds)
        torch.testing.assert_close(score.exp().sum().item(), 1.0, rtol=0, atol=1e-9)


# Training on framed and padded rows


def padded_batch() -> Tensor:
    rows = torch.full((4, 12), PAD)
    for row, size in enumerate((10, 7, 3, 1)):
        rows[row, 0], rows[row, size + 1] = CLS, SEP
        rows[row, 1 : size + 1] = torch.arange(size) % 20 + 5
    return rows


def test_specials_are_revealed_and_pads_stand_last():
    tokens = padded_batch()
    objective = Diffusion(True, 1.0, observed=(CLS, SEP, PAD))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        drawn = objective.draw(tokens, Chance(generator), tokens == PAD)
        placed, revealed = tokens.gather(1, drawn["order"]), drawn["revealed"]
        assert ((placed[:, :2] == CLS) | (placed[:, :2] == SEP)).all()
        end = (tokens != PAD).sum(1)
        behind = torch.arange(12) >= end.unsqueeze(1)
        assert (placed[behind] == PAD).all()
        assert (revealed >= 2).all()
        assert (revealed < end).all()
        assert (drawn["window"] >= 1).all()
        assert (drawn["window"] <= end - revealed).all()


def test_the_loss_of_framed_rows_is_finite_and_trains_the_head_alone():
    model = attached("BERT", tokenizer=hubs.tokenizer())
    tokens = padded_batch()
    objective = Diffusion(True, observed=(CLS, SEP))
    drawn = objective.draw(tokens, Chance(torch.Generator().manual_seed(0)), tokens == PAD)
    total, parts = objective.loss(model, **drawn)
    total.backward()
    assert all(part.isfinite() for part in parts.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    assert all(p.grad is None for p in model.trunk.parameters())
    # The same as each row alone without its pads.
    alone = torch.zeros(())
    for row, size in enumerate((tokens != PAD).sum(1).tolist()):
        x, order = (drawn[name][row : row + 1, :size] for name in ("tokens", "order"))
        loss = ssmd_loss(model, x, order, drawn["revealed"][row : row + 1], freeze_trunk=True)
        alone = alone + loss.total / 4
    torch.testing.assert_close(total, alone)


# What is refused


def test_a_causal_model_is_refused(tmp_path: Path):
    shape = {"vocab_size": 25, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    gpt = hf.GPT2LMHeadModel(hf.GPT2Config(**shape))
    with pytest.raises(ValueError, match="got the causal GPT2LMHeadModel"):
        attach_head(gpt)
    with pytest.raises(ValueError, match="got the causal BertForMaskedLM"):
        attach_head(hubs.bert(is_decoder=True), mask_id=MASK)
    gpt.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got the causal"):
        attach_head(str(tmp_path))


def test_a_tokenizer_without_a_mask_token_is_refused():
    tokenizer = hubs.tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="`tokenizer` must have a mask token, got BertTokenizer"):
        attach_head(hubs.bert(), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="got a model without tokenizer"):
        attach_head(hubs.bert())


def test_a_tokenizer_with_another_mask_token_is_refused():
    config = SimpleNamespace(mask_token_id=7)
    with pytest.raises(ValueError, match="must have the model's mask token 7, got 4"):
        read_vocabulary(25, config, hubs.tokenizer())
    assert read_vocabulary(25, config, hubs.tokenizer(), mask_id=9).mask == 9
    assert read_vocabulary(25, SimpleNamespace(mask_token_id=MASK), hubs.tokenizer()).mask == MASK


def test_a_mask_token_beyond_the_model_is_refused():
    config, told = SimpleNamespace(), r"`mask_id` must be in 0\.\.24, the model's tokens, got "
    for given in (99, -1):
        with pytest.raises(ValueError, match=f"{told}{given}$"):
            read_vocabulary(25, config, hubs.tokenizer(), mask_id=given)
    with pytest.raises(ValueError, match=f"{told}99 of tokenizer or config$"):
        read_vocabulary(25, SimpleNamespace(mask_token_id=99))


def test_a_family_without_adapter_is_refused():
    with pytest.raises(ValueError, match=r"got BertModel, .*docs/adapters.md"):
        attach_head(hf.BertModel(hubs.bert().config))
    shape: Any = {"vocab_size": 25, "emb_dim": 32, "n_layers": 1, "n_heads": 2}
    with pytest.raises(ValueError, match=r"with an adapter .*, got XLMWithLMHeadModel"):
        attach_head(hf.XLMWithLMHeadModel(hf.XLMConfig(**shape)), mask_id=MASK)  # not causal
    narrow = hf.AlbertConfig(**hubs.SHAPE, embedding_size=16)
    with pytest.raises(ValueError, match=r"embedding as wide as its 32 .*, got 16 .*adapters.md"):
        attach_head(hf.AlbertForMaskedLM(narrow), mask_id=MASK)
    with pytest.raises(ValueError, match="embedding that gives one tensor, got IBertForMaskedLM"):
        attach_head(hf.IBertForMaskedLM(hf.IBertConfig(**hubs.SHAPE)), mask_id=MASK)


def test_an_adapter_that_splits_at_the_wrong_place_is_refused():
    class Wrong(HubTrunk):
        def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
            return self.model.bert(tokens)[0]

        def logits(self, hidden: Tensor) -> Tensor:
            return self.model.cls.predictions.decoder(hidden)  # without the dense layer

    with pytest.raises(ValueError, match="as Wrong does it, got other logits from BertForMaskedLM"):
        attach_head(hubs.bert(), mask_id=MASK, adapter=Wrong)


def test_a_model_that_sees_pads_is_refused():
    """Its rows would depend on what else is in the batch."""
    fnet = hf.FNetForMaskedLM(hf.FNetConfig(**hubs.SHAPE))  # mixes all positions, pads too
    with pytest.raises(ValueError, match="`model` must not attend to pads, got FNetForMaskedLM"):
        attach_head(fnet, mask_id=MASK)


def test_a_sequence_longer_than_the_trunk_is_refused():
    model = attached("BERT", tokenizer=hubs.tokenizer())
    with pytest.raises(ValueError, match="`tokens` may be at most 40 long, got 41"):
        ss.one_pass_score(model, torch.full((1, 41), 7))
    with pytest.raises(ValueError, match=r"`length` must be in 1\.\.40"):
        attached("BERT", length=41)


def test_esm_must_see_a_token():
    model = attached("ESM")
    blank, text = torch.full((2, 5), MASK), torch.full((2, 5), 7)
    blank[0, 1] = 7
    sampler = ss.SpeculativeSampler(model)
    for refused in (
        lambda: sampler.sample(blank),
        lambda: Engine(model).sample(sampler, blank),
        lambda: ss.log_likelihood(model, text),
        lambda: ss.one_pass_score(model, text, observed=blank != MASK),
        lambda: information_profile(model, text),
        lambda: ss.estimate_log_likelihood(
            model, text, ss.RespacedOrder(), ss.ConstantWindow(2), rounds=0
        ),
    ):
        with pytest.raises(ValueError, match="got a row of masks alone"):
            refused()
    seen = torch.tensor([[True, False, False, False, False]]).expand(2, -1)
    assert ss.log_likelihood(model, text, observed=seen).isfinite().all()


def test_remote_code_is_run_only_if_the_user_says_so(tmp_path: Path):
    hubs.publish_remote(tmp_path)
    with pytest.raises(ValueError, match="`trust_remote_code` must be True"):
        attach_head(str(tmp_path))


def test_a_model_without_an_unembedding_is_refused(tmp_path: Path):
    """The library would fill in a random one, with a warning."""
    hf.BertModel(hubs.bert().config).save_pretrained(tmp_path)
    hubs.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"got .* without weights for cls\.predictions"):
        attach_head(tmp_path)


def test_the_shape_of_a_head_is_checked():
    with pytest.raises(ValueError, match="`heads` must"):
        attach_head(hubs.bert(), mask_id=MASK, heads=0)
    with pytest.raises(ValueError, match="`blocks` must"):
        attach_head(hubs.bert(), mask_id=MASK, blocks=-1)


def test_arguments_of_a_wrong_type_are_named():
    for changes, rule in (
        ({"model": None}, "`model` must be a name, a folder or a model, got None"),
        ({"mask_id": 4.5}, "`mask_id` must be a whole number, got 4.5"),
        ({"length": "8"}, "`length` must be a whole number, got '8'"),
    ):
        with pytest.raises(ValueError, match=rule):
            attach_head(**{"model": hubs.bert(), "mask_id": MASK, **changes})


def test_only_residues_are_drafted_by_a_model_of_proteins(tmp_path: Path):
    made = attach_head(hubs.esm(vocab_size=33, mask_token_id=32, pad_token_id=1), heads=2,
                       tokenizer=hubs.esm_tokenizer(tmp_path))  # fmt: skip
    drafted = [i for i in range(33) if i not in made.trunk.vocabulary.forbidden]
    assert "".join(ESM_ALPHABET[i] for i in drafted) == "LAGVSERTIDPKQNFYMHWCXBUZO"
    assert made.frame == ((0,), (2,))
    assert set(made.tokenizer.residues) == set("LAGVSERTIDPKQNFYMHWCXBUZO")
    assert HubTokenizer(hubs.tokenizer("ACD"), 8, MASK).residues == ""


def test_mask_characters(tmp_path: Path):
    tokenizer = HubTokenizer(hubs.tokenizer(), 25, MASK)
    assert tokenizer.encode("A##C", "##").tolist() == [5, MASK, 6]
    with pytest.raises(ValueError, match="`mask_char` must be at least one character"):
        tokenizer.encode("AC", "")
    # A mask of the model that is not the tokenizer's own: words of several letters.
    words = hubs.tokenizer("ACD")
    words.add_tokens(["DD"])
    assert HubTokenizer(words, 10, 9).encode("DD _ A", "_").tolist() == [8, 9, 5]


# By name


def test_a_folder_is_loaded_with_its_tokenizer(tmp_path: Path):
    own = hubs.bert()
    own.save_pretrained(tmp_path)
    hubs.tokenizer().save_pretrained(tmp_path)
    model = attach_head(tmp_path, heads=2)
    assert model.frame == ((CLS,), (SEP,))
    assert model.trunk.source.name == str(tmp_path)
    tokens = rows(model)
    with torch.no_grad():
        allowed = ~model.trunk.forbidden
        assert model.draft(model.encode(tokens))[..., allowed].equal(
            own(input_ids=tokens).logits[..., allowed]
        )
    assert next(iter(ss.generate(model, prompt="A_C", rounds=2))).startswith("A")


def test_the_published_layout_of_mdlm_is_loaded_without_remote_code(tmp_path: Path):
    own = hubs.dit()
    weights = {f"backbone.{name}": p.detach() for name, p in own.named_parameters()}
    weights["backbone.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, tmp_path / "model.safetensors")
    config = {**own.config.to_dict(), "time_conditioning": False, "dropout": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = attach_head(str(tmp_path), heads=2)
    tokens = rows(model)
    with torch.no_grad():
        expected = own.unembed(own(tokens))[..., :24]
        assert model.draft(model.encode(tokens))[..., :24].equal(expected)
    (tmp_path / "config.json").write_text(json.dumps(config | {"time_conditioning": True}))
    with pytest.raises(ValueError, match="without time conditioning"):
        attach_head(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_blocks": 3}))
    with pytest.raises(ValueError, match="weights do not fit the config"):
        attach_head(str(tmp_path))


def dit_logits(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits (B, L, V) of MDLM by the names of its published weights, written down once more."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(1))

    def read(x: Tensor, name: str, shift: Tensor, scale: Tensor) -> Tensor:
        spread = x.var(-1, keepdim=True, correction=0) + 1e-5
        normal = (x - x.mean(-1, keepdim=True)) / spread.sqrt()
        return normal * weights[f"{name}.weight"] * (1 + scale) + shift

    def turned(x: Tensor) -> Tensor:  # (B, L, H, 16)
        angles = torch.arange(x.shape[1])[:, None] / 10000.0 ** (torch.arange(8).double() / 8)
        turn = torch.polar(torch.ones(()).double(), angles)[:, None]
        pairs = torch.complex(x[..., :8], x[..., 8:]) * turn
        return torch.cat([pairs.real, pairs.imag], -1)

    silu = nn.functional.silu
    time = torch.cat([torch.ones(128), torch.zeros(128)]).double()  # cosines and sines of 0
    c = silu(linear(silu(linear(time, "sigma_map.mlp.0")), "sigma_map.mlp.2"))
    x = weights["vocab_embed.embedding"][tokens]
    for n in range(2):
        block = f"blocks.{n}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(c, f"{block}.adaLN_modulation").chunk(
            6
        )
        qkv = linear(read(x, f"{block}.norm1", shift1, scale1), f"{block}.attn_qkv")
        q, k, v = qkv.unflatten(-1, (3, 2, 16)).unbind(2)
        weight = torch.einsum("bihe,bjhe->bhij", turned(q), turned(k)) / 4
        attended = torch.einsum("bhij,bjhe->bihe", weight.softmax(-1), v).flatten(2)
        x = x + gate1 * linear(attended, f"{block}.attn_out")
        inner = linear(read(x, f"{block}.norm2", shift2, scale2), f"{block}.mlp.0")
        inner = inner / 2 * (1 + ((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)).tanh())
        x = x + gate2 * linear(inner, f"{block}.mlp.2")
    shift, scale = linear(c, "output_layer.adaLN_modulation").chunk(2)
    return linear(read(x, "output_layer.norm_final", shift, scale), "output_layer.linear")


@torch.no_grad()
def test_mdlm_is_what_its_paper_says():
    model = attached("MDLM").double()
    tokens, allowed = rows(model), ~model.trunk.forbidden
    weights = dict(model.trunk.model.named_parameters())
    draft = model.draft(model.encode(tokens))[..., allowed]
    expected = dit_logits(weights, tokens)[..., allowed]
    torch.testing.assert_close(draft, expected, rtol=1e-5, atol=1e-6)


PUBLISHED = {
    "LLaDA": {
        "embedding": "model.transformer.wte", "norm": "model.transformer.ln_f",
        "unembedding": "model.transformer.ff_out", "block": "model.transformer.blocks",
        "first": "attn_norm", "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "attn_out",
        "second": "ff_norm", "gate": "ff_proj", "up": "up_proj", "down": "ff_out",
    },
    "Dream": {
        "embedding": "model.embed_tokens", "norm": "model.norm",
        "unembedding": "lm_head", "block": "model.layers",
        "first": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
        "v": "self_attn.v_proj", "o": "self_attn.o_proj", "second": "post_attention_layernorm",
        "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    },
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "LLaDA": {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "vocab_size": 25,
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}, "embedding_size": 26,
        "d_model": 32, "mlp_hidden_size": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
        "max_sequence_length": 40, "rms_norm_eps": 1e-3, "rope_theta": 100.0, "rope": True,
        "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms",
        "weight_tying": False, "mask_token_id": MASK, "pad_token_id": PAD, "alibi": False,
    },
    "Dream": {
        "model_type": "Dream", "architectures": ["DreamModel"], "vocab_size": 26,
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"}, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 40, "rms_norm_eps": 1e-3,
        "rope_theta": 100.0, "rope_scaling": None, "hidden_act": "silu", "sliding_window": None,
        "use_sliding_window": False, "tie_word_embeddings": False, "mask_token_id": MASK,
        "pad_token_id": PAD, "max_window_layers": 2, "use_cache": True,
    },
}  # fmt: skip


def publish(family: str, folder: Path) -> dict[str, Tensor]:
    """Random weights under the published names, in a folder as on the Hub; also by our names."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"first": (32,), "q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32),
             "second": (32,), "gate": (48, 32), "up": (48, 32), "down": (32, 48)}  # fmt: skip
    shapes = {"embedding": (26, 32), "norm": (32,), "unembedding": (26, 32)}
    shapes |= {f"{n}.{name}": size for n in range(2) for name, size in sizes.items()}
    if family == "Dream":  # biases
        shapes |= {f"{n}.{name}+": sizes[name][:1] for n in range(2) for name in "qkv"}
    weights = {name: torch.randn(size, generator=generator) / 3 for name, size in shapes.items()}
    names, files = PUBLISHED[family], {}
    for name, weight in weights.items():
        block, _, part = name.rpartition(".")
        within = f"{names['block']}.{block}." if block else ""
        kind = "bias" if part.endswith("+") else "weight"
        files[f"{within}{names[part.rstrip('+')]}.{kind}"] = weight
    folder.mkdir()
    save_file(files, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
    hubs.tokenizer().save_pretrained(folder)
    return {name: weight.double() for name, weight in weights.items()}


def open_llama(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits (B, L, V) of Llama's blocks without a direction, written down once more."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * weights[name]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[name].T + weights.get(f"{name}+", torch.zeros(1))

    def turned(x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] * 100.0 ** (-torch.arange(4).double() / 4)
        pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(()).double(), angles)
        return torch.cat([pairs.real, pairs.imag], -1)

    x = weights["embedding"][tokens]
    for n in range(2):
        read = norm(x, f"{n}.first")
        q, k, v = (linear(read, f"{n}.{name}").unflatten(-1, (-1, 8)).transpose(1, 2)
                   for name in "qkv")  # fmt: skip
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        attention = (turned(q) @ turned(k).mT / 8**0.5).softmax(-1) @ v
        x = x + linear(attention.transpose(1, 2).flatten(2), f"{n}.o")
        read = norm(x, f"{n}.second")
        gated = nn.functional.silu(linear(read, f"{n}.gate")) * linear(read, f"{n}.up")
        x = x + linear(gated, f"{n}.down")
    return linear(norm(x, "norm"), "unembedding")


@pytest.mark.parametrize("family", PUBLISHED)
@torch.no_grad()
def test_llada_and_dream_are_loaded_without_remote_code(family: str, tmp_path: Path):
    weights = publish(family, source := tmp_path / "source")
    model = attach_head(source, heads=2)
    assert type(model.trunk) is {"LLaDA": LLaDATrunk, "Dream": DreamTrunk}[family]
    assert (model.length, model.num_trunk_blocks, model.mask_id) == (40, 2, MASK)
    assert model.frame == ((), ())
    tokens, allowed = rows(model, num=3), ~model.trunk.forbidden
    assert set(range(5, 25)) <= set(allowed.nonzero().flatten().tolist())
    expected = open_llama(weights, tokens)
    if family == "Dream":
        expected = torch.cat([expected[:, :1], expected[:, :-1]], 1)
    draft = model.draft(model.encode(tokens)).double()
    torch.testing.assert_close(draft[..., allowed], expected[..., allowed], rtol=1e-4, atol=1e-5)
    for merge in (False, True):
        ss.save(model, tmp_path / f"{merge}", merge=merge)
        again = ss.load(tmp_path / f"{merge}")
        assert again.draft(again.encode(tokens)).double().equal(draft)
        assert again.tokenizer is not None


def test_the_tokenizer_of_dream_needs_no_code(tmp_path: Path):
    publish("Dream", source := tmp_path / "source")
    for path in source.glob("tokenizer*"):
        path.unlink()
    table = {letter: i for i, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUV")} | {"AB": 22}
    added = dict(zip((23, 24, 25), ("<|end|>", "<|begin|>", "<|mask|>"), strict=True))
    kinds = {"tokenizer_class": "DreamTokenizer", "mask_token": "<|mask|>", "pad_token": "<|end|>",
             "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
             "added_tokens_decoder": {i: {"content": token, "special": True}
                                      for i, token in added.items()}}  # fmt: skip
    (source / "vocab.json").write_text(json.dumps(table))
    (source / "merges.txt").write_text("#version: 0.2\nA B\n")
    (source / "tokenizer_config.json").write_text(json.dumps(kinds))
    config = CONFIGS["Dream"] | {"mask_token_id": 25, "pad_token_id": 23}
    (source / "config.json").write_text(json.dumps(config))
    model = attach_head(source, heads=2)
    assert (model.mask_id, model.trunk.vocabulary.forbidden) == (25, (25,))
    assert model.tokenizer.encode("ABAC_A", "_").tolist() == [22, 0, 2, 25, 0]
    assert model.tokenizer.decode([22, 0, 25, 24]) == "ABA_<|begin|>"


@torch.no_grad()
def test_a_llada_may_tie_its_weights_and_has_its_own_pad(tmp_path: Path):
    weights = publish("LLaDA", source := tmp_path / "source")
    files = load_file(source / "model.safetensors")
    del files["model.transformer.ff_out.weight"]
    save_file(files, source / "model.safetensors", {"format": "pt"})
    config = CONFIGS["LLaDA"] | {"weight_tying": True, "pad_token_id": 25}
    (source / "config.json").write_text(json.dumps(config))
    model = attach_head(source, heads=2)
    assert model.trunk.model.config.pad_token_id == 25
    assert model.trunk.forbidden[25]
    tokens, allowed = rows(model), ~model.trunk.forbidden
    expected = open_llama({**weights, "unembedding": weights["embedding"]}, tokens)[..., allowed]
    draft = model.draft(model.encode(tokens)).double()[..., allowed]
    torch.testing.assert_close(draft, expected, rtol=1e-4, atol=1e-5)


def test_a_llada_that_is_no_llama_is_refused(tmp_path: Path):
    publish("LLaDA", source := tmp_path / "source")
    config = {**CONFIGS["LLaDA"], "block_type": "sequential"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a LLaDA whose `block_type` is llama, got sequential"):
        attach_head(source)


def test_a_vocabulary_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"`mask` must be in 0\.\.8, got 9"):
        Vocabulary(8, 9)
