"""Toy models on which the laws of the samplers can be enumerated."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.scorer import Scorer, ScorerConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.ops import take_along

torch.set_num_threads(1)  # toy tensors: a second thread only waits for the first


def make_toy(
    vocab: int = 3, seed: int = 7, length: int = 6, blocks: int = 2, head_blocks: int = 1
) -> SSMD:
    """A float64 model whose head disagrees with its trunk; without a head if it has no blocks."""
    torch.manual_seed(seed)
    trunk = Trunk(TrunkConfig(vocab, length, width=8, blocks=blocks, heads=1, mlp_ratio=2))
    nn.init.normal_(trunk.unembedding.weight, std=0.5)
    if not head_blocks:
        return SSMD(trunk).double().eval()
    head = CausalHead(HeadConfig(heads=1, blocks=head_blocks, mlp_ratio=2), trunk.width)
    nn.init.normal_(head.project.weight, std=2.0)
    return SSMD(trunk, head).double().eval()


class RuggedTrunk(nn.Module):
    """Drafts that differ from position to position and move with every token: a layer of noise."""

    def __init__(self, vocab: int, length: int = 6, width: int = 8, scale: float = 1.5):
        super().__init__()
        self.vocab_size, self.mask_id, self.width = vocab, vocab, width
        self.length, self.num_blocks = length, 2
        self.embedding = nn.Parameter(torch.randn(vocab + 1, width))
        self.mixing = nn.Parameter(torch.randn(length, length, width, width) / width)
        self.unembedding = nn.Parameter(scale * torch.randn(width, vocab) / width**0.5)

    def forward(
        self,
        tokens: torch.Tensor,
        pad: torch.Tensor | None = None,
        memories: list[list[torch.Tensor]] | None = None,
        at: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What may be stale are the states of the other positions."""
        states = self.embed(tokens)
        if pad is not None and at is None:
            states = states.masked_fill(pad.unsqueeze(-1), 0)
        if memories is not None:
            if at is not None:
                rows = torch.arange(len(at), device=at.device).unsqueeze(1)
                states = memories[0].pop().index_put((rows, at), states)
            memories[0].append(states)
        mixing = self.mixing[: states.shape[1], : states.shape[1]]
        hidden = torch.einsum("bkc,lkcd->bld", states, mixing).tanh()
        return hidden if at is None else take_along(hidden, at)

    def memories(self) -> list[list[torch.Tensor]]:
        return [[]]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding[tokens]

    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.unembedding


def make_rugged(vocab: int, seed: int) -> SSMD:
    """As `make_toy`, for samplers that read how sure the model is."""
    torch.manual_seed(seed)
    head = CausalHead(HeadConfig(heads=1, mlp_ratio=2), 8)
    nn.init.normal_(head.project.weight, std=2.0)
    return SSMD(RuggedTrunk(vocab), head).double().eval()


def make_scorer(seed: int = 0, scale: float = 1.0, **shape: int) -> Scorer:
    """Float64, with opinions."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        scorer = Scorer(ScorerConfig(width=8, heads=1, **shape))
        nn.init.normal_(scorer.output.weight, std=scale)
    return scorer.double().eval()


@pytest.fixture(scope="session")
def rugged() -> SSMD:
    """V = 3."""
    return make_rugged(vocab=3, seed=4)


@pytest.fixture(scope="session")
def ternary() -> SSMD:
    """V = 3; its 81 sequences of length 4 are the usual playground."""
    return make_toy(vocab=3, seed=7)


@pytest.fixture(scope="session")
def binary() -> SSMD:
    """V = 2, for the 64 sequences of length 6."""
    return make_toy(vocab=2, seed=8)


@pytest.fixture(scope="session")
def toys(ternary: SSMD, binary: SSMD) -> Callable[[int], SSMD]:
    """The toy model of a vocabulary."""
    return {3: ternary, 2: binary}.__getitem__
