"""Attach a causal head to a masked model that somebody else trained.

    model = attach_head("facebook/esm2_t30_150M_UR50D")

gives an `SSMD` whose trunk is that model, frozen: its own embedding, final norm and unembedding,
its drafts bit for bit (`trunk.py`), and a head with ordinary initialisation whose target equals the
draft until it is trained.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selfspec import checkpoint
from selfspec.checks import whole
from selfspec.hub import llada, mdlm
from selfspec.hub.bert import MaskedLMTrunk
from selfspec.hub.causal import CausalTrunk
from selfspec.hub.esm import EsmTrunk
from selfspec.hub.llada import DreamTrunk, LLaDATrunk
from selfspec.hub.mdlm import MDLMTrunk
from selfspec.hub.publish import download
from selfspec.hub.tokenizer import HubTokenizer
from selfspec.hub.trunk import GUIDE, HubTrunk, Source, read_vocabulary, transformers
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.weights import fingerprint

__all__ = ["ADAPTERS", "adapter_of", "attach_head", "load_model"]

ADAPTERS: tuple[type[HubTrunk], ...] = (
    MDLMTrunk,
    LLaDATrunk,
    DreamTrunk,
    EsmTrunk,
    MaskedLMTrunk,
    CausalTrunk,
)
"""The first that fits is taken."""
HEAD_CHANNELS = 32
"""Of an attention head: narrow ones learn better, docs/LOG.md."""


def attach_head(
    model: Any,
    blocks: int = 1,
    *,
    heads: int | None = None,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
    tokenizer: Any = None,
    mask_id: int | None = None,
    length: int | None = None,
    forbidden: Iterable[int] = (),
    adapter: type[HubTrunk] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
) -> SSMD:
    """A frozen masked model with a fresh causal head.

    Args:
        model: a name on the Hugging Face Hub, a folder, or a model of the `transformers` library,
            which becomes part of the result and is put into evaluation mode; or a model of
            `adapt_causal` or its checkpoint, for which only the arguments of the head apply. A
            model given by name is not stored in checkpoints, but loaded again by its name.
        blocks: causal blocks of the head; 0 for none, to draft only.
        heads: attention heads of the head; by default as many as have at least 32 channels each.
        mlp_ratio, dropout: of the head, as in `HeadConfig`.
        tokenizer: of the `transformers` library, or its name; the model's own by default.
        mask_id: the mask token, if neither tokenizer nor config names it.
        length: the longest sequence, no more than the model's own.
        forbidden: further tokens that are never drafted, beside mask, pads and specials.
        adapter: how the model is split; the first of `ADAPTERS` that fits by default.
        revision: of a model on the Hub.
        dtype: of a model loaded by name; by default the one it was saved in.
        trust_remote_code: run Python code that comes with the model.
        seed: of the head's initialisation.

    Returns:
        The model, in evaluation mode. Nothing of its trunk requires a gradient.

    Raises:
        ValueError: a causal language model, a family without adapter, no mask token, remote code
            that is not trusted, or an argument of a wrong type.
        OSError: no model of this name.
    """
    for argument, value in {"mask_id": mask_id, "length": length}.items():
        if value is not None:
            whole(argument, value)
    if not isinstance(model, str | os.PathLike | torch.nn.Module):
        raise ValueError(f"`model` must be a name, a folder or a model, got {model!r}")
    name, options = "", {"revision": revision, "trust_remote_code": trust_remote_code}
    if isinstance(model, HubTrunk):
        raise ValueError("`model` must be a model, got an adapter: use its `.model`")
    if isinstance(model, SSMD):
        model, tokenizer = _taken(model)
    elif isinstance(model, torch.nn.Module):
        tokenizer = load_tokenizer(tokenizer, None, options)
    else:
        name = str(model)
        model, tokenizer = load_model(name, tokenizer, dtype=dtype, **options)
        name = str(Path(name).resolve()) if Path(name).is_dir() else name
    if isinstance(model, HubTrunk):
        trunk = model
    else:
        trunk = make_trunk(model, tokenizer, mask_id, length, forbidden, adapter)
        if not name and not trunk.writable:
            name = getattr(model.config, "name_or_path", "")  # to be found by, and checked then
        commit = getattr(model.config, "_commit_hash", None)
        trunk.source = replace(trunk.source, name=name, revision=commit)
    trunk.check()
    head = make_head(trunk.width, blocks, heads, mlp_ratio, dropout, seed)
    result = SSMD(trunk, head and head.to(trunk.forbidden.device))
    if tokenizer is not None:
        result.tokenizer = HubTokenizer(tokenizer, trunk.vocab_size, trunk.mask_id)
    return result.eval()


def _taken(model: SSMD) -> tuple[HubTrunk, Any]:
    """The trunk of a model that has no head yet, frozen, and its tokenizer."""
    if not isinstance(model.trunk, HubTrunk) or model.head is not None:
        head = "no head" if model.head is None else "a head"
        raise ValueError(f"`model` must have a trunk of the Hub and no head yet, got "
                         f"{type(model.trunk).__name__} and {head}")  # fmt: skip
    model.eval().requires_grad_(False)
    return model.trunk, getattr(model.tokenizer, "inner", None)


def make_trunk(
    model: Any,
    tokenizer: Any,
    mask_id: int | None,
    length: int | None,
    forbidden: Iterable[int],
    adapter: type[HubTrunk] | None,
) -> HubTrunk:
    """The adapter around a model, frozen."""
    kind = adapter or adapter_of(model)
    model.eval().requires_grad_(False)
    config = model.config
    vocabulary = read_vocabulary(
        config.vocab_size, config, tokenizer, mask_id, forbidden, kind.writes_specials
    )
    return kind(model, vocabulary, length=length)


def make_head(
    width: int, blocks: int, heads: int | None, mlp_ratio: int, dropout: float, seed: int
) -> CausalHead | None:
    """A head of this shape in float32; its weights follow from the seed."""
    if blocks == 0:
        return None
    config = HeadConfig(heads_for(width) if heads is None else heads, blocks, mlp_ratio, dropout)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return CausalHead(config, width)


def heads_for(width: int) -> int:
    """The most attention heads of at least `HEAD_CHANNELS` channels, and an even number, each."""
    fitting = (n for n in range(width // HEAD_CHANNELS, 1, -1) if width % (2 * n) == 0)
    return next(fitting, 1)


def adapter_of(model: Any) -> type[HubTrunk]:
    """The first adapter that fits.

    Raises:
        ValueError: none does, or it is a causal language model.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    for kind in ADAPTERS:
        if config is not None and kind.fits(model):
            if getattr(config, "is_decoder", False):
                raise _causal(name)
            return kind
    masked = transformers().models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    if name.endswith(("ForCausalLM", "LMHeadModel")) and name not in masked:  # as XLM's is
        raise _causal(name)
    raise ValueError(f"`model` must be of a family with an adapter "
                     f"({', '.join(kind.__name__ for kind in ADAPTERS)}), got {name}, in which no "
                     f"base model and unembedding were found; {GUIDE}")  # fmt: skip


def load_model(
    name: str,
    tokenizer: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str | None = None,
) -> tuple[Any, Any]:
    """A masked model by name, and its tokenizer, or the one given; None where there is none.

    Of a checkpoint of an adapted model, its trunk.

    Raises:
        ValueError: a causal model, or one whose code is not trusted.
        OSError: no such model.
    """
    hf = transformers()
    try:
        config, _ = hf.PreTrainedConfig.get_config_dict(name, revision=revision)
    except OSError as error:
        raise OSError(f"{name}: no such model in a folder here or on the Hub ({error})") from error
    if config.get("kind") == "ssmd":
        return _checkpoint(name, tokenizer, revision)
    family = config.get("model_type")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    if family == "mdlm":
        model: Any = mdlm.load(name, config, revision).to(dtype or torch.float32)
        return model, load_tokenizer(tokenizer, None, options)
    if family in ("llada", "Dream"):
        load = partial(llada.load, config=config, revision=revision)
    elif family in hf.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        load = partial(hf.AutoModelForMaskedLM.from_pretrained, **options)
    elif "AutoModelForMaskedLM" in config.get("auto_map", ()):
        if not trust_remote_code:
            raise ValueError(f"`trust_remote_code` must be True to run the code of {name!r} "
                             f"({family}), got False")  # fmt: skip
        load = partial(hf.AutoModelForMaskedLM.from_pretrained, **options)
    elif family in hf.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _causal(name)
    else:
        raise ValueError(f"`model` must be a masked language model, got {name!r} of the family "
                         f"{family!r}; {GUIDE}")  # fmt: skip
    if any("ForCausalLM" in kind for kind in config.get("architectures") or ()):
        raise _causal(name)
    model, found = load(name, dtype=dtype or "auto", output_loading_info=True)
    if lacking := sorted(key for key in found["missing_keys"] if "contact_head" not in key):
        raise ValueError(f"`model` must be a masked language model, got {name!r} without weights "
                         f"for {lacking[0]}: they would be random")  # fmt: skip
    # Dream's own is this one too, with code beside it.
    kind = hf.Qwen2Tokenizer if family == "Dream" else hf.AutoTokenizer
    return model, load_tokenizer(tokenizer, name, options, kind)


def _checkpoint(name: str, tokenizer: Any, revision: str | None) -> tuple[HubTrunk, Any]:
    """The trunk of a checkpoint of this package, and its tokenizer, or the one given."""
    from selfspec.hub.reunite import Reunion  # which needs this module

    local = Path(name).is_dir()
    model = checkpoint.load(name if local else download(name, revision), reunite=Reunion())
    assert isinstance(model, SSMD)
    trunk, own = _taken(model)
    name = str(Path(name).resolve()) if local else name
    trunk.source = Source(name, revision, fingerprint(trunk.weights()))
    return trunk, tokenizer or own


def load_tokenizer(
    tokenizer: Any, name: str | None, options: dict[str, Any], kind: Any = None
) -> Any:
    """The one given, or of a name given, or the model's own where it has a name and one of it.

    Raises:
        ValueError: there is none of the name given.
    """
    if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
        return tokenizer
    auto = transformers().AutoTokenizer
    if tokenizer is not None:
        try:
            trusted = options["trust_remote_code"]
            return auto.from_pretrained(str(tokenizer), trust_remote_code=trusted)
        except (OSError, ValueError) as error:
            raise ValueError(f"`tokenizer` cannot be loaded: {tokenizer}: {error}") from error
    try:
        return None if name is None else (kind or auto).from_pretrained(name, **options)
    except (OSError, ValueError):
        return None


def _causal(name: str) -> ValueError:
    return ValueError(f"`model` must be a masked (bidirectional) language model, got the causal "
                      f"{name}: it cannot see what stands behind a mask; `adapt_causal` makes "
                      "one of it")  # fmt: skip
