"""Scoring in this process: units in threads, each with a core of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait

from mnist_ray.data.predictions import Predict
from mnist_ray.scoring.job import UnitResult
from mnist_ray.scoring.plan import UnitRef


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def stream(refs: Iterable[UnitRef], score: Callable[[UnitRef], UnitResult]) -> Iterator[UnitResult]:
    """Score units on all cores, those planned first first; a few are asked for ahead."""
    running: set[Future[UnitResult]] = set()
    with ThreadPoolExecutor(cores()) as pool:
        try:
            for ref in refs:
                running.add(pool.submit(score, ref))
                if len(running) > 2 * cores():
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(running))
        finally:
            pool.shutdown(cancel_futures=True)


def predictor(bundle: str, device: str) -> Predict:
    """The model as a function of digits, on one thread of a CPU: there are as many that use one. Raises ModelError."""
    import torch

    from mnist_ray.artifact.bundle import load
    from mnist_ray.artifact.predictor import Predictor, pick_device

    torch.set_num_threads(1)
    return Predictor.ready(load(bundle), pick_device(device))
