"""What is on the device: a pool of requests, and the slots that work on some of them.

    pool    P rows, each a request with its progress, and an idle one behind them
    slots   S pool rows at a time: what a pass works on
    queue   the pool rows that wait, in order; a slot whose row is finished takes the next at once

All of it is tensors of fixed shape, so that a pass needs no answer from the host.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec.model import SSMD
from selfspec.nn.head import CausalHead
from selfspec.orders import Order
from selfspec.sampling import PlainSampler, Sampler, SpeculativeSampler
from selfspec.sampling.remasked import Remasked, RemaskedState
from selfspec.selection import DraftWindow

__all__ = ["Pool", "Rows", "prepare", "rechosen_rule", "unsupported"]


@dataclass
class Rows(RemaskedState):
    """Where rows stand, and the settings of each."""

    rounds: Tensor
    """(B,) int64 the most head passes per trunk pass; 0 for plain samplers."""
    temperature: Tensor
    """(B,) float64."""
    top_p: Tensor
    """(B,) float64."""
    rechosen: Tensor
    """(B,) bool: the rest of σ is drawn anew before every pass."""
    eta: Tensor
    """(B,) float64 η, the largest share of tokens that is taken back; 0 for most samplers."""
    remasks: Tensor
    """(B,) int64 K, after how many passes tokens are taken back."""
    done: Tensor
    """(B,) bool: a slot has finished it."""


REPLACED = {
    Sampler: ("sample", "open", "draw_drafts", "arrange", "log_probs"),
    PlainSampler: ("step",),
    SpeculativeSampler: ("step", "verify", "target", "settle"),
    SSMD: ("target", "corrected_states"),
    CausalHead: ("forward", "tracks", "rotations"),
}
"""What the engine does itself, and therefore nobody may do otherwise but those it knows."""
KNOWN = {*REPLACED, Remasked, nn.Module}


def unsupported(sampler: Sampler) -> str | None:
    """Why the engine cannot run a sampler, or None where it can."""
    model = sampler.model
    for thing in (sampler, model, model.head):
        names = [name for kind in REPLACED if isinstance(thing, kind) for name in REPLACED[kind]]
        for name in names:
            if any(name in vars(kind) for kind in type(thing).__mro__ if kind not in KNOWN):
                return f"{type(thing).__name__} has its own `{name}`"
    if not isinstance(sampler, SpeculativeSampler | PlainSampler):
        return f"{type(sampler).__name__} has its own `step`"
    if isinstance(sampler.window, DraftWindow):
        return f"{type(sampler.window).__name__} reads the draft distributions"
    if isinstance(sampler, SpeculativeSampler) and model.num_head_blocks > 1:
        return f"the head has {model.num_head_blocks} blocks: its keys cannot be kept"
    return None


def rechosen_rule(sampler: Sampler) -> Order | None:
    """The order's rule, if σ is drawn anew before every pass."""
    return sampler.order if not sampler.order.fixed or isinstance(sampler, Remasked) else None


def prepare(sampler: Sampler, tokens: Tensor, seeds: Tensor, pad: Tensor, length: int) -> Rows:
    """Rows before their first pass, padded on the right to `length`; on the device of `tokens`."""
    state = sampler.start(tokens, seeds, pad)
    more = length - tokens.shape[1]
    given = {f.name: getattr(state, f.name) for f in fields(state)}
    behind = torch.arange(length - more, length, device=tokens.device).expand(len(tokens), -1)
    full = {
        "tokens": F.pad(state.tokens, (0, more)),
        "pad": F.pad(state.pad, (0, more), value=True),
        "order": torch.cat([state.order, behind], dim=1),
        "windows": F.pad(state.windows, (0, length + 1 - state.windows.shape[1]), value=1),
    }
    rounds = sampler.rounds if isinstance(sampler, SpeculativeSampler) else 0
    eta, remasks = (sampler.eta, sampler.passes) if isinstance(sampler, Remasked) else (0, 0)
    window = {"stop": state.revealed + state.window, "most": state.windows.amax(1)}
    same = torch.ones_like(state.end, dtype=torch.float64)
    return Rows(
        **{**window, **given, **full},
        rounds=torch.full_like(state.end, rounds),
        temperature=same * sampler.temperature,
        top_p=same * sampler.top_p,
        rechosen=torch.full_like(state.end, rechosen_rule(sampler) is not None, dtype=torch.bool),
        eta=same * eta,
        remasks=torch.full_like(state.end, remasks),
        done=torch.zeros_like(state.end, dtype=torch.bool),  # only a slot can say so
    )


class Pool:
    """Requests on the device.

    Args:
        size: P, requests at a time.
        slots: S, those that a pass works on.
        length: L, of every row.
        device: where to put it.
    """

    def __init__(self, size: int, slots: int, length: int, device: torch.device):
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        many, numbers = size + 1, ("temperature", "top_p", "eta")
        shapes = {"tokens": (length,), "pad": (length,), "order": (length,),
                  "windows": (length + 1,)}  # fmt: skip
        types = {"pad": torch.bool, "rechosen": torch.bool, "done": torch.bool}
        types |= dict.fromkeys(numbers, torch.float64)
        self.rows = Rows(**{
            f.name: zeros(many, *shapes.get(f.name, ()), dtype=types.get(f.name, torch.int64))
            for f in fields(Rows)
        })  # fmt: skip
        self.rows.order += torch.arange(length, device=device)
        for name in ("temperature", "top_p"):
            getattr(self.rows, name).fill_(1)
        self.idle = size
        self.every_slot = torch.full((slots,), size, dtype=torch.int64, device=device)
        self.slots = self.every_slot
        """(S,) the pool row of each slot; `idle` where there is none."""
        self.queue = zeros(size)
        """A ring of pool rows."""
        self.head, self.tail = zeros(1), zeros(1)
        """How many rows have left the queue, and how many have ever entered it."""

    def clear(self) -> None:
        """Nothing waits, and every slot is idle."""
        self.slots = self.every_slot.fill_(self.idle)
        self.head.zero_()
        self.tail.zero_()

    def shrink(self) -> int:
        """Give up slots that nothing waits for; returns the widest window of the others.

        For devices whose answer costs nothing.
        """
        if bool(self.head == self.tail):
            self.slots = self.slots[self.slots != self.idle]
        rows = self.rows.rows(self.slots)
        return int(torch.where(rows.revealed < rows.end, rows.window, 1).max())

    def widen(self) -> None:
        """Take back the slots that were given up; they are idle."""
        if missing := len(self.every_slot) - len(self.slots):
            self.slots = F.pad(self.slots, (0, missing), value=self.idle)

    def halve(self) -> int:
        """Keep the first half of the slots; the rows of the others are queued again, in front.

        Returns:
            How many rows are queued, from the start of the ring.
        """
        self.widen()
        size, half = len(self.queue), len(self.every_slot) // 2
        kept, lost = self.slots[:half].clone(), self.slots[half:].tolist()
        head, tail, ring = int(self.head), int(self.tail), self.queue.tolist()
        behind = [ring[k % size] for k in range(head, tail)]
        queued = [row for row in lost if row != self.idle] + behind
        self.slots = self.every_slot = self.every_slot[:half].copy_(kept)
        self.queue[: len(queued)] = torch.tensor(queued, dtype=torch.int64, device=kept.device)
        self.head.zero_()
        self.tail.fill_(len(queued))
        return len(queued)

    def upload(self, index: Tensor, rows: Rows, places: Tensor) -> None:
        """Put new requests at the pool rows `index`, queued at `places` of the ring."""
        self.widen()
        self.rows.put(index, rows)
        self.queue[places] = index
        self.tail += len(index)
        self.admit(self.slots == self.idle)

    def admit(self, finished: Tensor) -> None:
        """Slots that are `finished` (S,), or idle, take the next rows of the queue."""
        wanted = self.head + finished.cumsum(0) - 1
        given = finished & (wanted < self.tail)
        following = self.queue[wanted % len(self.queue)]
        kept = torch.where(finished, self.idle, self.slots)
        self.slots.copy_(torch.where(given, following, kept))
        self.head += given.sum()
