"""Categorical laws that are never written out in float64.

With logits z (as the network made them) and a temperature T a row,

    log p(v) = z_v / T - log Z,   log Z = log Σ_v exp(z_v / T),

and only what is asked for is computed: log p of given tokens, the whole law at one place a row, and
exact draws by inversion (`ops.draw`). For a large vocabulary a draw has two steps, first the chunk
of tokens that holds it, then the token: one pass over the logits, no table of V partial sums.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from selfspec.ops import draw, log_probs, take

__all__ = ["Law", "law_of"]

CHUNK = 256
SMALL = 1024
"""Vocabularies up to this size are drawn from in one step."""


class Law(NamedTuple):
    """Laws at W places of B rows."""

    logits: Tensor
    """(B, W, V); -inf outside the nucleus."""
    log_z: Tensor
    """(B, W) float64."""
    temperature: Tensor
    """(B,) float64."""

    def of(self, tokens: Tensor) -> Tensor:
        """Log p of `tokens` (B, W): (B, W) nats, float64."""
        return self._scaled(take(self.logits, tokens).unsqueeze(-1)).squeeze(-1) - self.log_z

    def at(self, column: Tensor) -> Tensor:
        """The law at one place a row, (B,) columns: (B, V) nats, float64."""
        rows = torch.arange(len(column), device=column.device)
        logp = self.logits[rows, column].double() / self.temperature.unsqueeze(1)
        return logp - self.log_z[rows, column].unsqueeze(1)

    def draw(self, u: Tensor) -> Tensor:
        """Tokens (B, W) from uniform numbers (B, W); a token of probability zero is never drawn."""
        size = self.logits.shape[-1]
        if size <= SMALL:
            return draw(self._weights(self.logits), u)
        padded = torch.nn.functional.pad(self.logits, (0, -size % CHUNK), value=-torch.inf)
        mass = self._weights(padded).unflatten(-1, (-1, CHUNK)).sum(-1)
        cdf = mass.cumsum(-1)
        goal = u * cdf[..., -1]
        chunk = (cdf <= goal.unsqueeze(-1)).sum(-1)
        tokens = chunk.unsqueeze(-1) * CHUNK + torch.arange(CHUNK, device=u.device)
        part = self.logits.gather(-1, tokens.clamp(max=size - 1))
        inner = self._weights(part.masked_fill(tokens >= size, -torch.inf)).cumsum(-1)
        # Rounding may put the goal a little outside of the chunk that holds it.
        goal = goal - (take(cdf, chunk) - take(mass, chunk))
        goal = torch.minimum(goal.clamp(min=0), inner[..., -1] * (1 - 2.0**-52))
        return chunk * CHUNK + (inner <= goal.unsqueeze(-1)).sum(-1)

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits.double() / self.temperature[:, None, None]

    def _weights(self, logits: Tensor) -> Tensor:
        return (self._scaled(logits) - self.log_z.unsqueeze(-1)).exp()


def law_of(logits: Tensor, temperature: Tensor, top_p: Tensor | None = None) -> Law:
    """The law of logits (B, W, V) at a temperature (B,), within a nucleus (B,) if one is given."""
    if top_p is not None:
        logits = torch.where(_outside(logits, temperature, top_p), -torch.inf, logits)
    scaled = logits.double() / temperature[:, None, None]
    return Law(logits, scaled.logsumexp(-1), temperature)


def _outside(logits: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """Tokens outside each row's nucleus, as in `ops.log_probs`; none where `top_p` is 1."""
    logp = log_probs(logits.double() / temperature[:, None, None])
    ranked, tokens = logp.sort(dim=-1, descending=True, stable=True)
    mass_before = ranked.exp().cumsum(-1) - ranked.exp()
    limit = torch.where(top_p < 1, top_p, torch.inf)[:, None, None]
    return torch.zeros_like(logp, dtype=torch.bool).scatter(-1, tokens, mass_before >= limit)
