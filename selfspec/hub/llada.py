"""LLaDA and Dream, by the library's own classes: no code of their repositories is run.

    LLaDA   Nie et al. 2025 (arXiv 2502.09992)    Llama with attention that has no direction
    Dream   Ye et al. 2025 (arXiv 2508.15487)     Qwen2 with attention that has no direction

The classes in their repositories were written for version 4 of the library and fail in version 5.
These here compute the same: docs/LOG.md has the numbers. Dream was made from a causal model and
kept its shift: the state at position ℓ-1 predicts the token at ℓ, and position 0 is predicted from
its own state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selfspec.hub.causal import OpenTrunk
from selfspec.hub.trunk import transformers

__all__ = ["DreamTrunk", "LLaDATrunk", "load"]

NAMES = {
    r"model\.transformer\.wte": "model.embed_tokens",
    r"model\.transformer\.ln_f": "model.norm",
    r"model\.transformer\.ff_out": "lm_head",
    r"model\.transformer\.blocks": "model.layers",
    r"\.attn_norm": ".input_layernorm",
    r"\.ff_norm": ".post_attention_layernorm",
    r"\.q_proj": ".self_attn.q_proj",
    r"\.k_proj": ".self_attn.k_proj",
    r"\.v_proj": ".self_attn.v_proj",
    r"\.attn_out": ".self_attn.o_proj",
    r"\.ff_proj": ".mlp.gate_proj",
    r"\.up_proj": ".mlp.up_proj",
    r"\.ff_out": ".mlp.down_proj",
}
"""Of LLaDA's weights, and what Llama calls them."""
SHAPE = {
    "d_model": "hidden_size",
    "mlp_hidden_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "max_sequence_length": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "activation_type": "hidden_act",
    "weight_tying": "tie_word_embeddings",
    "mask_token_id": "mask_token_id",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}
"""Of LLaDA's config, and what Llama calls it."""
LLAMA = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "scale_logits": False,
    "block_group_size": 1,
}
"""What LLaDA's config says where it is Llama."""
LIBRARYS = ("architectures", "auto_map", "model_type", "transformers_version")
"""What Dream's config says of its own classes; all else is Qwen2's."""


class LLaDATrunk(OpenTrunk):
    """LLaDA, as `load` makes it."""

    @staticmethod
    def fits(model: Any) -> bool:
        """By the name of the published class."""
        return _published(model) == ("llama", "LLaDAModelLM")


class DreamTrunk(OpenTrunk):
    """Dream, as `load` makes it."""

    @staticmethod
    def fits(model: Any) -> bool:
        """By the name of the published class."""
        return _published(model) == ("qwen2", "DreamModel")

    def hidden(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """The last hidden states, each moved to the position that it predicts."""
        return _shifted(super().hidden(tokens, real))

    def own_logits(self, tokens: Tensor) -> Tensor:
        """As Dream's own sampler reads them."""
        return _shifted(super().own_logits(tokens))


def load(name: str, config: Mapping[str, Any], **options: Any) -> Any:
    """LLaDA or Dream with published weights, and what `from_pretrained` says of loading them.

    Args:
        name: a folder or a repository of the Hub.
        config: its `config.json`.
        **options: for `from_pretrained`.

    Raises:
        ValueError: a LLaDA that is not Llama.
        OSError: no such model.
    """
    hf = transformers()
    if config["model_type"] == "Dream":
        shape = {key: value for key, value in config.items() if key not in LIBRARYS}
        made = hf.Qwen2Config(**shape, architectures=["DreamModel"])
        return hf.Qwen2ForCausalLM.from_pretrained(name, config=made, **options)
    for key, wanted in LLAMA.items():
        if config.get(key) not in (wanted, None):
            raise ValueError(f"`model` must be a LLaDA whose `{key}` is {wanted}, got "
                             f"{config[key]} in {name!r}")  # fmt: skip
    shape = {SHAPE[key]: config[key] for key in SHAPE if config.get(key) is not None}
    shape["vocab_size"] = config.get("embedding_size") or config["vocab_size"]
    shape["num_key_value_heads"] = config.get("n_kv_heads") or config["n_heads"]
    made = hf.LlamaConfig(**shape, architectures=["LLaDAModelLM"])
    return hf.LlamaForCausalLM.from_pretrained(name, config=made, key_mapping=NAMES, **options)


def _published(model: Any) -> tuple[str, str]:
    """The family of a model in the library, and the class that it was published with."""
    return model.config.model_type, "".join(getattr(model.config, "architectures", None) or ())


def _shifted(x: Tensor) -> Tensor:
    """x_0, x_0, x_1, …, x_(L-2)."""
    return torch.cat([x[:, :1], x[:, :-1]], dim=1)
