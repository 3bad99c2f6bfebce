"""Samples by the million, in files.

    DIR/run.json                      what is drawn: sampler, seed, number, length, rows a file
    DIR/00000.safetensors, …          the rows of a shard: tokens, sizes, seeds and their account

Row r has the seed that it has in any run, so that shards depend on nothing but their number: they
are drawn in any order, by any number of processes, and a finished one is not drawn again.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from selfspec.checks import whole
from selfspec.engine.engine import Engine
from selfspec.engine.finished import Finished, as_samples
from selfspec.files import write_bytes, write_json
from selfspec.interfaces import Samples
from selfspec.noise import row_seeds
from selfspec.progress import tracked
from selfspec.prompts import unprompted
from selfspec.sampling import Sampler

__all__ = ["draw_shards", "read_shards"]

COUNTS = ("trunk_passes", "head_passes", "drafted", "accepted")


def draw_shards(
    engine: Engine,
    sampler: Sampler,
    folder: Path,
    num: int,
    seed: int = 0,
    length: int | None = None,
    shard: int | None = None,
    rank: int = 0,
    world: int = 1,
    about: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> int:
    """Draw `num` rows from nothing into a folder.

    Args:
        engine: of the sampler's model, idle.
        sampler: draws them.
        folder: made if missing; of an earlier call with the same arguments, it is completed: shards
            that are missing or cut short are drawn.
        num: rows in all.
        seed: of the run.
        length: tokens a row; by default drawn as those of the training data, or the model's.
        shard: rows a file, and what a killed process loses at most; by default that of the earlier
            call, or a 64th of `num`, between 64 and 4096.
        rank, world: this process draws every `world`-th shard, from `rank` on.
        about: JSON values that say what is drawn; an earlier call must have had the same.
        progress: show a bar over this process's rows.

    Returns:
        The rows that this call has drawn.

    Raises:
        ValueError: `num` or `shard` below 1, or the folder is of another run or of none.
    """
    whole("num", num, least=1)
    if shard is None:
        shard = (_about(folder) or {}).get("shard") or min(max(64, -(-num // 64)), 4096)
    shard = whole("shard", shard, least=1)
    _claim(folder, {"num": num, "seed": seed, "length": length, "shard": shard,
                    "blocks": [engine.model.num_trunk_blocks, engine.model.num_head_blocks],
                    **(about or {})})  # fmt: skip
    starts = range(rank * shard, num, world * shard)
    todo = [start for start in starts if not _is_there(_path(folder, start // shard))]
    sizes = {start: min(shard, num - start) for start in starts}
    total, drawn = sum(sizes.values()), sum(sizes[start] for start in todo)
    with tracked(total=total, initial=total - drawn, unit="row", progress=progress) as bar:
        seeds = {start: row_seeds(seed, sizes[start], first=start) for start in todo}
        for start, rows in _finished(engine, sampler, seeds, length, bar):
            _write(_path(folder, start // shard), rows, seeds[start])
    return drawn


def read_shards(folder: Path) -> Iterator[Samples]:
    """The shards of a folder that are finished, in their order, one at a time.

    Raises:
        ValueError: the folder has no run, or a shard is broken.
    """
    about = _about(folder)
    if about is None:
        raise ValueError(f"`folder` must hold a run.json, got {str(folder)!r}")
    blocks = dict(zip(("trunk_blocks", "head_blocks"), about["blocks"], strict=True))
    for path in sorted(folder.glob("*.safetensors")):
        try:
            stored = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: not a readable shard ({error})") from error
        columns: dict[str, Any] = {name: stored[name].long() for name in ("tokens", *COUNTS)}
        width = columns["tokens"].shape[1]
        pad = torch.arange(width) >= stored["sizes"].unsqueeze(1)
        yield Samples(**columns, pad=pad, **blocks)


def _finished(
    engine: Engine, sampler: Sampler, seeds: Mapping[int, Tensor], length: int | None, bar: tqdm
) -> Iterator[tuple[int, Samples]]:
    """Shards as they are complete; the next one is handed in before the engine runs dry."""
    model = sampler.model
    open_: dict[int, tuple[range, list[Finished], Tensor, Tensor]] = {}

    def submitted() -> Iterator[range]:
        for start, rows in seeds.items():
            tokens, pad = unprompted(
                rows, model.mask_id, engine.length, model.lengths, length, model.frame
            )
            open_[start] = (engine.submit(sampler, tokens, rows, pad), [], tokens, pad)
            yield open_[start][0]

    for rows in engine.results(submitted()):
        bar.update(len(rows.index))
        for start, (numbers, parts, tokens, pad) in list(open_.items()):
            own = (rows.index >= numbers.start) & (rows.index < numbers.stop)
            parts.append(rows.rows(own))
            if sum(len(part.index) for part in parts) == len(numbers):
                del open_[start]
                yield start, as_samples(model, parts, tokens, pad)


def _write(path: Path, samples: Samples, seeds: Tensor) -> None:
    small = torch.uint8 if int(samples.tokens.max()) < 256 else torch.int32
    columns = {name: getattr(samples, name).to(torch.int32) for name in COUNTS}
    assert samples.pad is not None
    sizes = (~samples.pad).sum(1, dtype=torch.int32)
    columns |= {"tokens": samples.tokens.to(small), "sizes": sizes, "seeds": seeds}
    write_bytes(path, safetensors.torch.save(columns))


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Say what the folder holds, or check that it already says so."""
    folder.mkdir(parents=True, exist_ok=True)
    # Listed before it is read: another process may begin the same run in between.
    empty = all(path.suffix == ".part" for path in folder.iterdir())
    known, about = _about(folder), json.loads(json.dumps(about))
    if known is None:
        if not empty:
            raise ValueError(f"{folder}: must be empty or hold a run.json, got other files")
        return write_json(folder / "run.json", about)
    for name in about.keys() | known.keys():
        if known.get(name) != about.get(name):
            raise ValueError(f"`{name}` must be {known.get(name)!r}, as in {folder / 'run.json'}, "
                             f"got {about.get(name)!r}")  # fmt: skip


def _about(folder: Path) -> dict[str, Any] | None:
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path}: must be a JSON object, got {about!r}")
    return about


def _is_there(path: Path) -> bool:
    """Whether a shard is there, and as long as its header says: the rest is not read."""
    try:
        with safetensors.safe_open(path, "pt"):
            return True
    except (FileNotFoundError, safetensors.SafetensorError):
        return False


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"
