"""Causal models as trunks: attention has no direction, pads are not seen, the shift is right."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
import torch
import transformers
from hubs import CLS, PAD
from safetensors.torch import load_file
from torch import Tensor, nn

import selfspec as ss
from selfspec.hub import causal
from selfspec.hub.causal import CausalTrunk, adapt_causal
from selfspec.hub.pretrained import SSMDForMaskedLM

hf: Any = transformers
SIZE = 25
MAKE = {"llama": hubs.llama, "gpt2": hubs.gpt2}
ROW = torch.tensor([[7, 8, 9, 20, 11, 12, 5, 6]])


@pytest.fixture(params=["llama sdpa", "llama eager", "gpt2 sdpa", "gpt2 eager"])
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """A causal model, with either way of building masks in the library."""
    family, attention = request.param.split()
    return lambda: MAKE[family](attn_implementation=attention)


def trunk(model: Any) -> CausalTrunk:
    made = adapt_causal(model).trunk
    assert isinstance(made, CausalTrunk)
    return made


@torch.no_grad()
def influence(of: Callable[[Tensor], Tensor], row: Tensor) -> Tensor:
    """(L, L) bool: whether another token at i moves the state at j."""
    still = of(row)
    moved = []
    for i in range(row.shape[1]):
        other = row.clone()
        other[0, i] = 15
        moved.append((of(other) != still).any(-1)[0])
    return torch.stack(moved)


def test_every_token_is_seen_from_everywhere(make: Callable[[], Any]):
    own = make()
    before = influence(lambda row: own(input_ids=row).logits, ROW)
    assert before.equal(torch.ones(8, 8).triu().bool())  # the test can see a direction
    assert influence(trunk(own), ROW).all()


def test_pads_leak_nowhere(make: Callable[[], Any]):
    made = trunk(make())
    pad = torch.arange(12) >= torch.tensor([[8], [5], [12]])
    rows = torch.cat([ROW, ROW.flip(1)[:, :4]], 1).repeat(3, 1)
    with torch.no_grad():
        together = made(rows, pad)
        alone = [made(row[~gone].unsqueeze(0)) for row, gone in zip(rows, pad, strict=True)]
        other = made(rows.masked_fill(pad, 17), pad)
    for row, gone, single, changed in zip(together, pad, alone, other, strict=True):
        torch.testing.assert_close(row[~gone], single[0], rtol=1e-4, atol=1e-5)
        assert row[~gone].equal(changed[~gone])


def test_with_its_direction_back_it_drafts_the_models_own_law(make: Callable[[], Any]):
    own = make()
    begin = own.config.bos_token_id
    with torch.no_grad():
        expected = own(input_ids=torch.cat([torch.tensor([[begin]]), ROW], 1)).logits[:, :-1]
    made = trunk(copy.deepcopy(own))
    made.model.config.is_causal = True
    for module in made.model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = True
    with torch.no_grad():
        torch.testing.assert_close(made.unembed(made(ROW)), expected, rtol=1e-4, atol=1e-5)

    # Were the states left where they are, it would predict the token after next.
    run = made._run
    unshifted = run(made.model, ROW).logits[:, 1:]
    assert not unshifted.allclose(expected, rtol=0.1, atol=0.1)


def test_the_mask_is_one_more_row_to_read_and_none_to_write(make: Callable[[], Any]):
    own = make()
    names = {name: p.shape for name, p in own.named_parameters()}
    model = adapt_causal(own)
    made = model.trunk
    assert isinstance(made, CausalTrunk)
    assert (model.vocab_size, model.mask_id, model.length) == (SIZE, SIZE, 39)
    assert {n.removeprefix("model."): p.shape for n, p in made.named_parameters()} == {
        **names, "mask_embedding": (32,)
    }  # fmt: skip
    table = own.get_input_embeddings().weight
    assert made.embed(torch.tensor([SIZE, 7])).equal(torch.stack([table.mean(0), table[7]]))
    masked = ROW.clone()
    masked[0, 2:5] = SIZE
    with torch.no_grad():
        logits = made.unembed(made(masked))
    assert logits.shape == (1, 8, SIZE)
    assert logits.isfinite().all()  # what begins or ends a text may be drafted
    assert logits.equal(made.own_logits(masked))
    assert not logits.equal(made.unembed(made(ROW)))


def test_all_weights_learn(make: Callable[[], Any]):
    model = adapt_causal(make()).requires_grad_(True)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).unsqueeze(0)
    ss.ssmd_loss(model, ROW, order, torch.tensor([3])).total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_rows_beyond_the_tokenizer_are_never_drafted():
    made = adapt_causal(hubs.llama(vocab_size=30), tokenizer=hubs.tokenizer())
    assert made.trunk.forbidden.nonzero().flatten().tolist() == list(range(25, 30))  # type: ignore[union-attr]
    assert made.mask_id == 30
    sample = ss.generate(made, 6, length=9, nfe=3, seed=1)
    assert int(sample.tokens.max()) < 25


# What is refused


def test_a_model_that_stays_causal_is_refused(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(causal, "open_attention", lambda model: None)
    with pytest.raises(ValueError, match="whose attention stays causal"):
        adapt_causal(make())


def test_switching_the_modules_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch):
    """The trap: where the library makes a mask, it makes a causal one."""

    def partly(model: Any) -> None:
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False

    monkeypatch.setattr(causal, "open_attention", partly)
    with pytest.raises(ValueError, match="whose attention stays causal"):
        adapt_causal(hubs.gpt2(attn_implementation="eager"))
    with pytest.raises(ValueError, match="must not attend to pads"):  # its mask is one with pads
        adapt_causal(hubs.gpt2(attn_implementation="sdpa"))


def test_a_model_that_sees_pads_is_refused(monkeypatch: pytest.MonkeyPatch):
    run = CausalTrunk._run
    blind = lambda self, model, tokens, real=None: run(self, model, tokens)  # noqa: E731
    monkeypatch.setattr(CausalTrunk, "_run", blind)
    with pytest.raises(ValueError, match="must not attend to pads"):
        adapt_causal(hubs.llama())


def test_other_models_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="must be a causal language model, got BertForMaskedLM"):
        adapt_causal(hubs.bert())
    config = hf.MistralConfig(**hubs.SHAPE, num_key_value_heads=1, sliding_window=4)
    config.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(ValueError, match=r"full attention in every layer, got full.*, sliding"):
        adapt_causal(hf.MistralForCausalLM(config))
    with pytest.raises(OSError, match="nowhere"):
        adapt_causal(str(tmp_path / "nowhere"))
    hubs.gpt2().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`adapt_causal` makes one of it"):
        ss.attach_head(str(tmp_path))


# Checkpoints


def same(one: Any, other: Any) -> bool:
    tokens = ROW.clone()
    tokens[0, 3:6] = one.mask_id
    with torch.no_grad():
        drafts = (model.draft(model.encode(tokens)) for model in (one, other))
        return torch.allclose(*drafts, rtol=1e-5, atol=1e-5)


def moved(model: Any) -> Any:
    """As training would leave it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.trunk.parameters():
            p += 0.01 * torch.randn_like(p)
    return model


def test_an_adapted_model_is_saved_whole(make: Callable[[], Any], tmp_path: Path):
    model = moved(adapt_causal(make(), tokenizer=hubs.tokenizer()))
    ss.save(model, tmp_path / "model")
    assert "trunk.mask_embedding" in load_file(tmp_path / "model" / "model.safetensors")
    loaded = ss.load(tmp_path / "model")
    assert same(model, loaded)
    assert loaded.trunk(ROW).shape == (1, 8, 32)
    assert influence(loaded.trunk, ROW).all()
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("AC_D", "_").tolist() == [5, 6, SIZE, 7]


@pytest.mark.parametrize("how", ["folder", "model"])
def test_a_head_goes_on_it_in_the_usual_way(how: str, tmp_path: Path):
    base = moved(adapt_causal(hubs.llama(), tokenizer=hubs.tokenizer()))
    ss.save(base, tmp_path / "base")
    model = ss.attach_head(str(tmp_path / "base") if how == "folder" else base, heads=2)
    assert same(base, model)  # drafts are what they were
    assert not any(p.requires_grad for p in model.trunk.parameters())
    assert model.head is not None
    nn.init.normal_(model.head.project.weight)
    ss.save(model, tmp_path / "head")
    stored = load_file(tmp_path / "head" / "model.safetensors")
    assert any(name.startswith("trunk.") for name in stored) == (how == "model")
    loaded = ss.load(tmp_path / "head")
    prompt: dict[str, Any] = {"prompt": "AC____W", "rounds": 2, "window": 3, "seed": 3}
    assert ss.generate(model, **prompt).text == ss.generate(loaded, **prompt).text
    if how == "folder":
        with pytest.raises(ValueError, match="no head yet, got CausalTrunk and a head"):
            ss.attach_head(str(tmp_path / "head"))
        ss.save(moved(base), tmp_path / "base")
        with pytest.raises(ValueError, match="must have the weights that the head was made for"):
            ss.load(tmp_path / "head")


def test_as_a_model_of_the_library(make: Callable[[], Any], tmp_path: Path):
    model = ss.attach_head(moved(adapt_causal(make())), heads=2)
    SSMDForMaskedLM.of(model).save_pretrained(tmp_path)
    wrapped = hf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert same(model, wrapped.ssmd)
    assert influence(wrapped.ssmd.trunk, ROW).all()
    assert wrapped.generate(torch.tensor([[CLS, SIZE, SIZE, PAD]]), rounds=1, window=2).max() < SIZE
