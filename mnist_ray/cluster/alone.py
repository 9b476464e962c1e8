"""Ray Data without its helpers, on a cluster that a job has started for itself.

Ray Data starts three actors on the node of the driver. Each is a process that imports Ray Data, and until all of them run, Ray
Data sends no work. One collects figures for a dashboard, one knows where the scoring actors are, and one divides the cluster
among several datasets. On a cluster of one node and one dataset, their answers are known (docs/decisions/0013).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from typing import Any


class _Nothing:
    """Stands for a method of an actor. A call does nothing."""

    def remote(self, *_: object, **__: object) -> None:
        """Do nothing."""


class _Locations:
    """Stands for the actor that knows where the others are."""

    update_actor_location = _Nothing()


class _Coordinator:
    """Stands for the actor that divides the cluster. All of it belongs to this job."""

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
    """Keep Ray Data from starting its helpers, inside this block. What another version of Ray does not have stays as it is."""
    pool = "execution.operators.actor_pool_map_operator"
    with ExitStack() as stack:
        for name in ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics"):
            stack.enter_context(_replaced("stats", "_StatsManager", name, staticmethod(_ignore)))
        coordinator = ("cluster_autoscaler.rate_based_cluster_autoscaler", "", "DefaultAutoscalingCoordinator", _Coordinator)
        stack.enter_context(_replaced(*coordinator))
        stack.enter_context(_replaced(pool, "", "get_or_create_actor_location_tracker", _Locations))
        stack.enter_context(_replaced(pool, "", "get_actor_locations", dict.fromkeys))  # None: the location is not known
        yield


@contextmanager
def _replaced(module: str, kind: str, name: str, value: Any) -> Iterator[None]:
    """Replace the value of a name in a module of Ray Data, or in a class there."""
    place: Any = None
    with suppress(ImportError, AttributeError):
        place = import_module(f"ray.data._internal.{module}")
        place = getattr(place, kind) if kind else place
    before = vars(place).get(name) if place else None
    if before is None:
        yield
        return
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
