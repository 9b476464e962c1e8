"""Scoring without Ray: units are scored by processes of this machine, one for each core (docs/decisions/0016)."""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from mnist_ray.data.digits import Predict
from mnist_ray.errors import ClusterError, first_line
from mnist_ray.run import forkserver
from mnist_ray.run.ahead import ahead
from mnist_ray.run.owner import fenced
from mnist_ray.run.probe import crashing_inputs
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.plan import UnitRef, load_unit
from mnist_ray.scoring.planner import Planner
from mnist_ray.scoring.unit import score_unit

R = TypeVar("R")
MOST_DEATHS = 10
"""Number of times that scoring processes are started again."""
GPU_BYTES = 2**30
"""Memory of a GPU that a scoring process needs, most of it for CUDA itself."""
TICK_S = 0.5
"""Seconds without a result after which a job looks whether it was asked to stop."""
POLL_S = 0.05
"""Seconds to wait for the next planned unit before looking for results again."""
END_S = 3.0
"""Seconds that processes have to finish their units at the end. Then they are killed."""
_ALL_PLANNED = object()
_AGAIN = "run again with --resume to score the rest"


def cores() -> int:
    """CPU cores that this process may use, by its affinity and by the limits of its container."""
    with warnings.catch_warnings(action="ignore"):  # joblib warns if it has no shared memory
        from joblib import cpu_count

    return int(cpu_count())


@cache
def predictor(bundle: str, device: str, precision: str) -> Predict:
    """The tested model of a bundle as a function of digits. Raises ModelError.

    On the CPU it is single-threaded: one process runs per core.
    """
    import torch

    from mnist_ray.artifact.bundle import load
    from mnist_ray.artifact.predictor import Predictor, pick_device

    torch.set_num_threads(1)
    return Predictor.ready(load(bundle), pick_device(device), precision)


@contextmanager
def scoring(
    planner: Planner, job: Job, bundle: str, device: str, number: int, warn: Callable[[str], None]
) -> Iterator[Generator[UnitResult | None]]:
    """The results of units that processes score, each as soon as it is there; None after at most `TICK_S` without one.

    `number` is that of the processes; 0 starts one for each core, or as many as the memory of the GPU has room for. They end
    with the results, with this block, and with this process. The first one loads and tests the model before the block begins,
    and inputs are listed until then. Raises MnistRayError.
    """
    pool = _Pool(job, bundle, device, number, warn)
    with forkserver.used():
        try:
            pool.start(planner.look_ahead)
            yield pool.results(planner)
        finally:
            pool.end()


class _Pool:
    """Processes that score units, forked from one that has imported PyTorch."""

    def __init__(self, job: Job, bundle: str, device: str, number: int, warn: Callable[[str], None]) -> None:
        self._job, self._bundle, self._device, self._warn = job, bundle, device, warn
        self._number, self._chosen = number or cores(), bool(number)
        self._running: dict[Future[UnitResult], UnitRef] = {}

    def start(self, meanwhile: Callable[[Callable[[], bool]], None]) -> None:
        """Start the processes and load the model. Raises ModelError or ClusterError, or what `meanwhile` raises."""
        with ThreadPoolExecutor(1) as thread:
            started = thread.submit(self._start)
            try:
                meanwhile(started.done)
                started.result()
            except BrokenProcessPool:
                raise ClusterError(
                    "the first scoring process ended while it started: it was killed, memory ran out, or the lines above "
                    'say why; a script of your own calls `score` below `if __name__ == "__main__":`'
                ) from None
            except BaseException as error:  # the thread must not wait for a process that hangs
                if isinstance(error, KeyboardInterrupt):
                    forkserver.kill()
                self.end()
                raise

    def _start(self) -> None:
        try:
            self._executor = ProcessPoolExecutor(self._number, forkserver.start(), _begin, (dict(os.environ),))
        except OSError as error:  # its locks are files there
            raise ClusterError(f"scoring processes cannot be started: {error.strerror}; free some space in /dev/shm") from None
        room = self._submit(_load, self._bundle, self._device, self._job.precision).result()
        if room and self._number > room and not self._chosen:
            self.end()
            self._number = room
            self._start()

    def end(self) -> None:
        """Wait until the processes have finished their units, or kill them after `END_S` or a KeyboardInterrupt."""
        if not hasattr(self, "_executor"):  # it could not be made
            return
        processes = list((self._executor._processes or {}).values())
        manager: threading.Thread | None = getattr(self._executor, "_executor_manager_thread", None)
        until = time.monotonic() + END_S
        try:
            self._executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.join(max(0.0, until - time.monotonic()))
        finally:
            for process in processes:
                process.kill()  # does nothing to one that has ended
        if manager:  # else it may close its pipe while Python, which ends, writes to it
            manager.join(END_S)

    def results(self, planner: Planner) -> Generator[UnitResult | None]:
        """At most two units per process wait. A thread plans them, so that no process waits for the listing of inputs."""
        units, deaths = ahead(planner.pending(), POLL_S), 0
        lost: list[UnitRef] = []
        try:
            while True:
                try:
                    if lost:
                        yield from self._score_again(lost)
                    more = self._submit_next(units)
                    if not (more or self._running):
                        return
                    yield from self._done(0.0 if more else TICK_S)
                except BrokenProcessPool:
                    deaths += 1
                    if deaths > MOST_DEATHS:
                        raise ClusterError(f"scoring processes ended {deaths} times; {_AGAIN}") from None
                    self._warn("a scoring process ended unexpectedly; its units are read again, one by one")
                    lost += self._running.values()
                    self._running.clear()
        finally:  # before the job gives up the output folder
            planner.stop()
            units.close()
            self.end()

    def _submit_next(self, units: Iterator[UnitRef | None]) -> bool:
        """Submit units until enough wait for a process. Returns whether the next one is not planned yet."""
        while len(self._running) <= 2 * self._number:
            ref = next(units, _ALL_PLANNED)
            if not isinstance(ref, UnitRef):
                return ref is None
            self._running[self._submit(score_ref, ref, self._job, self._bundle, self._device)] = ref
        return False

    def _submit(self, call: Callable[..., R], *args: object) -> Future[R]:
        """A call in one of the processes. If they have ended, or none can be started, its result is a BrokenProcessPool."""
        try:
            return self._executor.submit(call, *args)
        except BrokenProcessPool as error:
            broken = error
        except (EOFError, OSError) as error:  # the process that forks them was killed, or the system has no room for one more
            broken = BrokenProcessPool(first_line(error))
        future: Future[R] = Future()
        future.set_exception(broken)
        return future

    def _done(self, wait_s: float) -> Iterator[UnitResult | None]:
        """The results that are there, or None if none came for `wait_s`. Raises BrokenProcessPool."""
        done = wait(self._running, wait_s, return_when=FIRST_COMPLETED).done
        for future in done:
            result = future.result()
            del self._running[future]
            yield result
        if not done:
            yield None

    def _score_again(self, lost: list[UnitRef]) -> Iterator[UnitResult]:
        """Start new processes, and score the lost units one by one, without the inputs that end a process.

        Removes the scored units from `lost`. Raises BrokenProcessPool if the new processes end before they have a unit.
        """
        self.end()
        self._start()
        while lost:
            ref = lost[0]
            crashed = crashing_inputs(self._job.out, ref)
            try:
                result = self._submit(score_ref, ref, self._job, self._bundle, self._device, crashed).result()
            except BrokenProcessPool:
                raise ClusterError(f"unit {ref.id} ends every process that scores it, or memory runs out; {_AGAIN}") from None
            del lost[0]
            yield result


def _begin(environment: dict[str, str]) -> None:
    """Prepare a scoring process, with the environment of the job.

    A user's own program may have started the process that this one is forked from, before it set the credentials of a storage.
    """
    os.environ.clear()
    os.environ.update(environment)
    follow_parent()


def follow_parent() -> None:
    """Make this process end with the one that started it, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; only the driver handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _load(bundle: str, device: str, precision: str) -> int:
    """Load the model, which cannot cross the process boundary. Returns how many processes can share its GPU; 0 without a GPU.

    Raises ModelError, or ClusterError if there is no memory for PyTorch.
    """
    try:
        import torch
    except ImportError:  # the process that forked this one has seen the cause, and could not tell it
        raise ClusterError(
            "a scoring process cannot load PyTorch: memory is short (see `ulimit -v`), or PyTorch is damaged; "
            "`python -c 'import torch'` says why"
        ) from None
    predictor(bundle, device, precision)
    if device == "cpu" or not torch.cuda.is_available():
        return 0
    free, _ = torch.cuda.mem_get_info()
    return 1 + free // GPU_BYTES


def score_ref(ref: UnitRef, job: Job, bundle: str, device: str, crashed: Collection[int] = ()) -> UnitResult:
    """Score a unit of the plan with a model, which stays loaded. `crashed` is that of `score_unit`. Raises MnistRayError."""
    try:
        with fenced(job.out, job.token):
            return score_unit(load_unit(job.out, ref), job, predictor(bundle, device, job.precision), crashed)
    except MemoryError as error:
        raise ClusterError(
            f"memory ran out in unit {ref.id}: {first_line(error)}; use fewer workers, and run again with --resume"
        ) from None
