"""Ray on a cluster that a job has started for itself: without processes that answer what is known there (docs/decisions/0013).

Each is a Python process that imports Ray for seconds, and the job would wait for it. What another version of Ray does not have
stays as it is.
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pkgutil import resolve_name
from typing import Any

TICK_S = 0.1
"""Seconds between two looks whether the controller of Ray Train is to end."""


@contextmanager
def few_processes(started: Callable[[], object]) -> Iterator[None]:
    """Let `ray.init` start a small cluster inside this block. `started` is called while its last processes start.

    Nobody uses the autoscaler, the monitor of log files, the dashboard, and what Ray's agent does for it. Besides, the agent
    would take port 52365, and then a head that starts on this machine accepts no jobs.
    """
    from ray._private import parameter, services

    own = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)  # type: ignore[arg-type]
    start = services.start_raylet

    def start_raylet(*args: Any, **settings: Any) -> Any:
        process = start(*args, **settings)
        started()
        return process

    with ExitStack() as stack:
        for module, name, value in (
            ("parameter", "RayParams", own),
            ("services", "start_api_server", lambda *_, **__: ("", None)),
            ("services", "start_raylet", start_raylet),
            ("utils", "get_dashboard_dependency_error", ImportError),  # the agent then leaves out what needs more packages
        ):
            stack.enter_context(replaced(f"ray._private.{module}", name, value))
        yield


class _Nothing:
    """Stands for a method of an actor. A call does nothing."""

    def remote(self, *_: object, **__: object) -> None:
        """Do nothing."""


class _Locations:
    """Stands for the actor of Ray Data that knows where the others are."""

    update_actor_location = _Nothing()


class _Coordinator:
    """Stands for the actor of Ray Data that divides the cluster among datasets. All of it belongs to this job."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def request_resources(self, *_: object, **__: object) -> None:
        """Nobody adds resources."""

    def cancel_request(self) -> None:
        """Nothing was requested."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """What the only node has."""
        import ray

        return {ray.get_runtime_context().get_node_id(): ray.cluster_resources()}


def _ignore(*_: object, **__: object) -> None: ...


@contextmanager
def without_helpers() -> Iterator[None]:
    """Keep Ray Data from starting its helpers inside this block.

    One collects figures for a dashboard, one knows where the scoring actors are, and one divides the cluster.
    """
    pool, stats = "execution.operators.actor_pool_map_operator", "stats:_StatsManager"
    with ExitStack() as stack:
        for place, name, value in (
            (stats, "register_dataset_to_stats_actor", staticmethod(_ignore)),
            (stats, "update_execution_metrics", staticmethod(_ignore)),
            (stats, "update_iteration_metrics", staticmethod(_ignore)),
            ("cluster_autoscaler.rate_based_cluster_autoscaler", "DefaultAutoscalingCoordinator", _Coordinator),
            (pool, "get_or_create_actor_location_tracker", _Locations),
            (pool, "get_actor_locations", dict.fromkeys),  # None: the location is not known
        ):
            stack.enter_context(replaced(f"ray.data._internal.{place}", name, value))
        yield


class _Meeting:
    """The actor through which rank 0 tells all workers of Ray Train something. That of Ray Train imports all of Ray Train."""

    def __init__(self, **_: object) -> None:
        self._calls: Counter[int] = Counter()
        self._said: dict[int, asyncio.Future[Any]] = {}

    async def broadcast_from_rank_zero(self, world_rank: int, data: Any, **_: object) -> Any:
        """What rank 0 gives as `data` when it calls this as often as the caller has."""
        self._calls[world_rank] += 1
        said = self._said.setdefault(self._calls[world_rank], asyncio.get_running_loop().create_future())
        if world_rank == 0:
            said.set_result(data)
        return await said


async def _until(ended: threading.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do this work, and cancel it once `ended` is set."""
    task = asyncio.create_task(work)
    while not (ended.is_set() or task.done()):
        await asyncio.wait([task], timeout=TICK_S)
    task.cancel()  # does nothing if it is done
    await task


def run_controller(ended: threading.Event, **settings: Any) -> Any:
    """Run the controller of Ray Train in this process, which usually is an actor; returns the Result.

    Raises CancelledError soon after `ended` is set.
    """
    import ray
    from ray.train.v2._internal.execution.controller import TrainController

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # its errors reach the user as ours
    meeting = ray.remote(num_cpus=0)(_Meeting)
    with (
        replaced("ray.train.v2._internal.execution.worker_group.worker_group", "SynchronizationActor", meeting),
        replaced("ray.runtime_context:RuntimeContext", "current_actor", None),  # workers would ask it for checkpoints of Ray
    ):
        controller = TrainController(**settings)
        asyncio.run(_until(ended, controller.run()))
    return controller.get_result()


@contextmanager
def replaced(place: str, name: str, value: Any) -> Iterator[None]:
    """Replace the value of a name in a module, or in a class of a module: `module:Class`."""
    before = owner = None
    with suppress(ImportError, AttributeError):
        owner = resolve_name(place)
        before = vars(owner).get(name)
    if before is None:
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
