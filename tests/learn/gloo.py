"""Worker processes that communicate over gloo. They start once per test session, because importing torch takes seconds."""

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import torch

MAX_WORKERS = 3
TIMEOUT_S = 120


@cache
def _workers() -> list[ProcessPoolExecutor]:
    """One executor per worker, so that a call can name the process that runs it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mnist_ray.learn.loop"])
    return [ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) for _ in range(MAX_WORKERS)]


def _call(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        return function(*args)
    finally:
        torch.distributed.destroy_process_group()


def run_workers(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of a function on each of `world` workers, which form a new process group for this call."""
    if world == 1:
        return [function(*args)]
    with tempfile.TemporaryDirectory() as folder:
        calls = [pool.submit(_call, rank, world, folder, function, args) for rank, pool in enumerate(_workers()[:world])]
        return [call.result(TIMEOUT_S) for call in calls]
