import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_toy
from torch import Tensor, nn

from selfspec import checkpoint
from selfspec.data.tokenizers import CharTokenizer
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.transformer import Trunk, TrunkConfig

ROOT = Path(__file__).parents[1]


def autoregressive() -> AutoregressiveModel:
    return AutoregressiveModel(Trunk(TrunkConfig(3, 6, width=8, blocks=1, heads=1, causal=True)))


def whole() -> SSMD:
    model = make_toy(head_blocks=2).float()
    model.tokenizer = CharTokenizer("abc")
    model.calibration = [{"window": 0.04, "rounds": 4, "nfe": 14.3}]
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint to be damaged."""
    checkpoint.save(whole(), tmp_path / "model", step=7)
    return tmp_path / "model"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("make", [whole, lambda: make_toy(head_blocks=0).float(), autoregressive])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, make: Callable):
    model = make()
    checkpoint.save(model, tmp_path / "new" / "folder")
    loaded = checkpoint.load(tmp_path / "new" / "folder")
    assert type(loaded) is type(model)
    assert same_weights(loaded, model)
    assert not loaded.training
    assert loaded.trunk.config == model.trunk.config
    assert files(tmp_path / "new" / "folder") == {"config.json", "model.safetensors"}


def test_tokenizer_calibration_and_notes_are_kept(folder: Path):
    loaded = checkpoint.load(folder)
    assert isinstance(loaded, SSMD)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.to_config() == {"kind": "char", "alphabet": "abc"}
    assert loaded.calibration == whole().calibration
    assert checkpoint.load_config(folder)["step"] == 7


def test_notes_are_saved_again_unless_they_are_replaced(folder: Path, tmp_path: Path):
    loaded = checkpoint.load(folder)
    checkpoint.save(loaded, tmp_path / "again", recipe="mine")
    assert checkpoint.load(tmp_path / "again").record == {"step": 7, "recipe": "mine"}
    checkpoint.save(loaded, tmp_path / "again", step=8)
    assert checkpoint.load_config(tmp_path / "again")["step"] == 8


def errors(folder: Path, dtype: Any) -> list[tuple[Tensor, Tensor]]:
    """Each weight as it was, and what storage did to it."""
    model = whole()
    with torch.no_grad():
        model.trunk.get_parameter("embedding.weight")[1] = 0
    checkpoint.save(model, folder, dtype=dtype)
    before, after = model.state_dict(), checkpoint.load(folder).state_dict()
    assert all(x.dtype == torch.float32 for x in after.values())
    return [(before[name], (after[name] - before[name]).abs()) for name in before]


def test_bfloat16_keeps_eight_bits_of_matrices_and_all_of_vectors(folder: Path):
    for weight, error in errors(folder, "bfloat16"):
        assert (error <= (weight.abs() * 2**-8 if weight.dim() > 1 else 0)).all()


def test_int8_errs_by_half_a_step_of_the_row_at_most(folder: Path):
    size = (folder / "model.safetensors").stat().st_size
    for weight, error in errors(folder, "int8"):
        step = weight.abs().amax(-1, keepdim=True) / 127 if weight.dim() > 1 else 0
        assert (error <= step * 0.5001).all()
    assert (folder / "model.safetensors").stat().st_size < size


def test_float64_weights_are_stored_in_float32(tmp_path: Path):
    checkpoint.save(make_toy(), tmp_path)
    assert same_weights(checkpoint.load(tmp_path), make_toy().float())


def test_a_tensor_that_shares_memory_is_stored_as_itself(tmp_path: Path):
    model = whole()
    head = model.head
    assert head is not None
    head.fuse.weight = nn.Parameter(torch.randn(24, 8).T)  # not contiguous
    checkpoint.save(model, tmp_path)
    assert same_weights(checkpoint.load(tmp_path), model)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1], ids=lambda n: f"{n} bytes")
def test_truncated_weights_are_named(folder: Path, keep: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        checkpoint.load(folder)


@pytest.mark.parametrize("place", [0, 7, 8, 9, 20, 60, 200, -100, -1])
@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_a_byte_of_the_weights_that_changed_is_noticed(folder: Path, place: int, flip: int):
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[place] ^= flip
    path.write_bytes(blob)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        checkpoint.load(folder)


def test_missing_weights_are_named(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
        checkpoint.load(folder)


def test_weights_of_another_checkpoint_are_noticed(folder: Path, tmp_path: Path):
    checkpoint.save(make_toy(seed=1).float(), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not belong to the config"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not a readable JSON file"), ("{", "not a readable JSON file"),
     ("\xff\xfe", "not a readable JSON file"), ("[]", "must be a selfspec checkpoint of format 1"),
     ('{"format": 2}', "must be a selfspec checkpoint of format 1")],
)  # fmt: skip
def test_a_foreign_config_is_named(folder: Path, text: str, message: str):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        checkpoint.load(folder)


def change(folder: Path, field: str, value: Any) -> None:
    """Set a field `part.name` of the config, or remove it."""
    config = json.loads((folder / "config.json").read_text())
    *path, name = field.split(".")
    part = config
    for key in path:
        part = part[key]
    part.pop(name, None)
    if value is not None:
        part[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("trunk.width", "abc", "trunk.width must be int, got 'abc'"),
     ("trunk.width", 8.0, "trunk.width must be int, got 8.0"),
     ("trunk.blocks", True, "trunk.blocks must be int, got True"),
     ("trunk.causal", 0, "trunk.causal must be bool, got 0"),
     ("trunk.dropout", "0", "trunk.dropout must be float, got '0'"),
     ("trunk.heads", None, "trunk.heads is missing"),
     ("head.blocks", None, "head.blocks is missing"),
     ("head.colour", "red", "head has an unknown field 'colour'"),
     ("trunk", [], r"trunk must be an object, got \[\]"),
     ("trunk", None, "trunk must be an object, got None"),
     ("head", 3, "head must be an object, got 3"),
     ("trunk.width", 0, "`width` must be at least 1, got 0"),
     ("trunk.width", 16, "weights do not fit the config"),
     ("trunk.vocab_size", 4, "weights do not fit the config"),
     ("head.blocks", 1, "weights do not fit the config"),
     ("kind", "flow", "kind must be one of .* got 'flow'"),
     ("kind", None, "kind must be one of .* got None"),
     ("tokenizer", "chars", "tokenizer must be an object, got 'chars'"),
     ("tokenizer.alphabet", "ab", "tokenizer must have the trunk's 3 symbols, got 2"),
     ("tokenizer.alphabet", 5, "must describe a character tokenizer"),
     ("calibration", 5, "calibration must be a list, got 5"),
     ("sha256", None, "does not belong to the config")],
)  # fmt: skip
def test_a_bad_field_of_the_config_is_named(folder: Path, field: str, value: Any, message: str):
    change(folder, field, value)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(folder)


def test_an_unknown_name_is_answered_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path)
    checkpoint.save(whole(), tmp_path / "books")
    assert checkpoint.resolve("books") == tmp_path / "books"
    with pytest.raises(ValueError, match=r"`checkpoint` must be .* one of \['books'\], got 'book'"):
        checkpoint.load("book")


def full_disk(patch: pytest.MonkeyPatch, from_file: int) -> None:
    """The disk is full when the given file is written."""
    written = []

    def fsync(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) >= from_file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("from_file", [1, 2])
def test_a_full_disk_leaves_the_old_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, from_file: int
):
    with monkeypatch.context() as patch:
        full_disk(patch, from_file)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(make_toy(seed=1).float(), folder)
    assert same_weights(checkpoint.load(folder), whole())
    assert files(folder) == {"config.json", "model.safetensors"}


def test_a_full_disk_leaves_no_part_of_a_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    full_disk(monkeypatch, 2)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(whole(), tmp_path)
    assert files(tmp_path) == set()


def test_loading_does_not_load_the_compiler(folder: Path):
    code = (
        "import sys; from selfspec import checkpoint; checkpoint.load(sys.argv[1]);"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout == "False\n", done.stderr


def test_a_checkpoint_can_be_replaced(folder: Path):
    other = make_toy(seed=1, blocks=1, head_blocks=0).float()
    checkpoint.save(other, folder)
    assert same_weights(checkpoint.load(folder), other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dtype": "int4"}, "`dtype` must be one of .* got 'int4'"),
     ({"sha256": "0"}, "`extra` must not set 'sha256'"),
     ({"trunk": {}}, "`extra` must not set 'trunk'")],
)  # fmt: skip
def test_bad_arguments_are_named(folder: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        checkpoint.save(whole(), folder, **arguments)
    assert same_weights(checkpoint.load(folder), whole())
