"""Scoring without Ray: units in processes of this machine, one for each core (docs/decisions/0016)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache

from mnist_ray.data.digits import Predict
from mnist_ray.errors import ClusterError
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.plan import UnitRef, load_unit
from mnist_ray.scoring.unit import score_unit


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def predictor(bundle: str, device: str) -> Predict:
    """The model as a function of digits, on one thread of a CPU: there are as many that use one. Raises ModelError."""
    import torch

    from mnist_ray.artifact.bundle import load
    from mnist_ray.artifact.predictor import Predictor, pick_device

    torch.set_num_threads(1)
    return Predictor.ready(load(bundle), pick_device(device))


_predictor = cache(predictor)


class Workers:
    """Processes that have the model, and score units of one job."""

    def __init__(self, pool: ProcessPoolExecutor, bundle: str, device: str) -> None:
        """Load and test the model in the first one. Raises ModelError."""
        self._pool, self._model = pool, (bundle, device)
        pool.submit(_load, *self._model).result()

    def stream(self, refs: Iterable[UnitRef], job: Job) -> Iterator[UnitResult]:
        """Score units, those planned first first; a few are asked for ahead. Raises MnistRayError."""
        running: set[Future[UnitResult]] = set()
        try:
            for ref in refs:
                running.add(self._pool.submit(_score, ref, job, *self._model))
                if len(running) > 2 * cores():
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(running))
        except BrokenProcessPool:
            raise ClusterError("a scoring process was killed, or ran out of memory; run again with --resume") from None


@contextmanager
def workers(bundle: str, device: str) -> Iterator[Workers]:
    """Processes forked from one that has imported what they need; they end with this block, and with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([predictor.__module__, "mnist_ray.artifact.predictor"])
    pool = ProcessPoolExecutor(cores(), context, initializer=_begin)
    try:
        yield Workers(pool, bundle, device)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key pressed reaches all processes: the first one alone decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _load(bundle: str, device: str) -> None:
    _predictor(bundle, device)


def _score(ref: UnitRef, job: Job, bundle: str, device: str) -> UnitResult:
    return score_unit(load_unit(job.out, ref), job, _predictor(bundle, device))
