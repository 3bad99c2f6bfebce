"""Greedy self-verification (SSD): many drafts, one batch, exactly the greedy result.

Greedy decoding reveals, one pass a token, the arg-max token of the surest masked position. From
state x:

    (ℓ_1, y_1), …, (ℓ_n, y_n) = the n surest positions of x and their arg-maxes;
    forward the prefixes x ∪ {y_1}, …, x ∪ {y_1 … y_(n-1)} in one batch;
    accept y_1, and y_(j+1) while the greedy choice of prefix j is (ℓ_(j+1), y_(j+1));
    the first prefix whose choice is another one contributes that choice.

The result is greedy decoding's, whatever n; nothing is drawn, temperature and nucleus do not
matter, and every row of masks gives the same text. A batch is one call but n sequences, and the
account counts sequences: it pays in latency on idle hardware, not in work. Source: SSD 2510.04147
(blocks of 8).
"""

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.model import SSMD
from selfspec.sampling.base import State
from selfspec.sampling.sets import Outcome, SetSampler
from selfspec.schedules import ConstantWindow
from selfspec.selection import Confidence

__all__ = ["SelfVerifiedSampler"]


class SelfVerifiedSampler(SetSampler):
    """Greedy, by verified drafts; see the module.

    Args:
        model: an `SSMD`.
        drafts: n ≥ 1.

    Raises:
        ValueError: `drafts` below 1.
    """

    def __init__(self, model: SSMD, drafts: int = 8):
        whole("drafts", drafts, least=1)
        super().__init__(model, ConstantWindow(drafts))

    def move(self, state: State) -> Outcome:
        """The drafts' pass, then prefix after prefix of the rows whose drafts still stand."""
        wide, masked = state.window, self.masked(state)
        logp = self.forward(state, state.tokens)
        sure = Confidence()(logp).masked_fill(~masked, -torch.inf)
        positions = (-sure).argsort(dim=1, stable=True)[:, : int(wide.max())]
        drafts = logp.argmax(-1).gather(1, positions)
        tokens, revealed = state.tokens.clone(), torch.zeros_like(masked)
        stands = torch.ones_like(wide, dtype=torch.bool)
        for j in range(positions.shape[1]):
            # In a batch all prefixes are forwarded, so every row pays for those it drafted.
            rows = (j < wide).nonzero().squeeze(1)
            at, token = positions[rows, j], drafts[rows, j]
            if j:
                prefix = state.tokens[rows].scatter(1, positions[rows, :j], drafts[rows, :j])
                best, chosen = self.greedy(self.forward(state, prefix, rows), prefix)
                agreed = (best == at) & (chosen == token)
                at, token = best, chosen
            use = rows[stands[rows]]
            tokens[use, at[stands[rows]]] = token[stands[rows]]
            revealed[use, at[stands[rows]]] = True
            if j:
                stands[rows] &= agreed  # pyright: ignore[reportPossiblyUnbound]
        return Outcome(tokens, revealed)

    def greedy(self, logp: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) the surest masked position of each row, and its likeliest token."""
        masked = tokens == self.model.mask_id
        best = Confidence()(logp).masked_fill(~masked, -torch.inf).argmax(1)
        return best, logp.argmax(-1).gather(1, best.unsqueeze(1)).squeeze(1)
