"""The two engines of a scoring job: processes of this machine, and actors of a Ray cluster."""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache

from mnist_ray.cluster import capacity, runtime
from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.flags import scoring_pool
from mnist_ray.run import forkserver, processes
from mnist_ray.run.ahead import import_ahead
from mnist_ray.scoring.estimate import Workers
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.planner import Planner

SMALL_JOB = 200_000
"""Inputs up to which `--workers auto` scores without Ray. They take seconds, and Ray takes ten to start."""
REPORT = "mnist_ray.report.scoring"
"""What draws the report. It imports matplotlib for half a second, so it is imported while others load the model."""
ACTORS_START_S = 1.0
"""Seconds after which the driver has started the actors, and waits until they have imported PyTorch."""


def without_ray(config: ScoreConfig, planner: Planner) -> bool:
    """Whether processes of this machine score the inputs. To know it, the first inputs may be listed."""
    return not config.needs_ray() and (config.workers != "auto" or planner.at_most(SMALL_JOB))


@contextmanager
def start(
    config: ScoreConfig, planner: Planner, job: Job, bundle: str, console: Console
) -> Iterator[tuple[int, Generator[UnitResult | None]]]:
    """The smallest number of workers, and the results. Planning and scoring begin with the first result that is asked for.

    Nothing is started if nothing is to be done. Raises MnistRayError.
    """
    if planner.at_most(0):
        yield 0, _nothing()
        return
    engine = _processes if without_ray(config, planner) else _actors
    with engine(config, planner, job, bundle, console) as started:
        yield started


def _nothing() -> Generator[UnitResult | None]:
    yield from ()


@contextmanager
def _processes(
    config: ScoreConfig, planner: Planner, job: Job, bundle: str, console: Console
) -> Iterator[tuple[int, Generator[UnitResult | None]]]:
    """Processes of this machine."""
    console.progress("loading the model")
    import_ahead(REPORT)
    number = config.processes
    with processes.scoring(planner, job, bundle, config.device, number, console.warning) as results:
        yield number or processes.cores(), results


@contextmanager
def _actors(
    config: ScoreConfig, planner: Planner, job: Job, bundle: str, console: Console
) -> Iterator[tuple[int, Generator[UnitResult | None]]]:
    """Actors of a Ray cluster that has room for them."""
    forkserver.kill()  # it was started before it was known that Ray scores the inputs
    started = threading.Event()
    with ThreadPoolExecutor(1) as meanwhile, ExitStack() as at_end:
        at_end.callback(started.set)  # so that the thread ends, even if Ray cannot start
        prepared = cache(lambda: meanwhile.submit(_prepare_for_ray, planner, started.is_set))  # only once
        with runtime.cluster(config.address, console, prepared) as alone:
            started.set()
            prepared().result()
            from mnist_ray.cluster import actors

            pool, needs, _ = _pool(config)
            capacity.wait_for_room(pool[0], needs, console)
            import_ahead(REPORT, after_s=ACTORS_START_S)
            yield pool[0], actors.stream(planner, job, bundle, pool, needs, console, alone=alone)


def _prepare_for_ray(planner: Planner, started: Callable[[], bool]) -> None:
    """What takes seconds and needs no cluster, until Ray has started. Raises MnistRayError for inputs that cannot be scored."""
    import mnist_ray.cluster.actors  # noqa: F401

    planner.look_ahead(started)


def _pool(config: ScoreConfig) -> tuple[tuple[int, int], dict[str, float], capacity.Capacity]:
    """The smallest and the largest number of actors of the connected cluster, the resources of each, and what is there."""
    has = capacity.capacity()
    fewest, most = scoring_pool(config.workers)
    gpus = config.gpus_per_actor or capacity.gpu_share(capacity.nodes())
    pool = (fewest, most) if most > 0 else (1, capacity.size(config.device, has, gpus))
    return pool, capacity.needs(pool[0], config.device, has, gpus=gpus), has


def workers(config: ScoreConfig, here: bool, console: Console) -> Workers:
    """The workers that a job would have: processes of this machine (`here`), or actors of a cluster. Raises MnistRayError."""
    if here:
        cores = processes.cores()
        number = config.processes or cores
        return Workers(number, {"CPU": 1}, number, f"they are processes of this machine, which has {cores} CPUs")
    with runtime.cluster(config.address, console):
        (_, most), needs, has = _pool(config)
        return Workers(most, needs, capacity.per_node(needs), str(has))
