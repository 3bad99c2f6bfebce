"""Effects of mutations: how much likelier a model finds the mutant than the wild type.

With M the mutated positions and all other residues observed,

    effect = log p(x_M = mutant | rest) - log p(x_M = wild type | rest),
    p(x_M | rest) = E_σ p(x_M | rest, σ),

estimated with the same orders σ for both. For a single position no order matters: it is the
log-ratio of the draft there, the masked marginal of ESM-1v (Meier et al. 2021). For several it is
their joint law, with what one mutation makes of the other.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.inputs import check_model
from selfspec.likelihood.exact import one_pass_score
from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.prompts import framed

__all__ = ["Mutation", "mutation_effect", "parse_mutations"]

_FORM = re.compile(r"([A-Z])([1-9][0-9]*)([A-Z])")


class Mutation(NamedTuple):
    """One exchange of a residue."""

    wild: str
    position: int
    """From 0; the notation counts from 1."""
    mutant: str


def parse_mutations(text: str, wild_type: str) -> list[Mutation]:
    """`A42G`, or several joined as in `A42G:K7R`, checked against the wild type.

    >>> parse_mutations("K2R", "MKT")
    [Mutation(wild='K', position=1, mutant='R')]

    Raises:
        ValueError: another form, a residue that is not the wild type's, a position beyond it, or
            one that comes twice.
    """
    found = []
    for part in text.split(":"):
        match = _FORM.fullmatch(part)
        if not match:
            raise ValueError(f"`mutations` must look like A42G or A42G:K7R, got {text!r}")
        found.append(Mutation(match[1], int(match[2]) - 1, match[3]))
    for wild, position, _ in found:
        if position >= len(wild_type):
            raise ValueError(f"`mutations` must be at 1..{len(wild_type)}, got {text!r}")
        if wild_type[position] != wild:
            raise ValueError(f"`mutations` must start from the wild type, which has "
                             f"{wild_type[position]} at {position + 1}, got {text!r}")  # fmt: skip
    if len({position for _, position, _ in found}) < len(found):
        raise ValueError(f"`mutations` must name a position once, got {text!r}")
    return found


@torch.no_grad()
def mutation_effect(
    model: SSMD,
    wild_type: str,
    mutations: Sequence[str],
    score: Callable[..., Tensor] = one_pass_score,
    orders: int = 4,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Log-ratios of mutants and wild type, given the rest of the sequence.

    Args:
        model: with a tokenizer.
        wild_type: L residues.
        mutations: n of "A42G", or of several at once, "A42G:K7R".
        score: the law: (model, tokens, observed=, seeds=) → (B,) nats, given the observed tokens.
            `one_pass_score` by default, that of a single trunk pass; for the exact law of a sampler
            `functools.partial(log_likelihood, window=…, rounds=…)`.
        orders: how many σ to average over, at least 1; a single position needs one alone.
        seed: of the orders, the same for every mutation.
        batch_size: rows of a call of `score`.

    Returns:
        (n,) float64 nats; above 0 where the model prefers the mutant.

    Raises:
        ValueError: a mutation that `parse_mutations` refuses, none at all, more residues than the
            model reads, some that it does not know or does not read one by one, or `orders` or
            `batch_size` below 1.
    """
    check_model(model)
    for name, value in {"orders": orders, "batch_size": batch_size}.items():
        whole(name, value, least=1)
    if model.tokenizer is None:
        raise ValueError("`model` must have a tokenizer to read `wild_type`, got none")
    if not mutations:
        raise ValueError("`mutations` must hold at least one, got none")
    room = model.length - sum(map(len, model.frame))
    if len(wild_type) > room:
        raise ValueError(f"`wild_type` may have at most {room} residues, the model's length, got "
                         f"{len(wild_type)}")  # fmt: skip
    pairs = []
    for found in (parse_mutations(text, wild_type) for text in mutations):
        mutant = list(wild_type)
        for mutation in found:
            mutant[mutation.position] = mutation.mutant
        places = tuple(sorted(position for _, position, _ in found))
        pairs.append((("".join(mutant), places), (wild_type, places)))
    asked = list(dict.fromkeys(chain.from_iterable(pairs)))  # a wild type once for all its mutants
    seeds, rows, masks = row_seeds(seed, orders, model.device), [], []
    sizes = [1 if len(places) == 1 else orders for _, places in asked]
    for (text, places), size in zip(asked, sizes, strict=True):
        tokens = model.tokenizer.encode(text)
        if len(tokens) != len(wild_type):
            raise ValueError(f"`model` must read one token a residue, got {len(tokens)} for "
                             f"{len(wild_type)}")  # fmt: skip
        row = framed(torch.from_numpy(tokens), model.frame)
        masked = torch.zeros(len(row), dtype=torch.bool)
        masked[[len(model.frame[0]) + position for position in places]] = True
        rows += [row] * size
        masks += [masked] * size
    tokens, observed = torch.stack(rows).to(model.device), ~torch.stack(masks).to(model.device)
    own = torch.cat([seeds[:size] for size in sizes])
    parts = zip(*(x.split(batch_size) for x in (tokens, observed, own)), strict=True)
    logp = torch.cat([score(model, x, observed=known, seeds=s) for x, known, s in parts])
    means = [each.logsumexp(0) - math.log(len(each)) for each in logp.split(sizes)]
    of = dict(zip(asked, means, strict=True))
    return torch.stack([of[mutant] - of[wild] for mutant, wild in pairs])
