"""Self-speculative sampling: the trunk drafts a window, the causal head verifies it.

    draw drafts y_d ~ p_i(d, ·) for the W(i) places d of the window          (1 trunk pass)
    for round = 1..R while places of the window are open:                    (1 head pass each)
        accept or reject the open drafts against q_i(d, ·), in σ order;
        at the first rejection redraw from the residual and go on behind it
    reveal up to the last place decided

Drafts behind a rejection are kept for the next round: given the first rejection they are still
independent draws from p_i. A window of one needs no head pass, as there the target is the draft.
Source: Campbell et al. 2025 (arXiv 2510.03929).
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from selfspec.checks import whole
from selfspec.interfaces import Round, Trace
from selfspec.model import SSMD
from selfspec.noise import Purpose, uniform
from selfspec.orders import Order
from selfspec.sampling.base import Drafts, Sampler, State
from selfspec.schedules import USUAL_ROUNDS, Window, as_window
from selfspec.verification import Verdict, accept_draft

__all__ = ["SpeculativeSampler"]


class SpeculativeSampler(Sampler):
    """Drafts with the trunk and verifies with the head; the module has the algorithm.

    For orders that are fixed in advance, `log_likelihood` with the same `window` and `rounds` is
    the exact log-probability of its samples.

    Args:
        model: an `SSMD` with a head.
        order: the rule for σ; uniform by default.
        window: W, the most tokens that a pass reveals, or a constant number of them;
            `LinearWindow(0.045)` by default.
        rounds: R ≥ 1, the most head passes per trunk pass.
        temperature, top_p: as in `Sampler`.

    Raises:
        ValueError: a model without head, or `rounds` below 1.
    """

    needs_head: ClassVar[bool] = True

    def __init__(
        self,
        model: SSMD,
        order: Order | None = None,
        window: Window | int | None = None,
        rounds: int = USUAL_ROUNDS,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ):
        super().__init__(model, order, temperature, top_p)
        if self.needs_head and model.head is None:
            raise ValueError("`model` must have a causal head to verify drafts, got head=None")
        self.window = as_window(window)
        self.rounds = whole("rounds", rounds, least=1)

    def step(self, state: State, trace: Trace | None) -> None:
        """One trunk pass and up to R head passes."""
        before = state.trunk_passes
        drafts = self.draw_drafts(state)
        # A window of one is decided by the tie, without a head pass.
        single = (drafts.stop - state.revealed == 1).long()
        decided = state.revealed + single
        state.drafted = state.drafted + single
        state.accepted = state.accepted + single
        record: list[list[Round]] = [[] for _ in decided]
        written = drafts.tokens.clone()
        for round_index in range(self.rounds):
            rows = (decided < drafts.stop).nonzero().squeeze(1)
            if not len(rows):
                break
            verdict = self.verify(state, drafts, rows, decided[rows], round_index)
            if trace is not None:
                _record(record, drafts, rows, decided[rows], verdict)
            self.settle(state, drafts, rows, decided, verdict)
        state.tokens = drafts.written(state.tokens, decided)
        state.revealed = decided
        if trace is not None:
            passes = (state.trunk_passes - before).tolist()
            for row, index in enumerate(state.index.tolist()):
                done = drafts.trace(row, written[row], record[row], int(decided[row]))
                trace[index].append(replace(done, trunk_passes=passes[row]))

    def verify(
        self, state: State, drafts: Drafts, rows: Tensor, decided: Tensor, round_index: int
    ) -> Verdict:
        """The verdict on the places of `rows` from `decided` (R,) on."""
        places, seeds, passes = drafts.places[rows], state.seeds[rows], state.passes[rows]
        target = self.target(state, drafts, rows, decided)
        once = torch.zeros_like(places[:, :1])
        return accept_draft(
            drafts.logp[rows],
            target,
            drafts.tokens[rows],
            drafts.inside[rows] & (places >= decided.unsqueeze(1)),
            uniform(seeds, Purpose.ACCEPT, passes, round_index, places),
            uniform(seeds, Purpose.RESIDUAL, passes, round_index, once).squeeze(1),
        )

    def target(self, state: State, drafts: Drafts, rows: Tensor, decided: Tensor) -> Tensor:
        """(R, W, V) log q_i of `rows`, given their drafts; of use from `decided` (R,) on."""
        state.head_passes[rows] += 1
        logits = self.model.target(
            drafts.hidden[rows],
            drafts.written(state.tokens)[rows],
            state.order[rows],
            state.revealed[rows],
            drafts.places[rows],
        )
        return self.log_probs(logits)

    def settle(
        self, state: State, drafts: Drafts, rows: Tensor, decided: Tensor, verdict: Verdict
    ) -> None:
        """Write redrawn tokens, move `decided` (B,) behind what was verified, keep the account."""
        before = decided[rows]
        hit, column = rows[verdict.rejected], verdict.first[verdict.rejected]
        drafts.tokens[hit, column] = verdict.redrawn[verdict.rejected]
        decided[rows] = drafts.stop[rows]
        decided[hit] = drafts.places[hit, column] + 1
        verified = decided[rows] - before
        state.drafted[rows] += verified
        state.accepted[rows] += verified - verdict.rejected.long()


def _record(
    record: list[list[Round]], drafts: Drafts, rows: Tensor, decided: Tensor, verdict: Verdict
) -> None:
    """Append a `Round` to each row's record."""
    for i, row in enumerate(rows.tolist()):
        begin = int(decided[i] - drafts.places[row, 0])
        rejected = bool(verdict.rejected[i])
        stop = int(verdict.first[i]) if rejected else int(drafts.inside[row].sum())
        positions = drafts.positions[row].tolist()
        record[row].append(
            Round(
                accepted=positions[begin:stop],
                rejected=positions[stop] if rejected else None,
                redrawn=int(verdict.redrawn[i]) if rejected else None,
            )
        )
