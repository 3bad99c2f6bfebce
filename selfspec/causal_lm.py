"""Causal language models of the `transformers` library: what judges are, and what is adapted."""

from pathlib import Path
from typing import Any

import torch

__all__ = ["load_causal_lm"]


def load_causal_lm(
    name: str, tokenizer: Any = None, dtype: torch.dtype = torch.float32, **load: Any
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer.

    Args:
        name: of a model on the Hub, a folder, or a `.gguf` file, whose weights become plain ones.
        tokenizer: another than the model's own, or its name.
        dtype: of the weights.
        **load: for `from_pretrained`.

    Raises:
        ValueError: another kind of model, or `transformers` or what it needs is not installed.
        OSError: no such model.
    """
    path = Path(name)
    if path.suffix == ".gguf":
        name, load = str(path.parent), {**load, "gguf_file": path.name}
    try:
        from transformers import (  # pyright: ignore[reportMissingImports]
            AutoModelForCausalLM,
            AutoTokenizer,
        )

        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **load)
    except ImportError as error:
        raise ValueError(f"models of the Hub need `pip install selfspec[hf]` ({error})") from error
    except OSError as error:
        raise OSError(f"{path}: no such model in a folder here or on the Hub ({error})") from error
    if hasattr(model.config, "quantization_config"):  # it would be saved with plain weights
        del model.config.quantization_config
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(name, **load)
    elif isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    return model.eval(), tokenizer
