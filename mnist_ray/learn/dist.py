"""The only caller of torch.distributed. Every function here also works in a single process."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnist_ray.errors import MnistRayError

T = TypeVar("T")


def rank() -> int:
    """This worker's number, from 0."""
    return td.get_rank() if td.is_initialized() else 0


def world() -> int:
    """The number of workers."""
    return td.get_world_size() if td.is_initialized() else 1


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


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all workers, as a tensor on the CPU."""
    if world() == 1:
        return tensor.cpu()
    moved = tensor.to("cuda" if td.get_backend() == "nccl" else "cpu", copy=True)
    td.all_reduce(moved)
    return moved.cpu()


def on_rank_0(task: Callable[[], T]) -> T:
    """The result, on every worker, of a task that only rank 0 runs. Collective; the result must be picklable.

    If the task raises a MnistRayError, every worker raises it, so that none waits for rank 0.
    """
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = task()
        except MnistRayError as error:
            outcome[1] = error
    if world() > 1:
        td.broadcast_object_list(outcome, src=0)
    result, failure = outcome
    if failure:
        raise failure
    return result  # type: ignore[no-any-return]
