"""From tables to log p(x | σ): sums over all ways in which the passes may have fallen.

**Self-speculative sampling.** The target moves when i does, so where a rejection fell is part of
the probability. For a fixed order σ and places counted from 0, write for d ≥ i

    a_i(d) = min(p_i, q_i)(d, x_σ(d)),      b_i(d) = max(0, q_i - p_i)(d, x_σ(d)),

the probabilities that x_σ(d) is drafted and accepted, and that it is redrawn after a rejection. One
pass that starts with i revealed tokens ends with j revealed, all of them those of x, with
probability K_i(j). With a window of W(i) and R rounds, A(j) the probability that a round ended in a
rejection just below j (A(i) = 1 before the first), each round computes

    B = 0;  for d = i, …, i+W(i)-1:   B ← B + A(d);  A'(d+1) = B · b_i(d);  B ← B · a_i(d)

then K_i(i+W) += B + A'(i+W), and A ← A' without its last entry; what is left in A after R rounds
goes to K_i. Then P(j) = Σ_i P(i) K_i(j) from P(observed) = 1, and p(x | σ) = P(end). For R = 0 the
drafts stand unverified, which is plain sampling: K_i(i+W) = Π p_i(d, x_σ(d)).

**Ancestral sampling.** With masked shares m_0 = 1, …, m_K = 0 at the K times, each of the N places
falls into step k with probability s_k = m_(k-1) - m_k, so that step k reveals w_k places with
multinomial probability N! Π_k s_k^w_k / w_k!. Hence, step by step,

    P_k(j) = Σ_i P_(k-1)(i) · s_k^(j-i) / (j-i)! · Π_{i ≤ d < j} p_i(d, x_σ(d)),
    p(x | σ) = N! P_K(end).

All of it in log space and float64. The first recursion is this project's; Campbell et al. 2025
(arXiv 2510.03929) have it for R = 1 and an unbounded window. Both need σ fixed in advance; for
orders that are re-chosen between passes the state is no count.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec.likelihood.tables import Scores
from selfspec.schedules import Schedule, Window, stacked_tables
from selfspec.selection import DraftWindow

__all__ = ["ancestral_chain", "chain", "check_known", "expected_passes", "transition"]


def check_known(window: Window) -> None:
    """Raises ValueError for windows that read the drafts of a pass: no law here knows them."""
    if isinstance(window, DraftWindow):
        raise ValueError("`window` must not read the drafts of a pass to have a likelihood here, "
                         f"got {type(window).__name__}")  # fmt: skip


def transition(draft: Tensor, target: Tensor, window: Tensor, rounds: int) -> Tensor:
    """log K_i(i + w) for w = 0..W: one pass, in window coordinates.

    Args:
        draft, target: (..., W) log p_i and log q_i at places i, i+1, …; tied at the first.
        window: (...) int64 in 1..W.
        rounds: R; 0 for unverified drafts.

    Returns:
        (..., W + 1); entry w is the log-probability that the pass reveals exactly w tokens, all
        those of x.
    """
    size = draft.shape[-1]
    kernel = draft.new_full((*draft.shape[:-1], size + 1), -torch.inf)
    last = window.unsqueeze(-1)
    if rounds == 0:
        return kernel.scatter(-1, last, draft.cumsum(-1).gather(-1, last - 1))
    log_a = torch.minimum(draft, target)
    log_b = _log_difference(target, draft)
    ended = kernel.clone()
    ended[..., 0] = 0
    for _ in range(rounds):
        running, rejected = kernel[..., 0].clone(), torch.full_like(kernel, -torch.inf)
        for w in range(size):
            running = torch.logaddexp(running, ended[..., w])
            rejected[..., w + 1] = running + log_b[..., w]
            running = running + log_a[..., w]
            done = torch.logaddexp(
                kernel[..., w + 1], torch.logaddexp(running, rejected[..., w + 1])
            )
            stops = window == w + 1
            kernel[..., w + 1] = torch.where(stops, done, kernel[..., w + 1])
            rejected[..., w + 1].masked_fill_(stops, -torch.inf)
            running = running.masked_fill(stops, -torch.inf)
        ended = rejected
    return torch.logaddexp(kernel, ended)


def chain(table: Scores, window: Window, rounds: int) -> Tensor:
    """log p(x | σ) from the scores of every pass: (B,) nats.

    Args:
        table: from `scores`.
        window: W, on the number of tokens generated so far.
        rounds: R; 0 for plain sampling with the counts of `window` (a `ScheduleWindow`, say).
    """
    kernel = _kernel(table, window, rounds)
    logp = _begin(table, kernel)
    for i in range(kernel.shape[1]):
        _advance(logp, logp[:, i], kernel, i)
    return logp.gather(1, table.end.unsqueeze(1)).squeeze(1)


def expected_passes(table: Scores, window: Window, rounds: int) -> Tensor:
    """The mean number of trunk passes of the samples that turn out to be x: (B,) float64.

    With P(j) as in `chain` and T(j) the same sum with each way weighted by its passes,

        T(j) = Σ_i [T(i) + P(i)] K_i(j),        E[passes | x, σ] = T(end) / P(end).

    Args are those of `chain`.
    """
    kernel = _kernel(table, window, rounds)
    logp = _begin(table, kernel)
    weighted = torch.full_like(logp, -torch.inf)
    for i in range(kernel.shape[1]):
        _advance(weighted, torch.logaddexp(weighted[:, i], logp[:, i]), kernel, i)
        _advance(logp, logp[:, i], kernel, i)
    end = table.end.unsqueeze(1)
    return (weighted.gather(1, end) - logp.gather(1, end)).exp().squeeze(1)


def _kernel(table: Scores, window: Window, rounds: int) -> Tensor:
    """log K_i(i + w): (B, L, widest + 1) with axes (i, w)."""
    size, length = table.draft.shape[:2]
    places = torch.arange(length, device=table.draft.device)
    check_known(window)
    windows = torch.from_numpy(stacked_tables(window, (table.end - table.observed).tolist()))
    count = (places - table.observed.unsqueeze(1)).clamp(0, windows.shape[1] - 1)
    windows = windows.to(places.device).gather(1, count)
    ahead = places.unsqueeze(1) + places[: int(windows.max())]
    inside = (ahead < length).expand(size, -1, -1)
    index = ahead.clamp(max=length - 1).expand(size, -1, -1)
    draft, target = (
        t.gather(2, index).masked_fill(~inside, -torch.inf) for t in (table.draft, table.target)
    )
    return transition(draft, target, windows, rounds)


def _begin(table: Scores, kernel: Tensor) -> Tensor:
    """log P before the first pass: (B, L + widest + 1), 0 at the observed tokens."""
    logp = kernel.new_full((len(kernel), kernel.shape[1] + kernel.shape[2]), -torch.inf)
    return logp.scatter_(1, table.observed.unsqueeze(1), 0.0)


def _advance(logp: Tensor, begun: Tensor, kernel: Tensor, i: int) -> None:
    """Add to `logp`, in place, what the passes that begin at i, (B,) log P(i), lead to."""
    reach = slice(i + 1, i + kernel.shape[2])
    logp[:, reach] = torch.logaddexp(logp[:, reach], begun.unsqueeze(1) + kernel[:, i, 1:])


def ancestral_chain(table: Scores, schedule: Schedule, steps: int) -> Tensor:
    """log p(x | σ) of ancestral sampling from the scores of every pass: (B,) nats.

    Args:
        table: from `scores`; only the draft counts.
        schedule: m, the masked share at a time.
        steps: K ≥ 1.
    """
    size, length = table.draft.shape[:2]
    places = torch.arange(length + 1, device=table.draft.device)
    count = (places - places.unsqueeze(1)).double()  # (L + 1, L + 1), axes (i, j)
    # Entry (i, j) of the sums is Σ_{i ≤ d < j} log p_i(d, x_σ(d)).
    drafted = F.pad(table.draft.triu().cumsum(2), (1, 0, 0, 1))
    drafted = drafted - torch.lgamma(count.abs() + 1)
    drafted = drafted.masked_fill(count < 0, -torch.inf)
    logp = drafted.new_full((size, length + 1), -torch.inf)
    logp.scatter_(1, table.observed.unsqueeze(1), 0.0)
    masked = schedule.masked(np.arange(1, steps + 1) / steps)
    for share in -np.diff(masked, prepend=1.0):
        chance = torch.xlogy(count, float(share)).masked_fill(count < 0, -torch.inf)
        logp = (logp.unsqueeze(2) + drafted + chance).logsumexp(1)
    orderings = torch.lgamma((table.end - table.observed + 1).double())
    return logp.gather(1, table.end.unsqueeze(1)).squeeze(1) + orderings


def _log_difference(larger: Tensor, smaller: Tensor) -> Tensor:
    """log max(0, e^larger - e^smaller) = larger + log(1 - e^(smaller - larger))."""
    gap = torch.where(larger > smaller, smaller - larger, torch.zeros_like(larger))
    return torch.where(larger > smaller, larger + torch.log1p(-gap.exp()), -torch.inf)
