"""Prompts to token rows: what is observed, what is to be generated, what is padding.

A prompt is text in which each `mask_char` stands for one masked position; everything else is
observed. Prompts of different lengths make one batch, padded on the right. A model's frame, tokens
that it wants before and after every sequence, is put around each and is no part of the text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from selfspec.data.tokenizers import Tokenizer
from selfspec.lengths import Lengths

__all__ = [
    "NO_FRAME",
    "Frame",
    "as_texts",
    "blank",
    "decode",
    "encode",
    "framed",
    "in_frame",
    "layout",
    "unprompted",
]

Frame = tuple[Sequence[int], Sequence[int]]
NO_FRAME: Frame = ((), ())


def layout(
    prompts: Sequence[str] | None,
    tokenizer: Tokenizer | None,
    mask_id: int,
    longest: int,
    mask_char: str = "_",
    length: int | None = None,
    frame: Frame = NO_FRAME,
) -> tuple[Tensor, Tensor]:
    """Lay out prompts as a batch.

    Args:
        prompts: P texts of the alphabet and `mask_char`; None for one row of masked positions.
        tokenizer: of the model, without which there are no prompts.
        mask_id: the model's mask token.
        longest: the most tokens of a row with its frame, the model's length.
        mask_char: stands for a masked position.
        length: every row is continued with masked positions to this length; by default a row has
            its prompt's length, or the longest where there are no prompts. Without the frame.
        frame: tokens before and after every row.

    Returns:
        (P, L) int64 tokens and (P, L) bool pads.

    Raises:
        ValueError: a character outside the alphabet (named, with its index), no prompt, an empty
            one, one or a `length` that is too long, or a model without a tokenizer.
    """
    longest -= len(frame[0]) + len(frame[1])
    if length is not None and not 1 <= length <= longest:
        raise ValueError(f"`length` must be in 1..{longest}, the model's, got {length}")
    if prompts is None:
        tokens = framed(torch.full((length or longest,), mask_id), frame).unsqueeze(0)
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)
    if tokenizer is None:
        raise ValueError("`model` must have a tokenizer to read `prompt`, got none")
    if not prompts:
        raise ValueError("`prompt` must hold at least one text, got none")
    rows = [encode(tokenizer, prompt, mask_char, length) for prompt in prompts]
    if (most := max(map(len, rows))) > longest:
        raise ValueError(f"`prompt` may have at most {longest} tokens, the model's length, "
                         f"got {most}")  # fmt: skip
    rows = [framed(row, frame) for row in rows]
    sizes = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    tokens = pad_sequence(rows, batch_first=True)
    return tokens, torch.arange(tokens.shape[1]) >= sizes


def unprompted(
    seeds: Tensor,
    mask_id: int,
    longest: int,
    lengths: Lengths | None = None,
    length: int | None = None,
    frame: Frame = NO_FRAME,
) -> tuple[Tensor, Tensor]:
    """A row of masked positions for each row seed (B,): of `length`, of one drawn, or the longest.

    Arguments, result and errors are those of `layout`.
    """
    if lengths is not None and length is None:
        return blank(lengths.draw(seeds), mask_id, frame=frame)
    rows = layout(None, None, mask_id, longest, length=length, frame=frame)
    tokens, pad = (row.expand(len(seeds), -1).to(seeds.device) for row in rows)
    return tokens, pad


def blank(
    lengths: Tensor, mask_id: int, width: int | None = None, frame: Frame = NO_FRAME
) -> tuple[Tensor, Tensor]:
    """Rows of masked positions: (B,) lengths → (B, L) int64 tokens and (B, L) bool pads.

    L is `width`, by default that of the longest row with its frame, which lengths do not count.
    """
    begin, end = frame
    stop = len(begin) + lengths.unsqueeze(1)
    most = width or int(stop.max()) + len(end)
    places = torch.arange(most, device=lengths.device).expand(len(lengths), -1)
    tokens = torch.full_like(places, mask_id)
    for offset, token in enumerate(begin):
        tokens[:, offset] = token
    for offset, token in enumerate(end):
        tokens.masked_fill_(places == stop + offset, token)
    return tokens, places >= stop + len(end)


def as_texts(prompt: str | Sequence[str] | None) -> Sequence[str] | None:
    """One text or several, as several.

    Raises:
        ValueError: neither.
    """
    if prompt is None or isinstance(prompt, str):
        return None if prompt is None else [prompt]
    if not isinstance(prompt, Sequence) or not all(isinstance(text, str) for text in prompt):
        raise ValueError(f"`prompt` must be a text or several, got {prompt!r}")
    return prompt


def encode(
    tokenizer: Tokenizer, prompt: str, mask_char: str = "_", length: int | None = None
) -> Tensor:
    """One prompt, continued with masked positions to `length` if that is given: (L,) int64.

    >>> from selfspec.data.tokenizers import CharTokenizer
    >>> encode(CharTokenizer("ab"), "a_b", length=5).tolist()
    [0, 2, 1, 2, 2]
    """
    if not prompt:
        raise ValueError("`prompt` must have at least one character, got none")
    tokens = torch.from_numpy(tokenizer.encode(prompt, mask_char))
    rest = 0 if length is None else length - len(tokens)
    if rest < 0:
        raise ValueError(f"`length` must be at least {len(tokens)}, the prompt's, got {length}")
    return torch.cat([tokens, tokens.new_full((rest,), tokenizer.mask_id)])


def decode(
    tokenizer: Tokenizer,
    tokens: Tensor,
    pad: Tensor,
    mask_char: str = "_",
    frame: Frame = NO_FRAME,
) -> list[str]:
    """The text of each row (P, L), without its pads and its frame."""
    rows = [row[~padded] for row, padded in zip(tokens.cpu(), pad.cpu(), strict=True)]
    before, after = map(len, frame)
    return [tokenizer.decode(row[before : len(row) - after].numpy(), mask_char) for row in rows]


def framed(row: Tensor, frame: Frame) -> Tensor:
    """(n,) tokens with the frame around them."""
    begin, end = (torch.tensor(ids, dtype=torch.int64) for ids in frame)
    return torch.cat([begin, row, end])


def in_frame(pad: Tensor, frame: Frame) -> Tensor:
    """(B, L) bool: the tokens of the frame, which are given, in rows with these pads (B, L)."""
    places = torch.arange(pad.shape[1], device=pad.device)
    size = (~pad).sum(1, keepdim=True)
    return ((places < len(frame[0])) | (places >= size - len(frame[1]))) & ~pad
