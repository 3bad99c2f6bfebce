"""Ablations of the causal head: several heads trained side by side on one frozen trunk.

    python benchmarks/ablations.py --data DATA --trunk RUNS/trunk/model --steps 4000 --out JSON

Every variant sees the same batches, orders and numbers of revealed tokens, and the same hidden
states of the trunk, which are computed once. Reported: the head's loss on the validation split in
bits per token, over all places and over the window Δτ = .083 alone, along the way and at the end;
and the draft's loss at the same places, which a head that has learned nothing would reach.
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from selfspec import checkpoint
from selfspec.arena.report import commit, machine, running
from selfspec.cross_entropy import WeightedNLL
from selfspec.data.loader import BlockLoader, TokenStore
from selfspec.files import write_json
from selfspec.losses import masked_weights, verified_weights, window_weights
from selfspec.model import SSMD
from selfspec.nn.attention import Rotation, rotation
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Block, is_output
from selfspec.ops import reorder
from selfspec.recipes import books27
from selfspec.schedules import CosineWindow
from selfspec.train.objectives import Chance, Diffusion
from selfspec.train.optim import Optimisers


class NoResidual(CausalHead):
    """The track's output is the target state itself."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.project.weight, std=self.project.in_features**-0.5)

    def add_residual(self, predicted: Tensor, output: Tensor) -> Tensor:
        return output


class HalfAndHalf(CausalHead):
    """Half of the channels turned by the position held, half by the position predicted."""

    def rotations(self, order: Tensor) -> tuple[Rotation, Rotation]:
        channels = self.project.out_features // self.config.heads // 2
        held, predicted = rotation(order[:, :-1], channels), rotation(order[:, 1:], channels)
        pairs = ([x.chunk(2, -1) for x in both] for both in zip(held, predicted, strict=True))
        both = Rotation(*(torch.cat([a, c, b, d], -1) for (a, b), (c, d) in pairs))
        return both, both


class DoubleZero(CausalHead):
    """The block's own output projections start at zero too."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for block in self.blocks:
            for name, layer in block.named_modules():
                if is_output(name):
                    nn.init.zeros_(layer.weight)  # type: ignore[arg-type]


class HalfAndHalfDoubleZero(HalfAndHalf, DoubleZero):
    """Both."""


class WideFusion(CausalHead):
    """The three inputs through a hidden layer of their joint width."""

    def __init__(self, config: HeadConfig, width: int):
        super().__init__(config, width)
        self.fuse = nn.Linear(3 * width, 3 * width, bias=False)
        self.narrow = nn.Linear(3 * width, width, bias=False)
        self.reset_parameters()

    def tracks(self, hidden: Tensor, embedded: Tensor, order: Tensor) -> Tensor:
        return self.narrow(F.relu(super().tracks(hidden, embedded, order)).square())


HEADS: dict[str, type[CausalHead]] = {
    "reference": CausalHead,
    "no residual": NoResidual,
    "half-and-half rotary": HalfAndHalf,
    "double zero": DoubleZero,
    "half-and-half rotary, double zero": HalfAndHalfDoubleZero,
    "window only": CausalHead,
    "4 heads": CausalHead,
    "16 heads": CausalHead,
    "wide fusion": WideFusion,
    "wide MLP": CausalHead,
    "2 blocks": CausalHead,
}
SHAPES = {
    "4 heads": HeadConfig(heads=4),
    "16 heads": HeadConfig(heads=16),
    "wide MLP": HeadConfig(heads=8, mlp_ratio=8),
    "2 blocks": HeadConfig(heads=8, blocks=2),
}


class Variants:
    """The heads of all variants on one trunk."""

    def __init__(self, trunk: nn.Module, names: list[str], seed: int):
        self.trunk = trunk.requires_grad_(False).eval()
        self.plain = SSMD(trunk)
        self.models, self.optimisers = {}, {}
        for name in names:
            torch.manual_seed(seed)
            head = HEADS[name](SHAPES.get(name, books27.HEAD), trunk.width).to(self.plain.device)  # type: ignore[arg-type]
            if self.plain.device.type == "cuda":
                for block in head.modules():
                    if isinstance(block, Block):
                        block.compile()
            self.models[name] = SSMD(trunk, head)
            self.optimisers[name] = books27_optimisers(head)
        window = torch.from_numpy(CosineWindow(0.083).table(trunk.length))  # type: ignore[arg-type]
        self.window = window.to(self.plain.device)

    def losses(self, tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """(2,) for every variant: over all places, over the window; and the draft's."""
        drawn = Diffusion().draw(tokens, Chance(generator))
        order, revealed = drawn["order"], drawn["revealed"]
        weight = masked_weights(order, revealed)
        near = window_weights(revealed, self.window[revealed], order.shape[1])
        sums = [WeightedNLL(each) for each in (verified_weights(weight, order, revealed), near)]
        along = tokens.gather(1, order)
        with torch.no_grad():
            hidden = self.plain.encode(torch.where(weight > 0, self.plain.mask_id, tokens))
            drafted = reorder(hidden, order)
            out = {"draft": torch.stack([each(self.trunk, drafted, along) for each in sums])}
        for name, model in self.models.items():
            states = model.corrected_states(hidden, tokens, order)
            out[name] = torch.stack([each(self.trunk, states, along) for each in sums])
        return out

    def update(self, step: int, tokens: Tensor, factor: float) -> None:
        """One optimiser step of every head."""
        generator = torch.Generator(tokens.device).manual_seed(step)
        with _autocast(tokens.device):
            losses = self.losses(tokens, generator)
        total = sum(losses[n][1 if n == "window only" else 0] for n in self.models)
        total.backward()  # type: ignore[union-attr]
        for name, optimiser in self.optimisers.items():
            nn.utils.clip_grad_norm_(self.models[name].head.parameters(), 1.0)  # type: ignore[union-attr]
            optimiser.step(factor)

    @torch.no_grad()
    def evaluate(self, step: int, parts: Sequence[Tensor]) -> list[dict]:
        """A row a variant: mean losses over the parts in bits per token, always the same draws."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, device=self.plain.device))
        for index, part in enumerate(parts):
            generator = torch.Generator(part.device).manual_seed(index)
            with _autocast(part.device):
                for name, loss in self.losses(part, generator).items():
                    sums[name] += loss
        bits = {name: (total / len(parts) / math.log(2)).tolist() for name, total in sums.items()}
        return [
            {"variant": name, "step": step, "bits": everywhere, "window_bits": window}
            for name, (everywhere, window) in bits.items()
        ]


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def books27_optimisers(head: CausalHead) -> Optimisers:
    settings = books27.head().train
    return Optimisers(head, settings.adamw, settings.muon, vocab_size=27)


def load_trunk(folder: Path, device: torch.device) -> nn.Module:
    trunk = checkpoint.load(folder, device).trunk
    if device.type == "cuda":
        for block in trunk.blocks:  # type: ignore[union-attr]
            block.compile()
    return trunk


def train(args: argparse.Namespace, device: torch.device) -> list[dict]:
    """The rows, every `--every` steps."""
    variants = Variants(load_trunk(args.trunk, device), args.names, args.seed)
    length: int = variants.trunk.length  # type: ignore[assignment]
    batches = BlockLoader(TokenStore(args.data / "train.bin"), length, args.batch_size, args.seed)
    valid = TokenStore(args.data / "valid.bin").excerpt(length, 2 * args.batch_size)
    parts = torch.from_numpy(valid.astype("int64")).to(device).split(args.batch_size)
    schedule = books27.head(steps=args.steps).train.schedule
    rows: list[dict] = []
    began = time.monotonic()
    for step in trange(1, args.steps + 1, mininterval=5):
        tokens = torch.from_numpy(batches.batch(step - 1).astype("int64")).to(device)
        variants.update(step - 1, tokens, schedule.factor(step - 1, args.steps))
        out_of_time = time.monotonic() - began > args.seconds
        if step % args.every == 0 or step == args.steps or out_of_time:
            rows += (latest := variants.evaluate(step, parts))
            found = (f"{r['variant']} {r['bits']:.3f} {r['window_bits']:.4f}" for r in latest)
            print(f"step {step} ({time.monotonic() - began:.0f} s):", *found, sep="; ", flush=True)
        if out_of_time:
            break
    return rows


def main() -> None:
    args = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = {
        "rows": train(args, device),
        "trunk": checkpoint.load_config(checkpoint.resolve(args.trunk))["sha256"],
        "batch_size": args.batch_size,
        "seed": args.seed,
        "machine": machine(),
        "command": running(),
        "commit": commit(),
    }
    write_json(args.out, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trunk", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--names", nargs="*", default=list(HEADS))
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
