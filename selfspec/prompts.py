"""Prompts to token rows: what is observed, what is to be generated, what is padding.

A prompt is text in which each `mask_char` stands for one masked position; everything else is
observed. Prompts of different lengths make one batch, padded on the right.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from selfspec.data.tokenizers import CharTokenizer

__all__ = ["decode", "encode"]


def encode(
    tokenizer: CharTokenizer,
    prompts: Sequence[str],
    mask_char: str = "_",
    length: int | None = None,
    longest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Lay out prompts as a batch.

    Args:
        tokenizer: of the model.
        prompts: P texts of the alphabet and `mask_char`.
        mask_char: stands for a masked position.
        length: every row is continued with masked positions to this length; None for no more than
            the prompt has.
        longest: the most characters that a row may have.

    Returns:
        (P, L) int64 tokens and (P, L) bool pads.

    Raises:
        ValueError: a character outside the alphabet (named, with its index), no prompt, an empty
            one, or one that is too long.

    >>> tokens, pad = encode(CharTokenizer("ab"), ["a_", "b"])
    >>> tokens.tolist(), pad.tolist()
    ([[0, 2], [1, 0]], [[False, False], [False, True]])
    """
    if not prompts:
        raise ValueError("`prompt` must hold at least one text, got none")
    rows = []
    for prompt in prompts:
        size = len(prompt) if length is None else length
        if not prompt:
            raise ValueError("`prompt` must have at least one character, got none")
        if size < len(prompt):
            raise ValueError(f"`length` must be at least {len(prompt)}, the prompt's, got {size}")
        if longest is not None and size > longest:
            raise ValueError(f"`length` must be at most {longest}, the model's, got {size}")
        text = prompt + mask_char * (size - len(prompt))
        rows.append(torch.from_numpy(tokenizer.encode(text, mask_char)))
    sizes = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    tokens = pad_sequence(rows, batch_first=True)
    return tokens, torch.arange(tokens.shape[1]) >= sizes


def decode(
    tokenizer: CharTokenizer, tokens: Tensor, pad: Tensor, mask_char: str = "_"
) -> list[str]:
    """The text of each row (P, L), without its pads."""
    rows = zip(tokens.cpu(), pad.cpu(), strict=True)
    return [tokenizer.decode(row[~padded].numpy(), mask_char) for row, padded in rows]
