"""Measures samplers: n samples at each setting, every metric over the same samples.

All settings use the same n row seeds, so that they share what random numbers they can. A finished
setting is kept as two files in a folder and is not drawn again:

    <name>-<digest>.json    the row
    <name>-<digest>.npz     the arrays behind it, see `Result`

The digest is over all that decides the numbers: the setting, the weights of model and judge, the
reference, seed, n, batch size, length, kind of device, what draws, and what the caller adds as
`identity`. A changed run never meets old files.

Seconds are those of whole batches, from masks to the last row, by what `generate` draws them with:
the engine where it can run a sampler, else the sampler itself. The engine has as many slots as a
batch has rows (on CUDA the next power of two) and is not compiled: that takes longer than most
settings. Its CUDA graphs are recorded in the first batch, which does not count. In one long run it
would refill slots and take less time a sample, and less again if compiled; see
`benchmarks/latency.py`.
"""

import hashlib
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from selfspec.arena.intervals import mean_interval
from selfspec.arena.reference import ReferenceLike
from selfspec.arena.report import commit
from selfspec.arena.results import Result, Row, load_result, save_result
from selfspec.checks import whole
from selfspec.engine import Engine
from selfspec.generation import chosen_engine
from selfspec.interfaces import Samples
from selfspec.lengths import Lengths
from selfspec.metrics.entropy import token_entropy
from selfspec.metrics.judge import Judge, judge_nll
from selfspec.metrics.timing import synchronize
from selfspec.noise import row_seeds
from selfspec.progress import tracked
from selfspec.prompts import NO_FRAME, blank
from selfspec.sampling import Sampler

__all__ = ["BATCHES", "Setting", "Sweep", "fingerprint"]

BATCHES = 6
"""Full batches that the wall-clock takes: the first warms up, the median is of five at least."""


class SamplerLike(Protocol):
    """A sampler, as the sweep needs it."""

    def sample(self, tokens: Tensor, seeds: Tensor) -> Samples:
        """(B, L) masked tokens, (B,) seeds → samples; with `lengths` it is also given (B, L) pads.

        `Samples.pad` must then be set.
        """
        ...


class MaskedModel(Protocol):
    """A model, as the sweep needs it."""

    @property
    def mask_id(self) -> int:
        """The token that stands for a masked position."""
        ...

    @property
    def length(self) -> int:
        """The longest sequence."""
        ...


@dataclass(frozen=True)
class Setting:
    """One point of a sweep.

    Attributes:
        sampler: its name; rows of one name and order form a curve.
        order: name of the rule for σ.
        settings: its knobs, as JSON: {"rounds": 4, "dtau": 0.083}.
        run: the sampler itself.
    """

    sampler: str
    order: str
    settings: Mapping[str, Any]
    run: SamplerLike

    @property
    def label(self) -> str:
        """For bars and file names."""
        knobs = " ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.sampler} {self.order} {knobs}".strip()


@dataclass(frozen=True)
class Sweep:
    """How every setting is measured.

    Attributes:
        model: for its mask, its length and its weights.
        judge: (B, L) tokens → (B, L) nats; on `device`, in its own precision.
        reference: of the measures beside the judge.
        folder: of the finished rows; made if it does not exist.
        n: samples a setting.
        batch_size: rows drawn at once.
        seed: of the run.
        length: tokens a sample; the model's by default.
        lengths: to draw them from instead, a row's from its seed.
        device: of model and judge.
        autocast: draw under bfloat16 autocast; by default on CUDA.
        engine: "reference" draws everything by the samplers themselves, see `generate`.
        heldout: (m,) bits per token of held-out sequences under a setting's exact law, or None
            where there is no such law.
        identity: what else decides the numbers, as JSON: the held-out text, a judge that is no
            module, a compiler's options.
        keep_tokens: store the samples too, for judges to come.
        second_judge: of the same tokens, for columns of its own.
        translate: (n, L) samples, masked at pads → the same in the tokens of judges and reference,
            where these are not the model's own.
        name: of the model, where a report has several.
    """

    model: MaskedModel
    judge: Judge
    reference: ReferenceLike
    folder: Path
    n: int = 8192
    batch_size: int = 256
    seed: int = 0
    length: int | None = None
    lengths: Lengths | None = None
    device: torch.device | str = "cpu"
    autocast: bool | None = None
    heldout: Callable[[Setting], np.ndarray | None] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    keep_tokens: bool = True
    second_judge: Judge | None = None
    translate: Callable[[np.ma.MaskedArray], np.ma.MaskedArray] | None = None
    name: str | None = None
    engine: Literal["reference"] | None = None

    def __post_init__(self) -> None:
        for name in ("n", "batch_size"):
            whole(name, getattr(self, name), least=1)
        if self.engine not in (None, "reference"):
            raise ValueError(f'`engine` must be "reference" or None, got {self.engine!r}')

    def run(
        self, settings: Sequence[Setting], progress: bool = True, stop_after: float = math.inf
    ) -> list[Result]:
        """Measures every setting that is not yet in the folder, in the order given.

        Args:
            settings: what to measure.
            progress: show a bar.
            stop_after: seconds after which no further setting is begun.

        Returns:
            A result a setting, without those that were not begun.
        """
        deadline = time.monotonic() + stop_after
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = self._identity
        results = []
        with tracked(total=len(settings) * self.n, unit="sample", progress=progress) as bar:
            for setting in settings:
                bar.set_description(setting.label)
                path = self.folder / _file_name(setting, identity)
                if (result := load_result(path)) is not None:
                    bar.update(self.n)
                elif time.monotonic() < deadline:
                    result = self.measure(setting, bar)
                    save_result(path, result)
                else:
                    continue
                bar.set_postfix(nfe=f"{result.row.nfe:.1f}", judge=f"{result.row.judge:.3f}")
                results.append(result)
        return results

    def finished(self, setting: Setting) -> bool:
        """Whether the folder holds the result of a setting."""
        return load_result(self.folder / _file_name(setting, self._identity)) is not None

    def measure(self, setting: Setting, bar: tqdm | None = None) -> Result:
        """Draws the samples of one setting and measures them; keeps nothing on disk."""
        samples, seconds, engine = self._draw(setting.run, bar)
        arrays = {
            name: getattr(samples, name).cpu().numpy()
            for name in ("nfe", "trunk_passes", "head_passes")
        }
        arrays["tokens"] = samples.rows if self.lengths else samples.tokens.cpu().numpy()
        if self.translate:
            arrays["tokens"] = self.translate(samples.rows)
        if self.heldout and (bits := self.heldout(setting)) is not None:
            arrays["heldout_bits"] = np.asarray(bits, np.float64)
        account = {
            "sampler": setting.sampler,
            "order": setting.order,
            "settings": dict(setting.settings),
            "acceptance": samples.acceptance if samples.drafted.sum() else None,
            "seconds": seconds,
            "engine": engine,
            "model": self.name,
            "commit": self._commit,
        }
        return self._result(arrays, account)

    def measure_data(self, tokens: np.ndarray) -> Result:
        """The same measures of real text, (n, L) tokens: what a perfect sampler would score.

        In the tokens of judges and reference.

        Pads are masked in a masked array.

        Its row has the sampler "data", no order and no cost (nfe 0).
        """
        none = np.zeros(len(tokens))
        arrays = {"tokens": tokens, "nfe": none, "trunk_passes": none, "head_passes": none}
        account = {"sampler": "data", "order": "", "settings": {}}
        return self._result(arrays, account | {"acceptance": None, "seconds": None})

    def _draw(self, sampler: SamplerLike, bar: tqdm | None) -> tuple[Samples, float | None, str]:
        """n samples, the seconds a sample took, see `Row.seconds`, and `Row.engine`."""
        device = torch.device(self.device)
        seeds = row_seeds(self.seed, self.n, device)
        frame = getattr(self.model, "frame", NO_FRAME)
        text = (self.length or self.model.length) - len(frame[0]) - len(frame[1])
        sizes = self.lengths.draw(seeds) if self.lengths else torch.full_like(seeds, text)
        order, parts, seconds = sizes.argsort(stable=True), [], []  # like lengths: few pads
        engine, width = None, None
        for index in order.split(self.batch_size):
            masked, pad = blank(sizes[index], self.model.mask_id, frame=frame)
            if masked.shape[1] != width:
                engine, width = self._engine(sampler, masked.shape[1]), masked.shape[1]
            synchronize(device)
            start = time.perf_counter()
            parts.append(self._samples(sampler, engine, masked, seeds[index], pad))
            synchronize(device)
            seconds.append((time.perf_counter() - start) / len(index))
            if bar is not None:
                bar.update(len(index))
        # The first batch warms up, and a smaller last one would be slower a sample.
        timed = [] if self.lengths else seconds[1 : self.n // self.batch_size]
        samples, back = Samples.concatenate(parts), order.argsort()
        tensors = {k: v[back] for k, v in vars(samples).items() if isinstance(v, Tensor)}
        median = statistics.median(timed) if len(timed) >= BATCHES - 1 else None
        return replace(samples, **tensors), median, "reference" if engine is None else "engine"

    def _engine(self, sampler: SamplerLike, width: int) -> Engine | None:
        """What draws batches of rows so long; None for the sampler itself."""
        if not isinstance(sampler, Sampler):
            return None
        rows = min(self.batch_size, self.n)  # of a smaller last batch too: one engine for all
        return chosen_engine(sampler, rows, width, self.engine, self._autocast)

    def _samples(
        self,
        sampler: SamplerLike,
        engine: Engine | None,
        tokens: Tensor,
        seeds: Tensor,
        pad: Tensor,
    ) -> Samples:
        """One batch."""
        if engine is not None:
            assert isinstance(sampler, Sampler)
            return engine.sample(sampler, tokens, seeds, pad)
        pads = {"pad": pad} if self.lengths else {}
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self._autocast):
            return sampler.sample(tokens, seeds, **pads)

    def _result(self, arrays: dict[str, np.ndarray], account: dict[str, Any]) -> Result:
        tokens = arrays.pop("tokens")
        drawn = torch.from_numpy(np.ma.getdata(tokens).astype(np.int64))
        pad = torch.from_numpy(np.ma.getmaskarray(tokens))
        judged: dict[str, float] = {}
        for name, judge in self._judges.items():
            arrays[name] = judge_nll(drawn, judge, self.batch_size, pad, self.device).bits
            interval = mean_interval(arrays[name], seed=self.seed)
            judged |= {name: interval.mean, f"{name}_low": interval.low}
            judged |= {f"{name}_high": interval.high}
        measures, behind = self.reference.measure(tokens)
        arrays |= behind
        heldout = arrays.get("heldout_bits")
        row = Row(
            **{name: float(arrays[name].mean()) for name in ("nfe", "trunk_passes", "head_passes")},
            heldout_bits=None if heldout is None else float(heldout.mean()),
            entropy=float(token_entropy(tokens).mean()),
            n=len(tokens),
            **judged,
            **measures,
            **account,
        )
        if self.keep_tokens:
            whole = np.ma.filled(tokens, 0)
            arrays["tokens"] = whole.astype(np.min_scalar_type(int(whole.max())))
            if isinstance(tokens, np.ma.MaskedArray):
                arrays["lengths"] = tokens.count(axis=1)
        return Result(row, arrays)

    @property
    def _judges(self) -> dict[str, Judge]:
        """By the field that they fill."""
        second = {} if self.second_judge is None else {"second_judge": self.second_judge}
        return {"judge": self.judge, **second}

    @property
    def _autocast(self) -> bool:
        return torch.device(self.device).type == "cuda" if self.autocast is None else self.autocast

    @cached_property
    def _commit(self) -> str | None:
        """Asked once: the code that runs is that of the start."""
        return commit()

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that decides the numbers, apart from the setting; weights are hashed once."""
        # A bound method, such as `log_probs`, is known by its model.
        judges = {k: fingerprint(getattr(v, "__self__", v)) for k, v in self._judges.items()}
        return {
            "model": fingerprint(self.model),
            **judges,
            "reference": self.reference.digest(),
            "heldout": self.heldout is not None,
            "n": self.n,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "length": self.length or self.model.length,
            **({"lengths": self.lengths.to_config()} if self.lengths else {}),
            **({"name": self.name} if self.name else {}),
            "device": torch.device(self.device).type,
            "autocast": self._autocast,
            "engine": self.engine,
            **self.identity,
        }


def _file_name(setting: Setting, identity: Mapping[str, Any]) -> str:
    """The same for all runs that would give the same numbers."""
    given = {name: getattr(setting.run, name, 1) for name in ("temperature", "top_p")}
    given = {name: value for name, value in given.items() if value != 1}
    key = [setting.sampler, setting.order, {**given, **setting.settings}, identity]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return re.sub(r"[^a-z0-9.=]+", "-", setting.label.lower()).strip("-") + "-" + digest


def fingerprint(model: object) -> str | None:
    """A hash of the weights of a module; None for what has none."""
    if not isinstance(model, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
