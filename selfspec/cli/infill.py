"""`selfspec infill`: fill gaps, or continue a text."""

from __future__ import annotations

from pathlib import Path

from selfspec.cli.common import Loading, Run, Sampling
from selfspec.cli.sample import Format, draw


def infill(
    text: str,
    /,
    sampling: Sampling,
    run: Run,
    loading: Loading,
    num: int = 1,
    checkpoint: str = "books27",
    mask_char: str = "_",
    length: int | None = None,
    format: Format = "text",
    watch: bool = False,
    out: Path | None = None,
) -> None:
    """Fill the gaps of a text; the rest of it stays as it is.

    Args:
        text: each mask character, "_", is one token to fill: a character, unless the model
            reads subwords.
        sampling: how to sample.
        run: where and from which seed.
        loading: how the trunk of a head is found.
        num: how many fillings.
        checkpoint: the name of a bundled checkpoint, or a folder.
        mask_char: what stands for a gap in the text.
        length: continue the text to the right, up to this many tokens.
        format: a text a line, or FASTA for models of proteins.
        watch: replay drafting and verifying of the first filling in the terminal.
        out: a file for the texts, instead of standard output.
    """
    if mask_char not in text and length is None:
        raise ValueError(f"`text` must have a {mask_char!r} to fill, or give `length`, got none")
    model = loading.model(checkpoint, run.where())
    asked = {"num": num, "prompt": text, "mask_char": mask_char, "length": length}
    draw(model, sampling, run, format, watch, out, **asked)
