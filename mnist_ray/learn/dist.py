"""The only caller of torch.distributed. Every function here also works in a single process.

If another worker is gone, they raise PeersLostError.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed import GradBucket, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from mnist_ray.errors import MnistRayError, first_line
from mnist_ray.learn.control import Meeting, PeersLostError

T = TypeVar("T")
FEW_WORKERS = 4
"""Workers that send their gradients to each other directly. The traffic of each grows with their number."""
FORM_S = 60.0
"""Seconds that a worker waits for the others when they form their process group."""


@contextmanager
def _with_peers() -> Iterator[None]:
    """Raise PeersLostError for a failure to communicate. PyTorch raises a RuntimeError for it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeersLostError(first_line(error)) from error


@contextmanager
def group(meeting: Meeting, device: str) -> Iterator[None]:
    """Inside this block, the workers of a meeting form a process group, for a `device` cpu or cuda.

    Raises PeersLostError if a worker is gone.
    """
    if meeting.world == 1:
        yield
        return
    with _with_peers():
        wait = timedelta(seconds=FORM_S)
        if meeting.rank == 0:  # it chooses a free port
            store = TCPStore(meeting.host, 0, is_master=True, timeout=wait, wait_for_workers=False)
            meeting.from_rank_0((meeting.host, store.port))
        else:
            store = TCPStore(*meeting.from_rank_0(None), is_master=False, timeout=wait)
        # Values on the CPU, such as counts, are exchanged over gloo, so that they do not wait for the GPU.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        td.init_process_group(backend, store=store, rank=meeting.rank, world_size=meeting.world)
    yield
    td.destroy_process_group()  # not after an error: the others would fail, too, before Ray has read the error


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
    with _without_compiler():
        # Calibration sets the batch statistics, so no step needs to broadcast them.
        with _with_peers():
            wrapped = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
            if example.device.type == "cpu" and world() <= FEW_WORKERS:  # over gloo
                wrapped.register_comm_hook(None, _exchange)
        # DDP reorders its gradients after the first backward pass, and the last bits of a sum over three or more workers may
        # depend on that order. So run one pass now: a continued run then begins in the same order as an uninterrupted one.
        backward(wrapped(example).sum() * 0.0)
    wrapped.zero_grad()
    return wrapped


def _exchange(_: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The mean of the gradients in a bucket over all workers. Each worker sends its own to all others.

    Gloo's all-reduce passes pieces on in a ring, which takes three times as long for so few gradients: 66,000 to 300,000. Here,
    every worker adds them in the order of the ranks, so all have the same last bits.
    """
    parts = [torch.empty_like(bucket.buffer()) for _ in range(world())]
    parts[rank()] = bucket.buffer()
    others = [other for other in range(world()) if other != rank()]
    works: list[Any] = [td.isend(parts[rank()], other) for other in others]
    works += [td.irecv(parts[other], other) for other in others]
    for work in works:
        work.wait()
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(reduce(torch.add, parts) / world())
    return done


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Answer for PyTorch's compiler that it is not in use.

    DDP imports it only to ask for that, when it is made and when it is first called: 900 modules, 1 to 3 s of every worker. If
    DDP wants anything else from it, it is imported after all.
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(name)
    stand_in.utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization")
    stand_in.disable = lambda function, *_, **__: function

    def other(attribute: str) -> Any:
        sys.modules.pop(name, None)
        return getattr(importlib.import_module(name), attribute)

    stand_in.__getattr__ = other
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def backward(loss: Tensor) -> None:
    """The backward pass from a scalar, in which a wrapped model averages its gradients over all workers."""
    try:
        loss.backward()
    except RuntimeError as error:  # of the communication, or of the network itself: then no other start would help
        if world() == 1 or not _is_of_communication(error):
            raise
        raise PeersLostError(first_line(error)) from error


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether an error comes from the backend that carries messages. Gloo's has no type of its own, but names a file of Gloo.

    A GPU that fails counts, too: another start may get another GPU.
    """
    return isinstance(error, td.DistError | torch.AcceleratorError) or "gloo" in str(error).lower()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all workers, as a tensor on the CPU."""
    if world() == 1:
        return tensor.cpu()
    summed = tensor.to("cpu", copy=True)
    with _with_peers():
        td.all_reduce(summed)
    return summed


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
        with _with_peers():
            td.broadcast_object_list(outcome, src=0)
    result, failure = outcome
    if failure:
        raise failure
    return result  # type: ignore[no-any-return]
