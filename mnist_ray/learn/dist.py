"""The only caller of torch.distributed. Every function here also works in a single process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnist_ray.errors import MnistRayError, from_status

T = TypeVar("T")


def _is_distributed() -> bool:
    return td.is_available() and td.is_initialized()


def rank() -> int:
    """This worker's number, from 0."""
    return td.get_rank() if _is_distributed() else 0


def world() -> int:
    """The number of workers."""
    return td.get_world_size() if _is_distributed() else 1


def wrap(model: nn.Module, example: Tensor) -> nn.Module:
    """The model with gradients averaged over all workers in the backward pass; the model itself if there is one worker."""
    if world() == 1:
        return model
    # Calibration sets the batch statistics, so no step needs to broadcast them.
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    # DDP reorders its gradients after the first backward pass, and the last bits of a sum over three or more workers depend on
    # that order. So run one pass now: a continued run then begins in the same order as an uninterrupted one.
    (wrapped(example).sum() * 0.0).backward()
    wrapped.zero_grad()
    return wrapped


def _on_backend(tensor: Tensor) -> Tensor:
    return tensor.to("cuda" if td.get_backend() == "nccl" else "cpu", copy=True)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all workers, as a tensor on the CPU."""
    if world() == 1:
        return tensor.cpu()
    moved = _on_backend(tensor)
    td.all_reduce(moved)
    return moved.cpu()


def from_rank_0(values: list[int]) -> list[int]:
    """Rank 0's integers on every worker."""
    if world() == 1:
        return values
    moved = _on_backend(torch.tensor(values))
    td.broadcast(moved, 0)
    return [int(value) for value in moved]


def broadcast_bytes(data: bytes | None) -> bytes | None:
    """Rank 0's bytes (or None) on every worker."""
    if world() == 1:
        return data
    (length,) = from_rank_0([-1 if data is None else len(data)])
    if length < 0:
        return None
    mine = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(length, dtype=torch.uint8)
    moved = _on_backend(mine)
    td.broadcast(moved, 0)
    return moved.cpu().numpy().tobytes()


def on_rank_0(task: Callable[[], T]) -> T | None:
    """The result of a task that only rank 0 runs; None on the other workers.

    Collective. If the task raises a MnistRayError, every worker raises an error of its class, so that none waits for rank 0.
    """
    result, failure = None, None
    if rank() == 0:
        try:
            result = task()
        except MnistRayError as error:
            failure = error
    (status,) = from_rank_0([failure.exit_status if failure else 0])
    if status:
        raise failure or from_status(status, "rank 0 failed")
    return result
