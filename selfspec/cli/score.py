"""`selfspec score`: how likely a model finds a text, in bits per token and per character.

Two scores, each with its standard error over orders:

    sampler     log p(x | σ) of the sampler with these settings, exactly; averaged over orders σ a
                lower bound of log p(x)
    one pass    Σ log q(d, x_σ(d)) from a single trunk pass: the law of a sampler whose one trunk
                pass is followed by as many rounds as it takes

Where tokens are subwords, bits per character spread the bits of all tokens over the characters of
the text they stand for. These are not known of the first tokens of a text by a tokenizer that
leaves spaces out or folds letters. Texts longer than the model are scored in blocks. With
`--mutations` a protein is scored instead against its mutants, by `likelihood/mutations.py`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec.checks import whole
from selfspec.cli.common import Loading, Run, Sampling, note, one_line, table, to_json

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from selfspec.model import SSMD
    from selfspec.sampling import Sampler


def score(
    file: str,
    /,
    sampling: Sampling,
    run: Run,
    loading: Loading,
    checkpoint: str = "books27",
    orders: int = 4,
    limit: int = 1024,
    normalise: bool = False,
    mutations: tuple[str, ...] = (),
) -> None:
    """Score a text: exactly, as the sampler would draw it, and by a single pass.

    Args:
        file: a text file, which may end in .gz or .xz, or - for standard input; for a model of
            proteins one sequence, as FASTA or alone.
        sampling: the sampler that is scored; the order is uniform unless given.
        run: where and from which seed.
        loading: how the trunk of a head is found.
        checkpoint: the name of a bundled checkpoint, or a folder.
        orders: how many orders to average over, at least 2.
        limit: tokens to score, from the start of the text.
        normalise: map the text to the 27 symbols first: lower case, digits spelled out.
        mutations: such as A42G, or A42G:K7R for two at once: instead of the score of the text the
            log-ratio of each mutant and the text, in nats, by a single pass.
    """
    whole("orders", orders, least=2)
    whole("limit", limit, least=1)
    text = read(file, normalise)
    model = loading.model(checkpoint, run.where())
    if model.tokenizer is None:
        raise ValueError("`checkpoint` must have a tokenizer to score text, got none")
    if residues := getattr(model.tokenizer, "residues", ""):
        text = one_sequence(text, file, residues)
    if mutations:
        return score_mutations(model, text, mutations, orders, run)
    import torch

    ids = model.tokenizer.encode(text)
    if not len(ids):
        raise ValueError(f"`file` must hold at least one token of the model, got none in {file}")
    tokens = torch.from_numpy(ids[:limit]).to(model.device)
    sampler = sampling.sampler(model, order="uniform", likelihood=True)
    report = measure(model, tokens, sampler, orders, run.seed)
    characters = model.tokenizer.count_characters(ids[:limit])
    if characters is None and len(ids) <= limit:
        characters = len(text)
    report |= per_character(report, characters)
    if run.json:
        return print(to_json(report))
    say(report)
    note(f"{len(tokens)} of {len(ids)} tokens, {orders} orders")
    note(one_line(report["sampler"]))


def read(file: str, normalise: bool) -> str:
    """The text of a file or of standard input, without the line break at its end."""
    from selfspec.data.packed import read_lines

    try:
        lines = (line for _, line in read_lines(Path(file)))
        text = piped() if file == "-" else b"".join(lines).decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"`file` must be text in UTF-8, got {file} ({error})") from error
    if normalise:
        from selfspec.data.tokenizers import normalise as to_symbols

        text = to_symbols(text)
    text = text.rstrip("\n")
    if not text:
        raise ValueError(f"`file` must hold at least one character, got an empty {file}")
    return text


def piped() -> str:
    """All of standard input."""
    if sys.stdin is None:  # it was closed before the start
        raise ValueError("`file` must be one that is there, got a closed standard input")
    return sys.stdin.read().encode("utf-8", "surrogateescape").decode()  # strictly, this time


def per_character(report: dict[str, Any], characters: int | None) -> dict[str, Any]:
    """How many characters a text has, and the scores of a report over them; None if not known."""
    each = report["tokens"] / characters if characters else None
    names = ("bits", "stderr", "one_pass_bits", "one_pass_stderr")
    scores = {f"{name}_per_character": each and report[name] * each for name in names}
    return {"characters": characters or None} | scores


def say(report: dict[str, Any]) -> None:
    """Print the scores for people; a token that is a character is called so."""
    units = {"": "token", "_per_character": "character"}
    if report["characters"] == report["tokens"]:
        del units[""]
    elif report["characters"] is None:
        del units["_per_character"]
    kind = "exact" if report["exact"] else "estimate, as the order is re-chosen between passes"
    for name, key, remark in (("sampler", "", f" ({kind})"), ("one pass", "one_pass_", "")):
        scores = [f"{estimate(report[f'{key}bits{end}'], report[f'{key}stderr{end}'])} "
                  f"bits per {unit}" for end, unit in units.items()]  # fmt: skip
        print(f"{name:9} {', '.join(scores)}{remark}")


def estimate(mean: float, stderr: float) -> str:
    """A mean with its error; of a text that is never drawn, as by a nucleus, there is none.

    >>> estimate(1.5, 0.25), estimate(math.inf, math.nan)
    ('1.5000 ± 0.2500', 'infinite')
    """
    return f"{mean:.4f} ± {stderr:.4f}" if math.isfinite(mean) else "infinite"


def one_sequence(text: str, file: str, residues: str) -> str:
    """The sequence of a text that is one FASTA record, or has no header at all."""
    from selfspec.data.fasta import Policy, Unknown, parse_fasta

    lines = [line.encode() for line in text.splitlines()]
    headed = lines if text.lstrip().startswith(">") else [b">", *lines]
    records = list(parse_fasta(enumerate(headed, start=1), file))
    if len(records) > 1:
        raise ValueError(f"`file` must hold one sequence, got {len(records)} in {file}")
    sequence = Policy(unknown=Unknown.REFUSE).clean(records[0], residues)
    assert sequence is not None
    return sequence


def score_mutations(
    model: SSMD, wild_type: str, mutations: tuple[str, ...], orders: int, run: Run
) -> None:
    """Print the effect of each mutation."""
    from selfspec.likelihood import mutation_effect

    nats = mutation_effect(model, wild_type, mutations, orders=orders, seed=run.seed).tolist()
    effects = dict(zip(mutations, nats, strict=True))
    if run.json:
        return print(to_json({"effects": effects, "orders": orders, "seed": run.seed}))
    print(table(["mutation", "log-ratio"], [[k, f"{v:+.4f}"] for k, v in effects.items()]))


def measure(
    model: SSMD, tokens: Tensor, sampler: Sampler, orders: int, seed: int
) -> dict[str, Any]:
    """Both scores of a token sequence (n,) in bits per token; standard errors over orders."""
    import torch

    from selfspec.calibration import describe
    from selfspec.likelihood import one_pass_score
    from selfspec.noise import row_seeds
    from selfspec.progress import tracked
    from selfspec.prompts import framed

    room = model.length - sum(map(len, model.frame))
    blocks = [framed(block.cpu(), model.frame).to(model.device)[None]
              for block in tokens.split(room)]  # fmt: skip
    # Every block of every order has a seed of its own.
    seeds = row_seeds(seed, orders * len(blocks)).view(orders, len(blocks), 1)
    fixed, one_pass = torch.zeros(2, orders, dtype=torch.float64)
    total = orders * len(tokens)
    with tracked(total=total, desc="scoring", unit="tok", leave=False) as bar:
        for k in range(orders):
            for block, own in zip(blocks, seeds[k], strict=True):
                fixed[k] += log_law(model, block, sampler, own, bar).item()
                rule = sampler.order if sampler.order.fixed else None
                one_pass[k] += one_pass_score(
                    model, block, rule, observed=given(model, block), seeds=own,
                    temperature=sampler.temperature, top_p=sampler.top_p,
                ).item()  # fmt: skip
    bits = -1 / (math.log(2) * len(tokens))
    return {
        "bits": float(fixed.mean() * bits),
        "stderr": float(fixed.std() * -bits / orders**0.5),
        "one_pass_bits": float(one_pass.mean() * bits),
        "one_pass_stderr": float(one_pass.std() * -bits / orders**0.5),
        "exact": sampler.order.fixed,
        "tokens": len(tokens),
        "orders": orders,
        "sampler": describe(sampler),
        "seed": seed,
    }


def given(model: SSMD, block: Tensor) -> Tensor:
    """(1, L) bool: the tokens around the text."""
    import torch

    from selfspec.prompts import in_frame

    return in_frame(torch.zeros_like(block, dtype=torch.bool), model.frame)


def log_law(model: SSMD, block: Tensor, sampler: Sampler, seeds: Tensor, bar: tqdm) -> Tensor:
    """log p(x | σ) of a block (1, L) under a sampler, nats; an estimate for re-chosen orders.

    The bar moves on by the tokens of the block, as they are scored.
    """
    from selfspec.likelihood import estimate_log_likelihood, log_likelihood
    from selfspec.sampling import SpeculativeSampler

    rounds = sampler.rounds if isinstance(sampler, SpeculativeSampler) else 0
    around = given(model, block)
    asked = model, block, sampler.order, sampler.window, rounds
    options = {"observed": around, "seeds": seeds, "temperature": sampler.temperature,
               "top_p": sampler.top_p}  # fmt: skip
    if sampler.order.fixed:
        rows = 256 if model.device.type == "cuda" else 16  # more are no faster on a CPU
        return log_likelihood(*asked, **options, batch_size=rows, watch=bar.update)
    nats = estimate_log_likelihood(*asked, **options)
    bar.update(int((~around).sum()))
    return nats
