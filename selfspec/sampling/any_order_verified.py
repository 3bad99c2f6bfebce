"""Any-order verification (ASSD-style): the trunk drafts and the same trunk verifies.

    draft y_d ~ p_i(d, ·) for the W(i) next places of σ                       (1 sequence)
    target p_d(d, ·): the trunk run on the tokens before d, y_i … y_(d-1) among them,
    for all d of the window at once                                (a sequence a place verified)
    accept, reject and redraw as in `verification`

The target does not depend on where a pass began, so what stands has the law of the model as an
any-order autoregressive model, p(x | σ) = Π_d p_d(d, x_σ(d)), for every window: that of
`AnyOrderSampler`, in fewer calls one after another. ASSD (2504.20456, k = 5) trains its network to
give all targets in one pass that is causal in σ; a bidirectional trunk needs a sequence for each,
and the account counts sequences: it is never below one a token.
"""

from typing import ClassVar

from torch import Tensor

from selfspec.model import SSMD
from selfspec.orders import Order
from selfspec.sampling.base import Drafts, State
from selfspec.sampling.speculative import SpeculativeSampler
from selfspec.schedules import ConstantWindow, Window

__all__ = ["AnyOrderVerifiedSampler"]


class AnyOrderVerifiedSampler(SpeculativeSampler):
    """Drafts verified by the trunk itself; see the module.

    Args:
        model: an `SSMD`, with or without a head.
        order: the rule for σ; uniform by default.
        window: W; 5 tokens by default.
        temperature, top_p: as in `Sampler`.
    """

    needs_head: ClassVar[bool] = False

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        window: Window | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        window = window if window is not None else ConstantWindow(5)
        super().__init__(model, order, window, 1, temperature, top_p)

    def target(self, state: State, drafts: Drafts, rows: Tensor, decided: Tensor) -> Tensor:
        """(R, W, V): the draft itself at the first place, a sequence of its own at each other."""
        logp = drafts.logp[rows].clone()
        for column in range(1, logp.shape[1]):
            wanted = drafts.inside[rows, column].nonzero().squeeze(1)
            chosen = rows[wanted]
            prefix = drafts.written(state.tokens, drafts.places[:, column])[chosen]
            pad = state.pad[chosen] if bool(state.pad.any()) else None
            hidden = self.model.encode(prefix, pad)
            at = drafts.positions[chosen, column].unsqueeze(1)
            logp[wanted, column] = self.log_probs(self.model.draft(hidden, at)).squeeze(1)
            state.trunk_passes[chosen] += 1
        return logp
