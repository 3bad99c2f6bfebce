"""Self-distillation through time: a student learns in one step what its teacher does in m.

Every position has a uniform number v_ℓ and is masked at time t if v_ℓ < t. From the masked text x_t
the teacher goes on by ancestral sampling, m steps of size s/m:

    x_(t - k s/m):  what is no longer masked is drawn from the teacher's p(· | x_(t - (k-1) s/m)),

and the target at ℓ is that p_ℓ by which its token was drawn, or the last one where it stays masked.

    loss = mean over rows and masked positions ℓ of  KL(target_ℓ ‖ student's p_ℓ(x_t)),

or the divergence the other way round. The first is least where the student has the mean of the
targets, the marginals of the teacher's m steps; the other one seeks their common mode, and narrows
the law. Source: SDTT 2410.21035: m = 2, and s doubles from round to round, in each of which the
student of the last one teaches. It does not make a factorised law any less so: what it gains in
quality for the same passes is to be read beside the diversity (published GPT-2 NLL 3.70, 3.46, 3.30
at 32, 64, 128 NFE, at an entropy of 5.25 nats instead of 5.70).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfspec.model import SSMD
from selfspec.ops import draw
from selfspec.train.config import require
from selfspec.train.guides import OnFrozen
from selfspec.train.objectives import Chance, Drawn


@dataclass(frozen=True)
class Distillation(OnFrozen):
    """The student's loss; `model` is the teacher.

    Attributes:
        step: s in (0, 1].
        substeps: m ≥ 1.
        reverse: KL(student ‖ target) instead.
    """

    step: float = 2 / 256
    substeps: int = 2
    reverse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.step <= 1, "step", "above 0 and at most 1", self.step)
        require(self.substeps >= 1, "substeps", "at least 1", self.substeps)

    def draw(self, tokens: Tensor, chance: Chance, pad: Tensor | None = None) -> Drawn:
        """Times t spread evenly over (0, 1], and two numbers a position."""
        rows = len(tokens) * chance.world
        own = torch.arange(chance.rank, rows, chance.world, device=tokens.device)
        time = 1 - (chance.common() + own / rows) % 1.0
        u, v = chance.uniform(len(tokens), 2, tokens.shape[1], dtype=torch.float64).unbind(1)
        for token in self.observed:
            v = torch.where(tokens == token, 2.0, v)  # never masked
        if pad is None:
            return {"tokens": tokens, "time": time, "u": u, "v": v}
        v, tokens = v.masked_fill(pad, 2.0), tokens.masked_fill(pad, 0)
        return {"tokens": tokens, "time": time, "u": u, "v": v, "pad": pad}

    def loss(self, model: Any, **drawn: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The divergence, under the name `distillation`."""
        masked = drawn["v"] < drawn["time"].unsqueeze(1)
        target = self.targets(**drawn)
        given = drawn["tokens"].masked_fill(masked, model.mask_id)
        student = _log_probs(model, given, drawn.get("pad"))
        pair = (student, target) if self.reverse else (target, student)
        cost = _divergence(*pair).masked_fill(~masked, 0)
        loss = (cost.sum(1) / masked.sum(1).clamp(min=1)).mean()
        return loss, {"distillation": loss}

    @torch.no_grad()
    def targets(
        self, tokens: Tensor, time: Tensor, u: Tensor, v: Tensor, pad: Tensor | None = None
    ) -> Tensor:
        """(B, L, V) the teacher's log-probabilities; of use at masked positions."""
        masked = v < time.unsqueeze(1)
        text = tokens.masked_fill(masked, self.model.mask_id)
        targets = _log_probs(self.model, text, pad)
        for k in range(1, self.substeps):
            later = v < (time - k * self.step / self.substeps).unsqueeze(1)
            drawn = draw(targets.exp(), u)
            text = torch.where(masked & ~later, drawn, text)
            masked = later
            fresh = _log_probs(self.model, text, pad)
            targets = torch.where(masked.unsqueeze(-1), fresh, targets)
        return targets


def _log_probs(model: SSMD, text: Tensor, pad: Tensor | None) -> Tensor:
    """(B, L, V), in float32 at least."""
    logits = model.draft(model.encode(text, pad))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL, (..., V) log-probabilities → (...) nats; a token forbidden to both has no gradient."""
    return (p.exp() * (p.clamp(min=-1e30) - q.clamp(min=-1e30))).sum(-1)
