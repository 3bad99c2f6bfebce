"""Laws of the samplers, slowly and independently: plain loops in probability space.

A **puzzle** is a row to fill: tokens (L,), the mask token where one is to be generated, and pads.
Its **completions** are the V^N ways to fill it, in lexicographic order. A **law** is an array of
their probabilities. `sampler_law` sums over everything that a sampler may draw (orders, drafts,
verdicts, residuals); it knows the networks and nothing of `selfspec.likelihood`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations, product
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from selfspec.model import SSMD
from selfspec.noise import row_seeds
from selfspec.ops import inverse_order
from selfspec.orders import Order, RespacedOrder, UniformOrder, VanDerCorputOrder
from selfspec.sampling import Sampler
from selfspec.schedules import Schedule, Window

Sigma = tuple[int, ...]


@dataclass(frozen=True)
class Puzzle:
    """A row to fill: '?' is to be generated, '.' is a pad, a digit is observed."""

    text: str
    vocab: int = 3

    @property
    def tokens(self) -> Tensor:
        """(L,); pads hold what no vocabulary has."""
        codes = {"?": self.vocab, ".": -7}
        return torch.tensor([codes[c] if c in codes else int(c) for c in self.text])

    def where(self, kinds: str) -> Sigma:
        """Positions of these kinds."""
        return tuple(i for i, c in enumerate(self.text) if c in kinds)

    @property
    def masked(self) -> Sigma:
        return self.where("?")

    @property
    def known(self) -> Sigma:
        return self.where("0123456789")

    @property
    def pad(self) -> Tensor:
        return torch.tensor([c == "." for c in self.text])

    @property
    def observed(self) -> Tensor:
        return torch.tensor([c.isdigit() for c in self.text])

    @property
    def completions(self) -> Tensor:
        """(V^N, L)."""
        return self.filled(self.masked)

    def filled(self, positions: Sequence[int]) -> Tensor:
        """All values at `positions`, the last of them running fastest."""
        values = torch.tensor(list(product(range(self.vocab), repeat=len(positions))))
        rows = self.tokens.repeat(len(values), 1)
        rows[:, list(positions)] = values
        return rows

    def index(self, tokens: Tensor) -> Tensor:
        """Which completion each row of (B, L) is."""
        powers = self.vocab ** torch.arange(len(self.masked)).flip(0)
        return (tokens[:, list(self.masked)] * powers).sum(1)

    def scored(self) -> dict[str, Any]:
        """Arguments of `log_likelihood`: every completion."""
        rows = self.completions
        given = {"pad": self.pad, "observed": self.observed}
        return {"tokens": rows, **{k: v.expand_as(rows) for k, v in given.items()}}


PLAIN = Puzzle("????")
HINTED, PADDED = Puzzle("1????"), Puzzle("?.2??")
INFILL = Puzzle("1?.?2?")
BINARY = Puzzle("??????", vocab=2)


class ListedOrder:
    """One given σ of the masked positions."""

    fixed: ClassVar[bool] = True

    def __init__(self, sigma: Sequence[int]):
        self.sigma = torch.tensor([list(sigma)])

    def keys(self, masked: Tensor, window: Tensor, u: Tensor, u_row: Tensor) -> Tensor:
        return (inverse_order(self.sigma).double() / self.sigma.shape[1]).expand_as(u)


UNIFORM, SPACED, RESPACED = UniformOrder(), VanDerCorputOrder(), RespacedOrder()


def orders(rule: Order, puzzle: Puzzle) -> list[Sigma]:
    """Every σ of a fixed rule, all equally likely; without the places that a rule re-chooses."""
    pads = puzzle.where(".")
    if isinstance(rule, ListedOrder):
        rest = [tuple(i for i in rule.sigma[0].tolist() if i in puzzle.masked)]
    elif isinstance(rule, VanDerCorputOrder):
        rest = [van_der_corput(puzzle.masked, shift) for shift in range(len(puzzle.masked))]
    elif isinstance(rule, UniformOrder):
        rest = list(permutations(puzzle.masked))
    else:
        rest, pads = [()], ()
    return [begin + middle + pads for begin in permutations(puzzle.known) for middle in rest]


def van_der_corput(masked: Sigma, shift: int) -> Sigma:
    """Positions by the bit-reversal of their rotated rank."""
    n = len(masked)
    bits = (n - 1).bit_length()
    reversed_rank = {
        position: int(f"{(rank + shift) % n:0{bits}b}"[::-1], 2)
        for rank, position in enumerate(masked)
    }
    return tuple(sorted(masked, key=reversed_rank.__getitem__))


def respaced(masked: Sigma, window: int) -> Iterator[tuple[Sigma, float]]:
    """Every order of the masked positions before a pass, with its probability."""
    n = len(masked)
    for shift in range(n):
        firsts = [min(r for r in range(n) if r * window // n == cell) for cell in range(window)]
        head = tuple(masked[(firsts[cell] - shift) % n] for cell in reversed_bits(window))
        tails = list(permutations(p for p in masked if p not in head))
        for tail in tails:
            yield head + tail, 1 / (n * len(tails))


def reversed_bits(n: int) -> list[int]:
    """0, …, n - 1 by their bits from the last on."""
    size = len(f"{n - 1:b}")
    return sorted(range(n), key=lambda k: f"{k:0{size}b}"[::-1])


class Conditionals:
    """p_i(d, ·) and q_i(d, ·) along one σ, for all values of the tokens to generate.

    Rows run over the values of those tokens in σ order, so a known beginning names a row.
    """

    @torch.no_grad()
    def __init__(self, model: SSMD, puzzle: Puzzle, sigma: Sigma):
        self.vocab, self.first, self.length = puzzle.vocab, len(puzzle.known), len(puzzle.masked)
        rows = puzzle.filled(sigma[self.first : self.first + self.length])
        rows = rows.masked_fill(puzzle.pad, 0)
        order, pad = torch.tensor(sigma).expand_as(rows), puzzle.pad.expand_as(rows)
        self.draft, self.target = [], []
        for i in range(self.first, self.first + self.length):
            seen = rows.clone()
            seen[:, list(sigma[i : self.first + self.length])] = model.mask_id
            hidden = model.trunk(seen, pad)
            draft = _softmax(model.trunk.unembed(hidden))[:, list(sigma)]  # type: ignore[operator]
            target = draft
            if model.head is not None:
                embedded = model.trunk.embed(rows)  # type: ignore[operator]
                logits = model.trunk.unembed(model.head(hidden, embedded, order))  # type: ignore[operator]
                target = _softmax(logits)
                target[:, i] = draft[:, i]
            self.draft.append(draft[:, self.first :])
            self.target.append(target[:, self.first :])

    def row(self, begin: Sigma) -> int:
        """A row whose tokens begin with `begin`."""
        return sum(t * self.vocab ** (self.length - 1 - k) for k, t in enumerate(begin))


def _softmax(logits: Tensor) -> np.ndarray:
    weights = np.exp(logits.double().numpy())
    return weights / weights.sum(-1, keepdims=True)


def one_pass(table: Conditionals, begin: Sigma, window: int, rounds: int) -> dict[Sigma, float]:
    """What a pass reveals: the law of the tokens generated so far, after it."""
    i, stop = len(begin), len(begin) + window
    draft = table.draft[i][table.row(begin)]
    outcomes: dict[Sigma, float] = defaultdict(float)

    def verify(y: Sigma, decided: int, rounds_left: int, weight: float) -> None:
        if decided == stop or not rounds_left:
            outcomes[y[:decided]] += weight
            return
        for d in range(decided, stop):
            p, q = draft[d], table.target[i][table.row(y[:d]), d]
            accept = min(1.0, q[y[d]] / p[y[d]])
            excess = np.maximum(q - p, 0)
            for token in np.flatnonzero(excess) if accept < 1 else ():
                share = weight * (1 - accept) * excess[token] / excess.sum()
                verify((*y[:d], int(token), *y[d + 1 :]), d + 1, rounds_left - 1, share)
            weight *= accept
        outcomes[y] += weight

    for drafted in product(range(table.vocab), repeat=window):
        weight = np.prod([draft[i + k, token] for k, token in enumerate(drafted)])
        verify(begin + drafted, i if rounds else stop, rounds, float(weight))
    return outcomes


@cache
def sampler_law(
    model: SSMD, puzzle: Puzzle, rule: Order, window: Window, rounds: int
) -> np.ndarray:
    """The law of a sampler that is plain, with counts W (R = 0), or self-speculative: (V^N,)."""
    n, first, begins = len(puzzle.masked), len(puzzle.known), orders(rule, puzzle)
    tables: dict[Sigma, Conditionals] = {}
    # By tokens generated: the probability of (σ, as far as it is settled; those tokens).
    states = [defaultdict(float) for _ in range(n + 1)]
    states[0] = defaultdict(float, {(sigma, ()): 1 / len(begins) for sigma in begins})
    for k, width in enumerate(window.table(n).tolist()):
        for (sigma, values), weight in states[k].items():
            for full, chance in _orders_of_pass(rule, puzzle, sigma, width):
                if full not in tables:
                    tables[full] = Conditionals(model, puzzle, full)
                for after, share in one_pass(tables[full], values, width, rounds).items():
                    kept = full if rule.fixed else full[: first + len(after)]
                    states[len(after)][kept, after] += weight * chance * share
    law = np.zeros(puzzle.vocab**n)
    for (sigma, values), weight in states[n].items():
        along = dict(zip(sigma[first:], values))  # noqa: B905
        law[int("".join(str(along[i]) for i in puzzle.masked), puzzle.vocab)] += weight
    return law


def _orders_of_pass(
    rule: Order, puzzle: Puzzle, sigma: Sigma, width: int
) -> Iterable[tuple[Sigma, float]]:
    """The σ that a pass may run on, with their probabilities."""
    if rule.fixed:
        return [(sigma, 1.0)]
    masked = tuple(i for i in puzzle.masked if i not in sigma)
    pads = puzzle.where(".")
    return ((sigma + rest + pads, chance) for rest, chance in respaced(masked, width))


@torch.no_grad()
def ancestral_law(model: SSMD, puzzle: Puzzle, schedule: Schedule, steps: int) -> np.ndarray:
    """The reverse process itself: at each step, each masked position is revealed or not."""
    masked_share = [1.0, *schedule.masked(np.arange(1, steps + 1) / steps).tolist()]
    states = {tuple(puzzle.tokens.tolist()): 1.0}
    for before, after in pairwise(masked_share):
        reached: dict[Sigma, float] = defaultdict(float)
        for row, weight in states.items():
            tokens = torch.tensor([row]).masked_fill(puzzle.pad, 0)
            p = _softmax(model.draft(model.encode(tokens, puzzle.pad[None])))[0]
            open_ = [i for i in puzzle.masked if row[i] == model.mask_id]
            for values in product(range(puzzle.vocab + 1), repeat=len(open_)):
                share, filled = weight, list(row)
                for i, value in zip(open_, values):  # noqa: B905
                    stays = value == model.mask_id
                    share *= after / before if stays else (1 - after / before) * p[i, value]
                    filled[i] = value
                reached[tuple(filled)] += share
        states = {row: weight for row, weight in reached.items() if weight > 0}
    rows = torch.tensor(list(states))
    return np.bincount(
        puzzle.index(rows), list(states.values()), puzzle.vocab ** len(puzzle.masked)
    )


def recursion(p: np.ndarray, q: np.ndarray, window: Sequence[int], rounds: int) -> float:
    """p(x | σ) from p_i(d, x_σ(d)) and q_i(d, x_σ(d)), (D, D) each, as in the method's text.

    Places are counted from 1 here: p[i, d - 1] belongs to place d.
    """
    size = len(p)
    P = [1.0] + [0.0] * size
    for i in range(size):
        e = min(i + window[i], size)
        A = {i: 1.0}
        for _ in range(rounds):
            B, N = 0.0, {}
            for d in range(i + 1, e + 1):
                B += A.get(d - 1, 0.0)
                N[d] = B * max(0.0, q[i, d - 1] - p[i, d - 1])
                B *= min(p[i, d - 1], q[i, d - 1])
            P[e] += P[i] * (B + N.pop(e, 0.0))
            A = N
        for j in A:
            P[j] += P[i] * A[j]
    return P[size]


def paper_recursion(p: np.ndarray, q: np.ndarray) -> float:
    """Campbell et al. 2025, R = 1 and no window: O(D²).

    A pass from i ends at j < D by acceptance up to j - 1 and a residual at j, or at D by
    acceptance up to D - 1 and either of both at D, which together have probability q_i(D).
    """
    size = len(p)
    reach = np.zeros(size + 1)
    reach[0] = 1
    for i in range(size):
        accepted = np.append(1.0, np.cumprod(np.minimum(p, q)[i, i:-1]))
        reach[i + 1 : size] += reach[i] * (accepted * np.maximum(q - p, 0)[i, i:])[:-1]
        reach[size] += reach[i] * accepted[-1] * q[i, -1]
    return float(reach[-1])


def counts(sampler: Sampler, puzzle: Puzzle, draws: int = 50_000, seed: int = 0) -> np.ndarray:
    """How often each completion is drawn."""
    total = np.zeros(puzzle.vocab ** len(puzzle.masked), dtype=np.int64)
    for seeds in row_seeds(seed, draws).split(10_000):
        rows, pad = (x.repeat(len(seeds), 1) for x in (puzzle.tokens, puzzle.pad))
        drawn = puzzle.index(sampler.sample(rows, seeds, pad).tokens)
        total += np.bincount(drawn, minlength=len(total))
    return total


def p_value(observed: np.ndarray, law: np.ndarray) -> float:
    """χ² test of counts against a law; cells that expect fewer than five are pooled."""
    law = law / law.sum()
    if observed[law == 0].any():
        return 0.0
    expected = law * observed.sum()
    rare = expected < 5
    cells = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
    keep = cells[1] > 0
    return float(stats.chisquare(cells[0][keep], cells[1][keep]).pvalue)
