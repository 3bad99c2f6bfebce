"""Definitions of the accelerated samplers, step by step, and the laws that they give.

A **process** is a function from (row, step, memory) to the outcomes of a step: (probability, row,
memory). Its law is the sum over all paths, in float64 and plain loops. A row is a tuple of tokens;
nothing here knows `selfspec.sampling` or `selfspec.selection`.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cache
from itertools import combinations, permutations, product
from math import ceil, exp, floor, log
from typing import Any

import numpy as np
import torch
from reference import Conditionals, Puzzle, Sigma, _softmax, one_pass

from selfspec.model import SSMD

Row = tuple[int, ...]
Outcomes = Iterable[tuple[float, Row, Hashable]]
Process = Callable[[Row, int, Hashable], Outcomes]
Drafts = Callable[[Row], np.ndarray]
Choose = Callable[[np.ndarray, list[int]], Sequence[int]]


def drafts_of(model: SSMD, puzzle: Puzzle) -> Drafts:
    """p of every position, (L, V), given a row."""

    @cache
    @torch.no_grad()
    def drafts(row: Row) -> np.ndarray:
        tokens = torch.tensor([row]).masked_fill(puzzle.pad, 0)
        return _softmax(model.draft(model.encode(tokens, puzzle.pad[None])))[0]

    return drafts


def law(puzzle: Puzzle, process: Process, steps: int | None = None) -> np.ndarray:
    """Of the completions: (V^N,). Until nothing is masked, or for a number of steps."""
    states: dict[tuple[Row, Hashable], float] = {(tuple(puzzle.tokens.tolist()), None): 1.0}
    done: dict[Row, float] = defaultdict(float)
    for k in range(steps if steps is not None else 99):
        reached: dict[tuple[Row, Hashable], float] = defaultdict(float)
        for (row, memory), weight in states.items():
            if steps is None and puzzle.vocab not in row:
                done[row] += weight
                continue
            for chance, after, kept in process(row, k, memory):
                if chance > 0:
                    reached[after, kept] += weight * chance
        states = reached
    for (row, _), weight in states.items():
        done[row] += weight
    assert all(puzzle.vocab not in row for row in done)
    rows = torch.tensor(list(done))
    return np.bincount(puzzle.index(rows), list(done.values()), puzzle.vocab ** len(puzzle.masked))


def filled(row: Row, where: Sequence[int], values: Sequence[int]) -> Row:
    out = list(row)
    for i, value in zip(where, values, strict=True):
        out[i] = value
    return tuple(out)


def draws(p: np.ndarray, where: Sequence[int]) -> Iterator[tuple[float, Row]]:
    """Every outcome of independent draws at these positions."""
    for values in product(range(p.shape[1]), repeat=len(where)):
        yield float(np.prod([p[i, v] for i, v in zip(where, values, strict=True)])), values


def entropy(p: np.ndarray) -> float:
    return -sum(float(x) * log(x) for x in p if x > 0)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(float(x) * log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


SCORES: dict[str, Callable[[np.ndarray], float]] = {
    "Confidence": lambda p: float(max(p)),
    "Margin": lambda p: float(sorted(p)[-1] - sorted(p)[-2]),
    "Entropy": lambda p: -entropy(p),
}


def best_first(p: np.ndarray, masked: Sequence[int], score: str = "Confidence") -> list[int]:
    return sorted(masked, key=lambda i: -round(float(SCORES[score](p[i])), 6))  # ties to the left


def choosing(puzzle: Puzzle, drafts: Drafts, choose: Choose) -> Process:
    """forward → choose U → draw x_U."""

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p = drafts(row)
        chosen = choose(p, [i for i in puzzle.masked if row[i] == puzzle.vocab])
        assert chosen
        for chance, values in draws(p, chosen):
            yield chance, filled(row, chosen, values), None

    return process


def by_threshold(tau: float) -> Choose:
    def choose(p: np.ndarray, masked: list[int]) -> Sequence[int]:
        return [i for i in masked if max(p[i]) >= tau] or best_first(p, masked)[:1]

    return choose


def by_factor(factor: float) -> Choose:
    def choose(p: np.ndarray, masked: list[int]) -> Sequence[int]:
        sure = best_first(p, masked)
        sizes = [n for n, i in enumerate(sure, 1) if (n + 1) * (1 - max(p[i])) < factor]
        return sure[: max(sizes, default=1)]

    return choose


def within_entropy(order: Sequence[int], p: np.ndarray, gamma: float) -> int:
    """The most places of an order whose Σ H - max H is at most γ, at least one."""
    sizes = range(1, len(order) + 1)
    H = [entropy(p[i]) for i in order]
    return max([j for j in sizes if sum(H[:j]) - max(H[:j]) <= gamma], default=1)


def by_entropy(gamma: float) -> Choose:
    def choose(p: np.ndarray, masked: list[int]) -> Sequence[int]:
        order = best_first(p, masked, "Entropy")
        return order[: within_entropy(order, p, gamma)]

    return choose


def without_replacement(
    weights: dict[int, float], count: int
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Positions drawn one after another in proportion to their weights."""
    if not count:
        yield 1.0, ()
        return
    total = sum(weights.values())
    for i, w in weights.items():
        rest = {j: v for j, v in weights.items() if j != i}
        for chance, others in without_replacement(rest, count - 1):
            yield w / total * chance, (i, *others)


def top_k(
    puzzle: Puzzle, drafts: Drafts, counts: Sequence[int], score: str, heat: float = 0
) -> Process:
    """The counts[k] surest positions at step k, or positions drawn by exp(score / heat)."""

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p = drafts(row)
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]
        if heat:
            weights = {i: exp(SCORES[score](p[i]) / heat) for i in masked}
            sets = without_replacement(weights, counts[k])
        else:
            sets = [(1.0, tuple(best_first(p, masked, score)[: counts[k]]))]
        for share, chosen in sets:
            for chance, values in draws(p, chosen):
                yield share * chance, filled(row, chosen, values), None

    return process


def klass(
    puzzle: Puzzle, drafts: Drafts, tau: float, epsilon: float, history: int, fallback: int
) -> Process:
    """Remembers the rows before."""

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        past = (*memory, row) if isinstance(memory, tuple) else (row,)
        p = drafts(row)
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]

        def stable(i: int) -> bool:
            last = past[-history - 1 :]
            moved = [kl(drafts(b)[i], drafts(a)[i]) for a, b in zip(last, last[1:])]  # noqa: B905, RUF007
            return len(moved) == history and all(d < epsilon for d in moved)

        chosen = [i for i in masked if stable(i) and max(p[i]) > tau]
        chosen = chosen or best_first(p, masked)[:fallback]
        for chance, values in draws(p, chosen):
            yield chance, filled(row, chosen, values), past

    return process


def confidence(
    puzzle: Puzzle, drafts: Drafts, counts: Sequence[int], steps: int, noise: float
) -> Process:
    """MaskGIT: draw everywhere, keep by the token's log-probability with annealed noise."""

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p = drafts(row)
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]
        heat = noise * (1 - (k + 1) / steps)
        for chance, values in draws(p, masked):
            score = {i: log(p[i, v]) for i, v in zip(masked, values, strict=True)}
            if heat > 0:
                sets = without_replacement({i: exp(s / heat) for i, s in score.items()}, counts[k])
            else:
                sets = [(1.0, sorted(masked, key=lambda i: -score[i])[: counts[k]])]
            whole = filled(row, masked, values)
            for share, chosen in sets:
                yield chance * share, filled(row, chosen, [whole[i] for i in chosen]), None

    return process


def remdm(
    puzzle: Puzzle, drafts: Drafts, alpha: Sequence[float], sigma: Sequence[float], conf: bool
) -> Process:
    """Every position by itself; with `conf` the memory is each token's p when revealed."""

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p, (t, s) = drafts(row), (alpha[k], alpha[k + 1])
        psi = dict(memory) if isinstance(memory, tuple) else {}
        known = [i for i in puzzle.masked if row[i] != puzzle.vocab]
        total = sum(exp(-psi[i]) for i in known) if conf else 1
        options = []
        for i in puzzle.masked:
            if i in known:
                own = sigma[k] * exp(-psi[i]) / total if conf else sigma[k]
                options.append([(1 - own, row[i]), (own, puzzle.vocab)])
            else:
                reveal = (s - (1 - (0 if conf else sigma[k])) * t) / (1 - t)
                options.append([(1 - reveal, puzzle.vocab)])
                options[-1] += [(reveal * p[i, v], v) for v in range(puzzle.vocab)]
        for combination in product(*options):
            values = [v for _, v in combination]
            after = filled(row, puzzle.masked, values)
            shown = [i for i in puzzle.masked if after[i] != puzzle.vocab]
            kept = [(i, psi[i] if i in known else float(p[i, after[i]])) for i in shown if conf]
            yield float(np.prod([c for c, _ in combination])), after, tuple(kept)

    return process


def star(puzzle: Puzzle, drafts: Drafts, share: Sequence[float], on: float) -> Process:
    """Draw everything, mask afresh; ancestral before."""

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p = drafts(row)
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]
        for chance, values in draws(p, masked):
            whole = filled(row, masked, values)
            if share[k] <= on:
                again, mask = puzzle.masked, share[k + 1]
            else:
                again, mask = masked, share[k + 1] / share[k]
            for hidden in product([False, True], repeat=len(again)):
                where = [i for i, h in zip(again, hidden, strict=True) if h]
                coin = mask ** len(where) * (1 - mask) ** (len(again) - len(where))
                yield chance * coin, filled(whole, where, [puzzle.vocab] * len(where)), None

    return process


def guided_star(
    puzzle: Puzzle, drafts: Drafts, odds: Callable[[Row], np.ndarray], share: Sequence[float],
    on: float,
) -> Process:  # fmt: skip
    """Draw everything, mask what a network takes for errors, without replacement."""
    before = star(puzzle, drafts, share, on)

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        if share[k] > on:
            yield from before(row, k, memory)
            return
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]
        count = ceil(len(puzzle.masked) * share[k + 1] - 1e-9)
        for chance, values in draws(drafts(row), masked):
            whole = filled(row, masked, values)
            weights = {i: exp(odds(whole)[i]) for i in puzzle.masked}
            for coin, hidden in without_replacement(weights, count):
                yield chance * coin, filled(whole, hidden, [puzzle.vocab] * count), None

    return process


def policy(puzzle: Puzzle, drafts: Drafts, odds: Callable[[np.ndarray], np.ndarray]) -> Process:
    """A coin a masked position; the likeliest where none says yes."""

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p = drafts(row)
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]
        share = len(masked) / sum(not pad for pad in puzzle.pad.tolist())
        b = odds(np.array([[max(p[i]), i in masked, share] for i in range(len(row))]))
        for coins in product([False, True], repeat=len(masked)):
            yes = [i for i, coin in zip(masked, coins, strict=True) if coin]
            share_ = np.prod([1 / (1 + exp(-b[i] if i in yes else b[i])) for i in masked])
            chosen = yes or [max(masked, key=lambda i: b[i])]
            for chance, values in draws(p, chosen):
                yield float(share_) * chance, filled(row, chosen, values), None

    return process


def path_planning(puzzle: Puzzle, drafts: Drafts, steps: int, eta: float) -> Process:
    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p, n = drafts(row), len(puzzle.masked)
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]
        for chance, values in draws(p, masked):
            whole = filled(row, masked, values)
            score = {i: log(p[i, whole[i]]) * (1 if i in masked else eta) for i in puzzle.masked}
            lowest = sorted(puzzle.masked, key=lambda i: score[i])
            hidden = lowest[: floor(n * (1 - (k + 1) / steps) + 1e-9)]
            yield chance, filled(whole, hidden, [puzzle.vocab] * len(hidden)), None

    return process


def lookahead(
    puzzle: Puzzle, drafts: Drafts, counts: Sequence[int], pool: int, heat: float
) -> Process:
    """Two candidates."""

    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p = drafts(row)
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]
        sets = list(combinations(best_first(p, masked)[: max(pool, counts[k])], counts[k]))
        candidates = []
        for chosen in sets:
            for chance, values in draws(p, chosen):
                after = filled(row, chosen, values)
                left = [i for i in masked if i not in chosen]
                q = drafts(after)
                reward = -np.mean([entropy(q[i]) for i in left]) if left else 0
                candidates.append((chance / len(sets), after, exp(reward / heat)))
        for (a, first, v), (b, second, w) in product(candidates, repeat=2):
            yield a * b * v / (v + w), first, None
            yield a * b * w / (v + w), second, None

    return process


def punt(puzzle: Puzzle, drafts: Drafts, epsilon: float) -> Process:
    def process(row: Row, k: int, memory: Hashable) -> Outcomes:
        p = drafts(row)
        masked = [i for i in puzzle.masked if row[i] == puzzle.vocab]
        ranked = best_first(p, masked)
        for chance, values in draws(p, ranked):
            left = list(range(len(ranked)))
            bits = ceil(log(len(ranked), 2)) if len(ranked) > 1 else 0
            for bit in reversed(range(bits)):
                shown = [r for r in left if not r >> bit & 1]
                q = drafts(filled(row, [ranked[r] for r in shown], [values[r] for r in shown]))
                left = [r for r in left if r in shown or kl(q[ranked[r]], p[ranked[r]]) <= epsilon]
            chosen = [ranked[r] for r in left]
            yield chance, filled(row, chosen, [values[r] for r in left]), None

    return process


Weigh = Callable[[np.ndarray, np.ndarray, int], float]


def moved(epsilon: float) -> Weigh:
    return lambda judged, drafted, token: kl(judged, drafted) - epsilon


def unlikely(tau: float) -> Weigh:
    return lambda judged, drafted, token: tau - judged[token]


def dual_diffusion(model: SSMD, puzzle: Puzzle, drafts: Drafts, weigh: Weigh, size: int) -> Process:
    """Drafts wait as (position, token, what it was drawn from) for the next pass to judge them."""
    trunk: Any = model.trunk

    @cache
    @torch.no_grad()
    def stale(seen: Row, known: Row, window: Sequence[int], values: Row) -> np.ndarray:
        """s at a place of the window, after a pass over `seen` and draws at the places before."""
        memories, pad, d = trunk.memories(), puzzle.pad[None], len(values)
        trunk(torch.tensor([seen]).masked_fill(puzzle.pad, 0), pad, memories)
        row = torch.tensor([known])
        hidden = trunk(row[:, list(window)], pad, memories, torch.tensor([list(window)]))[:, :1]
        for k in range(1, d + 1):
            row[0, window[k - 1]] = values[k - 1]
            pair = list(window[k - 1 : k + 1])
            hidden = trunk(row[:, pair], pad, memories, torch.tensor([pair]))[:, 1:]
        return _softmax(model.draft(hidden))[0, 0]

    def process(row: Row, k: int, memory: Any) -> Outcomes:
        if memory is None:
            every = list(permutations(puzzle.masked))
            yield from ((1 / len(every), row, (order, ())) for order in every)
            return
        order, waiting = memory
        seen = filled(row, [i for i, _, _ in waiting], [v for _, v, _ in waiting])
        p = drafts(seen)
        doubt = [weigh(p[i], np.array(s), v) for i, v, s in waiting]
        # Of those that are doubted least, but for rounding, the first stands.
        ranked = sorted(range(len(doubt)), key=lambda n: (round(doubt[n], 6), waiting[n][0]))
        kept = [w[:2] for n, w in enumerate(waiting) if doubt[n] <= 0 or n == ranked[0]]
        known = filled(row, [i for i, _ in kept], [v for _, v in kept])
        window = tuple(i for i in order if known[i] == puzzle.vocab)[:size]
        paths: list[tuple[float, tuple]] = [(1.0, ())]
        for i in window:
            longer = []
            for chance, path in paths:
                s = stale(seen, known, window, tuple(v for _, v, _ in path))
                longer += [(chance * s[v], (*path, (i, v, tuple(s)))) for v in range(len(s))]
            paths = longer
        for chance, path in paths:
            yield chance, known, (order, path)

    return process


def greedy(puzzle: Puzzle, drafts: Drafts) -> Row:
    """One arg-max a pass, the surest position first."""
    row = tuple(puzzle.tokens.tolist())
    while puzzle.vocab in row:
        p = drafts(row)
        i = best_first(p, [j for j in puzzle.masked if row[j] == puzzle.vocab])[0]
        row = filled(row, [i], [int(np.argmax(p[i]))])
    return row


# Orders and windows from drafts, for samplers that verify.

Plan = Iterable[tuple[tuple[int, ...], float]]
PlanOf = Callable[[np.ndarray, tuple[int, ...], int], Plan]


def scored(score: str) -> PlanOf:
    return lambda p, masked, width: [(tuple(best_first(p, masked, score)), 1.0)]


def uniform(p: np.ndarray, masked: tuple[int, ...], width: int) -> Plan:
    every = list(permutations(masked))
    return [(order, 1 / len(every)) for order in every]


def in_cells(p: np.ndarray, masked: tuple[int, ...], width: int) -> Plan:
    """The surest of each of `width` cells in random order, then the others in random order."""
    n = len(masked)
    for shift in range(n):
        cells = defaultdict(list)
        for rank in range(n):
            cells[rank * width // n].append(masked[(rank - shift) % n])
        surest = [min(cell, key=lambda i: round(32 * entropy(p[i]))) for cell in cells.values()]
        yield from _shuffled(surest, masked, 1 / n)


def spans(p: np.ndarray, masked: tuple[int, ...], width: int) -> Plan:
    """The run of `width` masked positions of least entropy, then the others in random order."""
    runs = [masked[k : k + width] for k in range(len(masked) - width + 1)]
    best = min(runs, key=lambda run: sum(entropy(p[i]) for i in run))
    rest = list(permutations(i for i in masked if i not in best))
    return [(best + others, 1 / len(rest)) for others in rest]


def _shuffled(chosen: Sequence[int], masked: Sequence[int], chance: float) -> Plan:
    heads = list(permutations(chosen))
    tails = list(permutations(i for i in masked if i not in chosen))
    for head, tail in product(heads, tails):
        yield head + tail, chance / len(heads) / len(tails)


def verified_law(
    model: SSMD,
    puzzle: Puzzle,
    plan: PlanOf,
    most: Sequence[int],
    rounds: int,
    gamma: float | None = None,
) -> np.ndarray:
    """A pass plans σ from its drafts, bounds its window by entropy, drafts and verifies."""
    drafts, known, pads = drafts_of(model, puzzle), puzzle.known, puzzle.where(".")
    tables: dict[Sigma, Conditionals] = {}
    begins = list(permutations(known))
    states = [defaultdict(float) for _ in range(len(puzzle.masked) + 1)]
    states[0] = defaultdict(float, {(sigma, ()): 1 / len(begins) for sigma in begins})
    for k, width in enumerate(most):
        for (sigma, values), weight in states[k].items():
            row = filled(tuple(puzzle.tokens.tolist()), sigma[len(known) :], values)
            p, masked = drafts(row), tuple(i for i in puzzle.masked if i not in sigma)
            for rest, chance in plan(p, masked, width):
                size = width if gamma is None else within_entropy(rest[:width], p, gamma)
                full = sigma + rest + pads
                if full not in tables:
                    tables[full] = Conditionals(model, puzzle, full)
                for after, share in one_pass(tables[full], values, size, rounds).items():
                    kept = full[: len(known) + len(after)]
                    states[len(after)][kept, after] += weight * chance * share
    out = np.zeros(puzzle.vocab ** len(puzzle.masked))
    for (sigma, values), weight in states[-1].items():
        along = dict(zip(sigma[len(known) :], values, strict=True))
        out[int("".join(str(along[i]) for i in puzzle.masked), puzzle.vocab)] += weight
    return out


def remasked_law(
    model: SSMD, puzzle: Puzzle, most: Sequence[int], rounds: int, eta: float, passes: int
) -> np.ndarray:
    """A pass verifies up to its goal; then every generated token may be taken back."""
    known, pads, n = puzzle.known, puzzle.where("."), len(puzzle.masked)
    tables: dict[Sigma, Conditionals] = {}
    begins, done = list(permutations(known)), np.zeros(puzzle.vocab**n)
    states = {((sigma, ()), most[0]): 1 / len(begins) for sigma in begins}
    for k in range(passes + n):
        reached: dict[tuple, float] = defaultdict(float)
        for ((sigma, values), goal), weight in states.items():
            every = list(permutations(i for i in puzzle.masked if i not in sigma))
            for rest in every:
                full = sigma + rest + pads
                if full not in tables:
                    tables[full] = Conditionals(model, puzzle, full)
                found = one_pass(tables[full], values, goal - len(values), rounds)
                for after, share in found.items():
                    reached[full[: len(known) + len(after)], after] += weight * share / len(every)
        states = defaultdict(float)
        for (sigma, values), weight in reached.items():
            if (j := len(values)) == n:
                along = dict(zip(sigma[len(known) :], values, strict=True))
                index = "".join(str(along[i]) for i in puzzle.masked)
                done[int(index, puzzle.vocab)] += weight
                continue
            goal = j + most[j]
            chance = min(eta, (n - goal) / j) if k < passes else 0
            for stays in product([True, False], repeat=j):
                left = [
                    (i, v) for i, v, s in zip(sigma[len(known) :], values, stays, strict=True) if s
                ]
                share = weight * chance ** (j - len(left)) * (1 - chance) ** len(left)
                where = sigma[: len(known)] + tuple(i for i, _ in left)
                states[(where, tuple(v for _, v in left)), goal] += share
        states = {state: weight for state, weight in states.items() if weight > 0}
    assert not states
    return done
