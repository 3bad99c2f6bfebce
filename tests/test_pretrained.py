import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hubs
import pytest
import tiny
import torch
import transformers
from torch import nn

import selfspec as ss
from selfspec.hub.pretrained import SSMDConfig, SSMDForMaskedLM

hf: Any = transformers


def hub_model(make: Any) -> Any:
    model: Any = ss.attach_head(make(), heads=2, tokenizer=hubs.tokenizer())
    nn.init.normal_(model.head.project.weight)
    return model


MODELS: dict[str, Any] = {
    "own": tiny.model,
    "plain": lambda: tiny.model(head=False),
    "bert": lambda: hub_model(hubs.bert),
    "roberta": lambda: hub_model(hubs.roberta),
    "modernbert": lambda: hub_model(hubs.modernbert),
    "esm": lambda: hub_model(hubs.esm),
    "mdlm": lambda: ss.attach_head(hubs.dit(), heads=2),
}


def masked_ids(model: Any) -> torch.Tensor:
    tokens = torch.arange(5, 17).repeat(2, 1)
    tokens[:, 2:9] = model.mask_id
    return tokens


@pytest.mark.parametrize("name", MODELS)
def test_a_model_survives_saving_and_loading(name: str, tmp_path: Path):
    model = MODELS[name]()
    model.calibration = [tiny.row(12, 4.0)]
    wrapper = SSMDForMaskedLM.of(model)
    assert wrapper.ssmd is model
    wrapper.save_pretrained(tmp_path)
    torch.empty(1 << 20).fill_(7.0)  # what a buffer that is not filled again might hold
    loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(loaded, SSMDForMaskedLM)
    assert not loaded.training
    assert loaded.ssmd.calibration == model.calibration
    one, other = dict(wrapper.named_parameters()), dict(loaded.named_parameters())
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)
    buffers = dict(wrapper.named_buffers())
    assert all(buffers[key].equal(value) for key, value in loaded.named_buffers())
    ids = masked_ids(model)
    with torch.no_grad():
        ours, theirs = wrapper(input_ids=ids).logits, loaded(input_ids=ids).logits
    # The weights are equal, but lie elsewhere in memory, which decides how products round.
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert wrapper.generate(ids, seed=3).equal(loaded.generate(ids, seed=3))
    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, SSMDConfig)
    assert config.mask_token_id == model.mask_id < config.vocab_size


def test_what_is_tied_stays_tied(tmp_path: Path):
    wrapper = SSMDForMaskedLM.of(hub_model(hubs.bert))
    wrapper.save_pretrained(tmp_path)
    loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    inner = loaded.ssmd.trunk.model
    assert inner.get_input_embeddings().weight is inner.get_output_embeddings().weight
    assert loaded.get_input_embeddings() is inner.get_input_embeddings()


def test_generate_is_that_of_the_package():
    model = tiny.model()
    ids = masked_ids(model)
    sampler = ss.SpeculativeSampler(model, window=ss.ConstantWindow(3), rounds=2)
    samples = sampler.sample(ids, 5)
    out: Any = SSMDForMaskedLM.of(model).generate(
        ids, window=3, rounds=2, seed=5, return_dict_in_generate=True
    )
    assert out.sequences.equal(samples.tokens)
    assert out.num_forward_passes.equal(samples.nfe)
    assert out.tokens_per_forward.tolist() == pytest.approx((7 / samples.nfe).tolist())
    assert out.acceptance_rate == samples.acceptance
    kept = ids != model.mask_id
    assert out.sequences[kept].equal(ids[kept])


def test_pads_are_left_alone():
    wrapper = SSMDForMaskedLM.of(tiny.model())
    ids = masked_ids(wrapper.ssmd)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    ids[1, 8:] = wrapper.ssmd.mask_id  # which is not generated there, and does not count
    given: Any = wrapper.generate(ids, mask, rounds=1, seed=2, return_dict_in_generate=True)
    out, drawn = given.sequences, (ids[1, :8] == wrapper.ssmd.mask_id).sum()
    assert (given.tokens_per_forward * given.num_forward_passes)[1].item() == pytest.approx(drawn)
    assert out[1, 8:].equal(ids[1, 8:])
    assert (out[0] != wrapper.ssmd.mask_id).all()
    alone: Any = wrapper.generate(ids[:1], rounds=1, seed=2)
    assert alone[0].equal(out[0])
    with torch.no_grad():
        short = wrapper(input_ids=ids[1:, :8]).logits
        padded = wrapper(input_ids=ids, attention_mask=mask).logits[1:, :8]
    torch.testing.assert_close(short, padded)


def test_a_streamer_sees_every_pass(capsys: pytest.CaptureFixture[str]):
    class Recorder:
        def __init__(self):
            self.drafts, self.final, self.ended = [], None, False

        def put_draft(self, value: torch.Tensor) -> None:
            self.drafts.append(value.clone())

        def put(self, value: torch.Tensor) -> None:
            self.final = value

        def end(self) -> None:
            self.ended = True

    model = hub_model(hubs.bert)
    ids, recorder = masked_ids(model)[:1], Recorder()
    out: Any = SSMDForMaskedLM.of(model).generate(ids, window=2, rounds=1, streamer=recorder)
    left = [int((draft == model.mask_id).sum()) for draft in recorder.drafts]
    assert left == sorted(left, reverse=True)
    assert left[0] < 7
    assert left[-1] == 0
    assert recorder.ended
    assert out.equal(recorder.final)
    streamer = hf.TextDiffusionStreamer(hubs.tokenizer())
    SSMDForMaskedLM.of(model).generate(ids, window=2, rounds=1, streamer=streamer)
    assert hubs.tokenizer().decode(out[0, :3])[:3] in capsys.readouterr().out


def test_a_watcher_sees_finished_rows_too():
    model = tiny.model()
    ids, seen = masked_ids(model), []
    ids[1, 4:] = 3  # two places are left, and five passes to come
    ss.AnyOrderSampler(model).sample(ids, watch=lambda tokens: seen.append(tokens.clone()))
    assert [tokens.shape for tokens in seen] == [ids.shape] * 7
    assert all(tokens[1].equal(seen[1][1]) for tokens in seen[1:])


def test_a_fresh_model_is_initialised():
    config = SSMDForMaskedLM.of(tiny.model()).config
    fresh: Any = SSMDForMaskedLM(copy.deepcopy(config))
    assert all(p.isfinite().all() for p in fresh.parameters())
    assert (fresh.ssmd.head.project.weight == 0).all()


def test_nothing_to_generate_is_refused():
    wrapper = SSMDForMaskedLM.of(tiny.model())
    with pytest.raises(ValueError, match="must hold the mask token 27 where"):
        wrapper.generate(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`config\.trunk` must describe a trunk"):
        SSMDForMaskedLM(SSMDConfig())


# Settings that are saved


def test_a_generation_config_is_saved_and_loaded_again(tmp_path: Path):
    model = tiny.model()
    model.calibration = [tiny.row(12, 4.0), tiny.row(20, 3.9, dtau=0.01)]
    wrapper, ids = SSMDForMaskedLM.of(model), masked_ids(model)
    config = wrapper.generation_config
    config.nfe, config.temperature, config.seed = 12, 0.7, 4
    config.return_dict_in_generate = True
    wrapper.save_pretrained(tmp_path)
    loaded = hf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert (loaded.generation_config.nfe, loaded.generation_config.seed) == (12, 4)
    out = loaded.generate(ids)
    expected: Any = wrapper.generate(
        ids, generation_config=hf.GenerationConfig(), nfe=12, temperature=0.7, seed=4
    )
    assert out.sequences.equal(expected)
    assert not out.sequences.equal(loaded.generate(ids, temperature=1.0).sequences)
    # What is asked for in a call takes the place of the budget, and of nothing else.
    by_rounds = loaded.generate(ids, rounds=1, return_dict_in_generate=False)
    assert by_rounds.equal(wrapper.generate(ids, rounds=1, temperature=0.7, seed=4,
                                            return_dict_in_generate=False))  # fmt: skip


def test_settings_that_contradict_are_refused():
    wrapper = SSMDForMaskedLM.of(tiny.model())
    ids = masked_ids(wrapper.ssmd)
    with pytest.raises(
        ValueError, match=r"`settings` must be of nfe, quality, .* got 'max_length'"
    ):
        wrapper.generate(ids, max_length=4)
    with pytest.raises(ValueError, match="`sampler` brings its own settings"):
        wrapper.generate(ids, sampler=ss.AnyOrderSampler(wrapper.ssmd), rounds=1)


def test_without_the_import_the_classes_are_found_if_trusted(tmp_path: Path):
    wrapper = SSMDForMaskedLM.of(hub_model(hubs.bert))
    wrapper.save_pretrained(tmp_path / "saved")
    code = f"""
import os, sys, torch
from transformers import AutoModelForMaskedLM as Auto
saved, again = {str(tmp_path / "saved")!r}, {str(tmp_path / "again")!r}
try:
    Auto.from_pretrained(saved, trust_remote_code=False)
except ValueError:
    model = Auto.from_pretrained(saved, trust_remote_code=True)
model.save_pretrained(again)
assert {{*os.listdir(again)}} == {{*os.listdir(saved)}}, os.listdir(again)
print(Auto.from_pretrained(again, trust_remote_code=True).generate(torch.full((1, 6), {hubs.MASK})))
"""
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    root = str(Path(ss.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **home, "PYTHONPATH": root},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = wrapper.generate(torch.full((1, 6), hubs.MASK))
    assert run.stdout.strip() == str(expected)


def test_without_a_streamer_the_engine_draws():
    model = hub_model(hubs.bert)
    ids, seen = masked_ids(model), []
    streamer = SimpleNamespace(put_draft=seen.append, put=seen.append, end=lambda: None)
    wrapper = SSMDForMaskedLM.of(model)
    one: Any = wrapper.generate(ids, rounds=2, seed=3)
    other: Any = wrapper.generate(ids, rounds=2, seed=3, streamer=streamer)
    assert one.equal(other)
    assert len(seen) > 2
