"""Training on several processes.

Rank r of w has the rows r, r + w, r + 2w, … of the global batch, and draws for them what one
process would draw; the mean of the ranks' losses is the loss. Hence w ranks compute what one
computes, up to rounding (and but for dropout, whose masks belong to a rank).

    ddp     every rank holds weights, gradients, averages and moments; gradients are averaged
    fsdp    every rank holds 1/w of each; the weights of a block are gathered when it is needed

Both are PyTorch's own (`DistributedDataParallel`, and FSDP2's `fully_shard`), as is the launcher,
torchrun. What is frozen is held whole by every rank, so nothing of it travels.

Sharded modules and tensors are known by their methods: importing FSDP2 takes a second, which one
process need not wait for.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")
WHOLE_MB = 1 << 20
"""Gradients in one piece, exchanged behind the backward pass: between two GPUs joined by NVLink
that takes 2 ms for 165M of them, and nothing waits on the device beside the passes."""


class RankError(RuntimeError):
    """What every rank raises when one of them failed; the command line of rank 0 tells it."""

    on_every_rank = True


class Group(NamedTuple):
    """This process among those that train together."""

    rank: int
    world: int


def group() -> Group:
    """Rank and number of the processes; 0 and 1 where there is only this one."""
    alone = not (dist.is_available() and dist.is_initialized())
    return Group(0, 1) if alone else Group(dist.get_rank(), dist.get_world_size())


@contextmanager
def processes(device: torch.device | str | None = None) -> Iterator[None]:
    """Within the block, the processes that torchrun started are connected; one alone stays alone.

    Args:
        device: of this process; "cuda" is then the GPU of its number on this machine.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    own = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if own.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) if own.index is None else own.index)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    yield
    gc.collect()  # models hold the group, whose threads are to end before the interpreter
    dist.destroy_process_group()  # not after an error: it might wait for processes that are gone


def one_machine() -> bool:
    """Whether torchrun started all processes on this machine."""
    here, all_ = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    return here is not None and here == all_


def rows_each(batch_size: int, accumulate: int) -> int:
    """Rows of a step that every rank has.

    Raises:
        ValueError: they do not split over the processes and their micro-batches.
    """
    world = group().world
    if batch_size % (world * accumulate):
        raise ValueError(
            f"`batch_size` must be a multiple of processes × `accumulate` = "
            f"{world * accumulate}, got {batch_size}"
        )
    return batch_size // world


# The model


def distributed(loss: nn.Module, kind: str, device: torch.device) -> nn.Module:
    """`loss`, a module that computes the loss of a batch, on all ranks.

    Its parameters keep their names. With "fsdp" those that are trained become sharded tensors.
    """
    world = group().world
    if world == 1:
        return loss
    if kind == "ddp":
        cap = WHOLE_MB if one_machine() else None  # else PyTorch's own
        return DistributedDataParallel(loss, bucket_cap_mb=cap, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (world,))
    frozen = {param for param in loss.parameters() if not param.requires_grad}
    for block in trained_blocks(loss):
        fully_shard(block, mesh=mesh, ignored_params=frozen)
    fully_shard(loss, mesh=mesh, ignored_params=frozen)
    # PyTorch 2.9 moves shards of unequal size to new memory at first use: before anybody looks.
    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()
    return loss


def trained_blocks(model: nn.Module) -> list[nn.Module]:
    """The entries of the model's lists of modules, as far as they are trained."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = [block for entries in lists for block in entries]
    return [block for block in blocks if any(p.requires_grad for p in block.parameters())]


@contextmanager
def accumulating(loss: nn.Module, last: bool) -> Iterator[None]:
    """Around a micro-batch: gradients stay on their rank until the `last` one of a step."""
    if hasattr(loss, "set_requires_gradient_sync"):
        loss.set_requires_gradient_sync(last)  # type: ignore[operator]
    if isinstance(loss, DistributedDataParallel) and not last:
        with loss.no_sync():
            yield
    else:
        yield


def clip_gradients(params: Iterable[Tensor], largest: float) -> Tensor:
    """Scales the gradients to a norm of at most `largest`; the norm before, over all ranks."""
    params = list(params)
    norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    norm = whole(norm)
    nn.utils.clip_grads_with_norm_(params, largest, norm)
    return norm


def forget_gathered(loss: nn.Module) -> None:
    """Drops gathered weights, which a pass without gradients leaves behind and would go stale."""
    for module in loss.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


# Tensors


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of it only."""
    return hasattr(tensor, "full_tensor")


def shard(tensor: Tensor) -> Tensor:
    """This rank's part, which shares its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sharded_like(part: Tensor, tensor: Tensor) -> Tensor:
    """The sharded tensor of which `part` is this rank's, placed as `tensor` is."""
    if not is_sharded(tensor):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False,
        shape=tensor.shape, stride=tensor.stride(),
    )  # fmt: skip


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory of this rank's parts."""
    return sum(part.numel() * part.element_size() for part in map(shard, tensors))


def whole(tensor: Tensor) -> Tensor:
    """The tensor with its shards gathered, on every rank."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def on_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their shards gathered, one by one, in the host's memory of rank 0 alone."""
    gathered = {}
    for name, tensor in tensors.items():
        tensor = whole(tensor)
        if group().rank == 0:
            gathered[name] = tensor.cpu()
    return gathered


def mean(values: Tensor) -> Tensor:
    """The mean over the ranks."""
    world = group().world
    if world > 1:
        dist.all_reduce(values)
    return values / world


def shares(rows: int) -> Iterator[tuple[slice, int]]:
    """Which of some rows this rank takes, and for how many rows its mean stands.

    Every w-th row; what does not divide among the ranks is taken by all of them. So each makes
    equally many passes, and the ranks' means of `mean · count` add up to the sum over all rows.
    """
    rank, world = group()
    even = rows - rows % world
    if even:
        yield slice(rank, even, world), even
    if even < rows:
        yield slice(even, rows), rows - even


# Work and agreement


def share(rows: int, work: Callable[[slice], Value]) -> list[Value]:
    """What `work` makes of the ranks' parts of some rows, in order; every rank gets them all.

    Rank r of w takes the rows ⌊r·n/w⌋ … ⌊(r+1)·n/w⌋ - 1; ranks that have none are left out. Results
    are sent by pickling: keep them on the CPU.

    Raises:
        Exception: on every rank, what was raised on any.
    """
    rank, world = group()
    part = slice(rank * rows // world, (rank + 1) * rows // world)
    own: Any = None
    try:
        if part.start < part.stop:
            own = (work(part),)
    except Exception as error:
        if world == 1:
            raise
        own = error
    found = [own]
    if world > 1:
        found = [None] * world
        dist.all_gather_object(found, own)
    for result in found:
        if isinstance(result, Exception):
            raise result
    return [result[0] for result in found if result is not None]


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; the hosts wait for each other, not for their devices."""
    if group().world == 1:
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes)
    return bool(votes)


def of_first(make: Callable[[], Value]) -> Value:
    """What rank 0 makes, on every rank."""
    rank, world = group()
    made: list[Any] = [make() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(made)
    return made[0]


@contextmanager
def together() -> Iterator[None]:
    """After the block all ranks go on, or none. Nothing within it may wait for another rank.

    Raises:
        RankError: it failed on some rank. What failed on rank 0 is raised there as it is.
    """
    rank, world = group()
    if world == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    told: list[Any] = [None] * world
    dist.all_gather_object(told, None if error is None else str(error) or repr(error))
    failed = [number for number, text in enumerate(told) if text is not None]
    if error is not None and rank == failed[0] == 0:
        raise error
    if failed:
        raise RankError(f"{told[failed[0]]} (rank {failed[0]} of {world})") from error


@contextmanager
def connected(step: Callable[[], int]) -> Iterator[None]:
    """Within the block, the loss of a process has a plain error.

    Args:
        step: how far the run is.

    Raises:
        RankError: this process lost another.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if not lost:
            raise
        raise RankError(
            f"rank {group().rank} lost another process after step {step()}; start the run again to "
            f"resume from its last checkpoint ({str(error).splitlines()[0]})"
        ) from error
