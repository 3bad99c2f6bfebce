"""Prompts to token rows: what is observed, what is to be generated, what is padding.

A prompt is text in which each `mask_char` stands for one masked position; everything else is
observed. Prompts of different lengths make one batch, padded on the right.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from selfspec.data.tokenizers import CharTokenizer

__all__ = ["blank", "decode", "encode", "layout"]


def layout(
    prompts: Sequence[str] | None,
    tokenizer: CharTokenizer | None,
    mask_id: int,
    longest: int,
    mask_char: str = "_",
    length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Lay out prompts as a batch.

    Args:
        prompts: P texts of the alphabet and `mask_char`; None for one row of masked positions.
        tokenizer: of the model, without which there are no prompts.
        mask_id: the model's mask token.
        longest: the most tokens of a row, the model's length.
        mask_char: stands for a masked position.
        length: every row is continued with masked positions to this length; by default a row has
            its prompt's length, or `longest` where there are no prompts.

    Returns:
        (P, L) int64 tokens and (P, L) bool pads.

    Raises:
        ValueError: a character outside the alphabet (named, with its index), no prompt, an empty
            one, one or a `length` that is too long, or a model without a tokenizer.
    """
    if length is not None and not 1 <= length <= longest:
        raise ValueError(f"`length` must be in 1..{longest}, the model's, got {length}")
    if prompts is None:
        tokens = torch.full((1, length or longest), mask_id)
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)
    if tokenizer is None:
        raise ValueError("`model` must have a tokenizer to read `prompt`, got none")
    if not prompts:
        raise ValueError("`prompt` must hold at least one text, got none")
    rows = [encode(tokenizer, prompt, mask_char, length) for prompt in prompts]
    sizes = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    if int(sizes.max()) > longest:
        raise ValueError(f"`prompt` may have at most {longest} characters, the model's length, "
                         f"got {int(sizes.max())}")  # fmt: skip
    tokens = pad_sequence(rows, batch_first=True)
    return tokens, torch.arange(tokens.shape[1]) >= sizes


def blank(lengths: Tensor, mask_id: int, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of masked positions: (B,) lengths → (B, L) int64 tokens and (B, L) bool pads.

    L is `width`, by default that of the longest row.
    """
    places = torch.arange(width or int(lengths.max()), device=lengths.device)
    pad = places >= lengths.unsqueeze(1)
    return torch.full_like(pad, mask_id, dtype=torch.int64), pad


def encode(
    tokenizer: CharTokenizer, prompt: str, mask_char: str = "_", length: int | None = None
) -> Tensor:
    """One prompt, continued with masked positions to `length` if that is given: (L,) int64.

    >>> encode(CharTokenizer("ab"), "a_b", length=5).tolist()
    [0, 2, 1, 2, 2]
    """
    if not prompt:
        raise ValueError("`prompt` must have at least one character, got none")
    if length is not None and length < len(prompt):
        raise ValueError(f"`length` must be at least {len(prompt)}, the prompt's, got {length}")
    tokens = torch.from_numpy(tokenizer.encode(prompt, mask_char))
    rest = 0 if length is None else length - len(prompt)
    return torch.cat([tokens, tokens.new_full((rest,), tokenizer.mask_id)])


def decode(
    tokenizer: CharTokenizer, tokens: Tensor, pad: Tensor, mask_char: str = "_"
) -> list[str]:
    """The text of each row (P, L), without its pads."""
    rows = zip(tokens.cpu(), pad.cpu(), strict=True)
    return [tokenizer.decode(row[~padded].numpy(), mask_char) for row, padded in rows]
