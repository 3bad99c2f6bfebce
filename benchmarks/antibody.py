"""A head on AntiBERTy: quality against NFE on antibodies, from two packages with real weights.

    pip download --no-deps antiberty==0.1.3 iglm==0.1.0
    python benchmarks/antibody.py --antiberty DIR --iglm DIR --runs RUNS \\
        data judge head finetune finetuned quality

The first DIR is AntiBERTy as `transformers` saves it, with its tokenizer; the second the folder
`trained_models` of the wheel `iglm`. IgLM is for non-commercial use: nothing of its weights or of
what it draws is kept in this repository.

    data        human chains that IgLM draws, heavy and light by turns; none comes twice
    judge       an autoregressive judge, trained on sequences that no other stage sees
    head        a head on the frozen AntiBERTy: all places first, then those that samplers read
    finetune    AntiBERTy itself as a masked diffusion, from its own weights
    finetuned   a head on that, frozen again
    quality     both curves, the exact likelihood of held-out sequences, and the report

Antibodies are one family: the clusters of `selfspec.data.clusters` put all in one. So the sequences
are held out at random, and none of them was drawn for training too; what is measured is how near a
sampler comes to the law that made the data, which IgLM itself can tell exactly (the second judge).

What is finished is not made again: a stage, a part of what IgLM draws, a setting of the curves. A
training run that was stopped goes on, and the report is written again as the curves fill.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from quality import Heldout, compare, cost, fill, judge_facts, optimal, plain, settings
from torch import Tensor, nn

import selfspec as ss
from selfspec import checkpoint
from selfspec.api import load_judge
from selfspec.arena import (
    ProteinReference,
    Result,
    Setting,
    Sweep,
    accounts,
    write_report,
)
from selfspec.data.corpus import open_corpus, write_corpus
from selfspec.data.fasta import write_fasta
from selfspec.data.ragged import RaggedStore, write_sequences
from selfspec.data.tokenizers import AMINO_ACIDS, ProteinTokenizer
from selfspec.files import replacing, write_json
from selfspec.lengths import Lengths
from selfspec.likelihood import information_profile
from selfspec.model import SSMD
from selfspec.prompts import blank
from selfspec.recipes import proteins
from selfspec.recipes.attach import settings as head_settings
from selfspec.train import AdamWConfig, Diffusion, MuonConfig, Trainer, WarmupStableDecay

LENGTH = 160
"""The longest row, with what stands around a sequence."""
CHAINS = ("[HEAVY]", "[LIGHT]")
CORPUS = ("train", "reference", "test")
MODELS = {"AntiBERTy": "head", "AntiBERTy, fine-tuned": "finetuned"}
SEED = 0
OFTEN: dict[str, Any] = {"save_every": 500, "valid_every": 500}
"""So that little is lost where a run is cut off, and the judge has a loss."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    train: int = 240_000
    judge: int = 80_000
    heldout: int = 2048
    """Sequences beside samples; of the training of the judge too."""
    likelihood: int = 1024
    """Of them, those whose exact likelihood is computed."""
    reference: int = 2000
    """Of the training sequences, those to which novelty is the distance."""
    drawn: int = 16384
    """Sequences IgLM draws at once; their keys and values take 1.3 MB each in half precision."""
    judge_steps: int = 1800
    head_steps: int = 2400
    window_steps: int = 1200
    finetune_steps: int = 1100
    batch: int = 256
    """Sequences a step of the judge; the trunk has twice as many, its head four times."""
    n: int = 2048
    """Samples a setting."""
    profile: int = 256
    """Sequences of training from which the optimal schedule is computed."""
    most: float = 140
    """Leave out settings of more trunk passes: those have as many as a sequence has residues."""


TINY = Size(
    train=60, judge=40, heldout=6, likelihood=2, reference=50, drawn=32, judge_steps=4,
    head_steps=4, window_steps=4, finetune_steps=4, batch=2, n=4, most=16, profile=2,
)  # fmt: skip


class IgLM(nn.Module):
    """IgLM as the law that made the data: human chains from left to right, half of them heavy,

        s(x) = 1/2 Σ_c Π_l s(x_l | c, x_<l),        c = heavy, light,

    with its own probabilities s, renormalised over the twenty residues and the end of a sequence.
    (Left to itself it writes one span of every sequence last.)
    """

    allowed: Tensor
    """(21,) its tokens for the residues, in our order, and for the end."""

    def __init__(self, folder: Path):
        from transformers import GPT2LMHeadModel  # pyright: ignore[reportMissingImports]

        super().__init__()
        self.vocabulary = (folder / "vocab.txt").read_text().split()
        # The activation is its own, in one kernel instead of eight.
        own: dict[str, Any] = {"activation_function": "gelu_pytorch_tanh"}
        self.model: Any = GPT2LMHeadModel.from_pretrained(folder / "IgLM", **own).eval()
        self.end = self.vocabulary.index("[SEP]")
        allowed = [*map(self.vocabulary.index, AMINO_ACIDS), self.end]
        self.register_buffer("allowed", torch.tensor(allowed))

    def starts(self, chain: str, num: int) -> Tensor:
        """(num, 2) what stands before a sequence."""
        ids = [self.vocabulary.index(token) for token in (chain, "[HUMAN]")]
        return torch.tensor(ids, device=self.model.device).expand(num, -1)

    @torch.no_grad()
    def log_probs(self, tokens: Tensor) -> Tensor:
        """(B, L) residues → (B, L) log s(x_l | x_<l) in nats; the end does not count."""
        chains = []
        for chain in CHAINS:
            ids = torch.cat([self.starts(chain, len(tokens)), self.allowed[tokens]], dim=1)
            logits = self.model(ids).logits[:, 1:-1, self.allowed]
            each = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            chains.append(each.double().cumsum(1))
        joint = torch.stack(chains).logsumexp(0) - math.log(len(CHAINS))
        return joint.diff(dim=1, prepend=torch.zeros_like(joint[:, :1]))

    @torch.no_grad()
    def draw(self, num: int, seed: int) -> np.ndarray:
        """(n,) sequences from s as bytes, n ≤ num: what is empty or does not end is left out."""
        device = self.model.device
        generator = torch.Generator(device).manual_seed(seed)
        letters = torch.tensor([*AMINO_ACIDS.encode(), 0], dtype=torch.uint8, device=device)
        text = torch.zeros(num, LENGTH - 2, dtype=torch.uint8, device=device)
        rows, cache = torch.arange(num, device=device), make_cache(LENGTH)
        ids = torch.stack([self.starts(chain, 1)[0] for chain in CHAINS])[rows % 2]
        for place in range(text.shape[1]):
            out = self.model(ids, past_key_values=cache, use_cache=True)
            chances = out.logits[:, -1, self.allowed].float().softmax(-1)
            drawn = chances.multinomial(1, generator=generator).squeeze(1)
            text[rows, place] = letters[drawn]
            ids, cache = self.allowed[drawn].unsqueeze(1), out.past_key_values
            if place % 8 == 7:  # a row that ended is of no use, but to look for it waits
                going = text[rows, : place + 1].all(1).nonzero().squeeze(1)
                if not len(going):
                    break
                if len(going) < len(rows):
                    rows, ids = rows[going], ids[going]
                    cache.batch_select_indices(going)
        text *= text.bool().cumprod(1, dtype=torch.uint8)
        kept = text[(text[:, 0] > 0) & (text[:, -1] == 0)].cpu().numpy()
        return kept.view(f"S{kept.shape[1]}").squeeze(1)


def make_cache(length: int) -> Any:
    """Keys and values of so many places, in memory taken once.

    The library's own takes new and larger memory for every layer at every place.
    """
    from transformers.cache_utils import (  # pyright: ignore[reportMissingImports]
        Cache,
        DynamicLayer,
    )

    class Layer(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **more: Any) -> Any:
            new = (key_states, value_states)
            if not self.is_initialized:
                self.lazy_initialization(*new)
                batch, heads, _, channels = key_states.shape
                self.room = [states.new_empty(batch, heads, length, channels) for states in new]
            start = self.get_seq_length()
            stop = start + key_states.shape[2]
            for room, states in zip(self.room, new, strict=True):
                room[:, :, start:stop] = states
            return self.show(stop)

        def batch_select_indices(self, indices: Tensor) -> None:
            self.room = [room[indices] for room in self.room]
            self.show(self.get_seq_length())

        def show(self, stop: int) -> Any:
            self.keys, self.values = (room[:, :, :stop] for room in self.room)
            return self.keys, self.values

    return Cache(layer_class_to_replicate=Layer)


def data(args: argparse.Namespace, size: Size) -> str:
    """Divides what is drawn; where that is less than wanted, every part is smaller alike."""
    folder, partial = args.runs / "data", args.runs / "data.part"
    if folder.exists():
        return "finished before"
    shutil.rmtree(partial, ignore_errors=True)
    parts = {"judge": size.judge, "valid": size.heldout, "test": size.heldout, "train": size.train}
    texts = sequences(args, size, need := sum(parts.values()))
    share = min(1.0, len(texts) / need)
    order = iter(np.random.default_rng(SEED).permutation(len(texts)).tolist())
    split = {name: [texts[next(order)] for _ in range(int(share * parts[name]))] for name in parts}
    train, protein = split["train"], ProteinTokenizer()
    own = {"train": split["judge"], "valid": split["valid"]}
    corpus = {"train": train, "reference": train[: size.reference], "test": split["test"]}
    write_corpus(partial / "judge", own, protein, write_sequences)
    write_corpus(partial / "corpus", corpus, protein, write_sequences)
    write_fasta(partial / "train.fasta", ((str(i), text) for i, text in enumerate(train)))
    partial.rename(folder)
    return ", ".join(f"{name} {len(rows):,}" for name, rows in split.items())


def sequences(args: argparse.Namespace, size: Size, need: int) -> list[str]:
    """Different sequences, as many as needed or as there was time for; the parts are kept."""
    folder, start = args.runs / "drawn", time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    iglm, found, fresh = IgLM(args.iglm).to(device()), {}, 0
    for seed in count():
        path = folder / f"{seed:04d}.npy"
        if not path.exists():
            # Half precision for the products alone: 2e-7 nats of KL a residue from float32's law.
            with torch.autocast(device(), torch.float16, enabled=device() == "cuda"):
                part = iglm.draw(size.drawn, seed)
            with replacing(path) as file:
                np.save(file, part)
            fresh += len(part)
        found |= dict.fromkeys(np.load(path).tolist())
        seconds = time.monotonic() - start
        print(f"drawn {len(found):,} of {need:,}, {fresh / seconds:,.0f} a second", flush=True)
        if len(found) >= need or (args.seconds and seconds > args.seconds):
            break
    return [text.decode() for text in found]


def judge(args: argparse.Namespace, size: Size) -> str:
    """Trains the judge of `recipes/proteins.py`."""
    _, stores = open_corpus(args.runs / "data" / "judge")
    recipe = proteins.judge(size.judge_steps, batch_size=size.batch, compile=False, **OFTEN)
    recipe = replace(recipe, trunk=replace(recipe.trunk, length=LENGTH))
    trainer = recipe.trainer(args.runs / "judge", stores["train"], stores["valid"])
    trainer.run(args.seconds)
    return trained(args.runs / "judge")


def head(args: argparse.Namespace, size: Size, trunk: Path | None = None, run: str = "head") -> str:
    """Attaches a head to a frozen trunk, AntiBERTy's by default, and trains it.

    First at all places; then with as much weight on the windows of samplers. Where little is known
    yet a window is a few places of many, and what is drawn there decides what all others can be.
    """
    model, first = ss.attach_head(str(trunk or args.antiberty), length=LENGTH), f"{run}-first"
    options: dict[str, Any] = {
        "rows": "lines", "length": LENGTH, "batch_size": 4 * size.batch, "compile": False,
        "stop_after": args.seconds, **OFTEN,
    }  # fmt: skip
    fasta = args.runs / "data" / "train.fasta"
    ss.train_head(model, fasta, args.runs / first, steps=size.head_steps, **options)
    rows = args.runs / run / "data"
    if not rows.exists():
        shutil.copytree(args.runs / first / "data", partial := rows.with_suffix(".part"))
        partial.rename(rows)
    options |= {"adamw": AdamWConfig(1e-3, betas=(0.9, 0.98)), "muon": MuonConfig(1e-3)}
    ss.train_head(
        model, fasta, args.runs / run, steps=size.window_steps, window_weight=1.0, **options
    )
    return f"{trained(args.runs / first)}; {trained(args.runs / run)}"


def finetune(args: argparse.Namespace, size: Size) -> str:
    """Trains the trunk as a masked diffusion, on the rows of stage `head`.

    Once it is written it stays as it is, also if time ended it: a head may stand on it.
    """
    folder, partial = args.runs / "trunk" / "hf", args.runs / "trunk" / "hf.part"
    if folder.exists():
        return "finished before"
    model = ss.attach_head(str(args.antiberty), blocks=0, length=LENGTH).to(device())
    train, valid = (RaggedStore(args.runs / f"head/data/{name}.bin") for name in ("train", "valid"))
    config = head_settings(
        size.finetune_steps, 2 * size.batch, adamw=AdamWConfig(2e-4, betas=(0.9, 0.98)),
        muon=MuonConfig(5e-4), schedule=WarmupStableDecay(min(100, size.finetune_steps // 10), 0.5),
        **OFTEN,
    )  # fmt: skip
    objective = Diffusion(observed=tuple(sum(model.frame, ())))
    batches = train.loader(LENGTH, 2 * size.batch, SEED)
    rows = valid.excerpt(LENGTH, 1024)
    trainer = Trainer(model, objective, config, batches, args.runs / "trunk", rows)
    if not trainer.run(args.seconds):
        trainer.ema.copy_to_params()
    trunk, tokenizer = cast(Any, model.trunk), cast(Any, model.tokenizer)
    trunk.model.save_pretrained(partial)
    tokenizer.inner.save_pretrained(partial)
    partial.rename(folder)
    return trained(args.runs / "trunk")


def finetuned(args: argparse.Namespace, size: Size) -> str:
    """The head of the fine-tuned trunk."""
    return head(args, size, args.runs / "trunk" / "hf", "finetuned")


def trained(run: Path) -> str:
    """How far a training run is."""
    about = training(run)
    losses = (f"{name} {nats:.4f}" for name, nats in about["validation_nats"].items())
    seconds = f"{about['seconds']:.0f} s in all"
    return ", ".join([f"step {about['steps']} of {about['of']}", seconds, *losses, "in nats"])


def training(run: Path) -> dict[str, Any]:
    """Of a run, as its last checkpoint states it."""
    about = checkpoint.load_config(run / "model")["training"]
    return {"steps": about["step"], "of": about["run"]["steps"],
            "batch_size": about["run"]["batch_size"], "seconds": about["elapsed"],
            "validation_nats": about["validation"]}  # fmt: skip


def quality(args: argparse.Namespace, size: Size) -> str:
    """Measures the models there are, cheap settings first, until time is up; writes the report."""
    deadline = time.monotonic() + (args.seconds or math.inf)
    stores = {s: RaggedStore(args.runs / f"data/corpus/{s}.bin") for s in CORPUS}
    own = load_judge(args.runs / "judge" / "model", device())
    judges = {"judge": own.log_probs, "second_judge": IgLM(args.iglm).to(device()).log_probs}
    models = {
        name: ss.load(args.runs / folder / "model", device())
        for name, folder in MODELS.items()
        if (args.runs / folder / "model").exists()
    }
    if not models:
        raise SystemExit("no head is trained yet")
    sweeps = {n: make_sweep(args, size, n, model, stores, judges) for n, model in models.items()}
    longest = int(stores["train"].lengths.max())
    profiles = {
        name: kept_profile(
            model, stores["train"], size.profile, args.runs / MODELS[name] / "profile.json"
        )
        for name, model in models.items()
    }
    jobs = [
        (sweeps[name], setting)
        for name, model in models.items()
        for setting in points(model, longest, profiles[name])
        if cost(setting) <= size.most
    ]
    jobs.sort(key=lambda job: cost(job[1]))
    drawn = next(iter(sweeps.values())).measure_data(stores["test"].excerpt(LENGTH, size.n))
    drawn = replace(drawn, row=replace(drawn.row, model="drawn by IgLM"))
    results = fill(jobs, lambda found: report(args, size, models, stores, found, drawn), deadline)
    return f"{len(results)} of {len(jobs)} settings"


def report(
    args: argparse.Namespace,
    size: Size,
    models: dict[str, SSMD],
    stores: dict[str, RaggedStore],
    results: list[Result],
    drawn: Result,
) -> dict[str, Any]:
    """Writes what is measured so far, and the first samples."""
    found = []
    for name, model in models.items():
        own = [result for result in results if result.row.model == name]
        blocks = accounts(model.num_trunk_blocks, model.num_head_blocks)
        found += compare(own, {"same trunk": blocks["same trunk"]}, SEED)
    ordered = sorted(results, key=lambda result: [*models].index(result.row.model or ""))
    write_samples(args.runs / "samples.fasta", ordered)
    about = facts(args, size, next(iter(models.values())).trunk, stores)
    return write_report(args.out, [*ordered, drawn], found, SEED, about, args.command)


def points(model: SSMD, longest: int, profile: np.ndarray) -> list[Setting]:
    """Those of quality.py, one token a pass, and the optimal schedule, unverified and verified."""
    found = [*settings(model, ["uniform"], longest), plain(model, "uniform", "linear", longest)]
    return found + optimal(model, profile)


def kept_profile(model: SSMD, store: RaggedStore, num: int, path: Path) -> np.ndarray:
    """The model's information profile, on training sequences of the commonest length."""
    if not path.exists():
        length = int(np.bincount(store.lengths).argmax())
        rows = store.rows(np.flatnonzero(store.lengths == length)[:num], length)
        sizes = torch.full((len(rows),), length)
        tokens, _ = blank(sizes, model.mask_id, frame=model.frame)
        observed = tokens != model.mask_id
        tokens[~observed] = torch.from_numpy(residue_ids(model)[rows.data]).flatten()
        tokens, observed = tokens.to(model.device), observed.to(model.device)
        write_json(path, information_profile(model, tokens, SEED, observed).tolist())
    return np.array(json.loads(path.read_text()))


def make_sweep(
    args: argparse.Namespace,
    size: Size,
    name: str,
    model: SSMD,
    stores: dict[str, RaggedStore],
    judges: dict[str, Any],
) -> Sweep:
    """How a model is measured."""
    rows = stores["test"].excerpt(LENGTH, size.likelihood)
    heldout = np.ma.masked_array(residue_ids(model)[rows.filled(0)], mask=rows.mask)
    lengths = np.bincount(stores["train"].lengths)[1:]
    return Sweep(
        model=model, reference=ProteinReference(stores["reference"], stores["test"]),
        folder=args.runs / "quality", n=size.n, batch_size=size.n, seed=SEED,
        lengths=Lengths(tuple(lengths.tolist()), 1, len(lengths)), device=device(),
        heldout=Heldout(model, heldout, SEED), identity={"heldout": len(rows)},
        translate=residues(model), name=name, engine="reference", **judges,
    )  # fmt: skip


def residue_ids(model: SSMD) -> np.ndarray:
    """(20,) the model's tokens for the residues."""
    assert model.tokenizer is not None
    return model.tokenizer.encode(AMINO_ACIDS)


def residues(model: SSMD) -> Callable[[np.ma.MaskedArray], np.ma.MaskedArray]:
    """Turns samples of a model into residues 0..19, without the model's frame."""
    table = np.full(model.vocab_size, -1)
    table[residue_ids(model)] = np.arange(len(AMINO_ACIDS))
    begin, end = map(len, model.frame)

    def translate(rows: np.ma.MaskedArray) -> np.ma.MaskedArray:
        # A row ends as many places earlier as its frame is long.
        pad = np.ma.getmaskarray(rows)[:, begin + end :]
        return np.ma.masked_array(table[rows.data[:, begin : rows.shape[1] - end]], mask=pad)

    return translate


def facts(
    args: argparse.Namespace, size: Size, trunk: Any, stores: dict[str, RaggedStore]
) -> dict[str, Any]:
    """What is known of judges, data, trunk and training."""
    first = {f"{name}, at all places": f"{run}-first" for name, run in MODELS.items()}
    runs = first | MODELS | {"fine-tuning": "trunk"}
    train, test = len(stores["train"]), len(stores["test"])
    judge = len(RaggedStore(args.runs / "data/judge/train.bin"))
    return {
        "judge": judge_facts(args.runs / "judge" / "model", ProteinTokenizer())
        | {"training": training(args.runs / "judge")},
        "second_judge": {"name": "IgLM", "weights": "iglm 0.1.0", "unit": "bits per residue",
                         "law": "human chains, half heavy; it made the data"},
        "data": {"split": "test", "rows": min(test, size.n), "train": train, "judge": judge,
                 "share_of_plan": round(train / size.train, 3),
                 "novelty_to": len(stores["reference"])},
        "heldout": {"split": "test", "rows": min(test, size.likelihood)},
        "trunk": {
            "weights": "antiberty 0.1.3",
            "sha256": trunk.source.sha256,
            "rounded_to_bfloat16": all(
                torch.equal(p, p.bfloat16().to(p.dtype)) for p in trunk.model.parameters()
            ),
        },
        "training": {
            name: training(args.runs / run)
            for name, run in runs.items()
            if (args.runs / run / "model").exists()
        },
    }  # fmt: skip


def write_samples(path: Path, results: list[Result], num: int = 8) -> None:
    """The first samples of every setting."""
    decode = ProteinTokenizer().decode
    write_fasta(path, (
        (f"{r.row.model}, {r.row.sampler} {r.row.settings}, row {i}", decode(row[:length]))
        for r in results
        for i, (row, length) in enumerate(zip(r.arrays["tokens"][:num], r.arrays["lengths"],
                                              strict=False))
    ))  # fmt: skip


def device() -> str:
    """CUDA if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


STAGES = {f.__name__: f for f in (data, judge, head, finetune, finetuned, quality)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--antiberty", type=Path)
    parser.add_argument("--iglm", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path,
                        default=Path("benchmarks/results/antibody-quality.json"))  # fmt: skip
    parser.add_argument("--seconds", type=float, help="after which a stage stops what it does")
    parser.add_argument("--tiny", action="store_true", help="a few of everything, on a CPU")
    parser.add_argument("--command", help="to report")
    parser.add_argument("stages", nargs="+", choices=STAGES)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and each is new
    for stage in args.stages:
        start = time.monotonic()
        done = STAGES[stage](args, TINY if args.tiny else Size())
        print(f"stage {stage}: {time.monotonic() - start:.1f} s, {done}", flush=True)


if __name__ == "__main__":
    main()
