"""Scoring without Ray: units are scored by processes of this machine, one for each core (docs/decisions/0016)."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache

from mnist_ray.data.digits import Predict
from mnist_ray.errors import ClusterError
from mnist_ray.run.owner import fenced
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.plan import UnitRef, load_unit
from mnist_ray.scoring.unit import score_unit


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@cache
def predictor(bundle: str, device: str) -> Predict:
    """The tested model of a bundle as a function of digits. Raises ModelError.

    On the CPU it is single-threaded: one process runs per core.
    """
    import torch

    from mnist_ray.artifact.bundle import load
    from mnist_ray.artifact.predictor import Predictor, pick_device

    torch.set_num_threads(1)
    return Predictor.ready(load(bundle), pick_device(device))


@contextmanager
def scoring(refs: Iterable[UnitRef], job: Job, bundle: str, device: str) -> Iterator[Generator[UnitResult]]:
    """The results of units that processes score, each as soon as it is there. Raises MnistRayError.

    The processes end with this block, and with this process. They are forked from one that has imported PyTorch. The first one
    loads and tests the model before the block begins.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "mnist_ray.artifact.predictor"])
    pool = ProcessPoolExecutor(cores(), context, initializer=follow_parent)
    ended = (
        "the first scoring process ended while it started: it ran out of memory, or the lines above say why; "
        'a script of your own calls `score` below `if __name__ == "__main__":`'
    )
    try:
        pool.submit(_load, bundle, device).result()
        ended = "a scoring process was killed, or ran out of memory; run again with --resume"
        yield _stream(pool, refs, job, bundle, device)
    except BrokenProcessPool:
        raise ClusterError(ended) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _stream(pool: ProcessPoolExecutor, refs: Iterable[UnitRef], job: Job, bundle: str, device: str) -> Generator[UnitResult]:
    """At most two units per core wait for a process, so that `refs` is read no faster than units are scored."""
    running: set[Future[UnitResult]] = set()
    try:
        for ref in refs:
            running.add(pool.submit(score_ref, ref, job, bundle, device))
            if len(running) > 2 * cores():
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(running))
    finally:  # before the job gives up the output folder
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """Make this process end with the one that started it, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; only the driver handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _load(bundle: str, device: str) -> None:
    """Load the model. It cannot be returned: it does not cross the process boundary."""
    predictor(bundle, device)


def score_ref(ref: UnitRef, job: Job, bundle: str, device: str) -> UnitResult:
    """Score a unit of the plan with a model, which stays loaded. Raises MnistRayError."""
    with fenced(job.out, job.token):
        return score_unit(load_unit(job.out, ref), job, predictor(bundle, device))
