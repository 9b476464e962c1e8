"""The Ray cluster of a job: join or start it, size its workers, and explain its failures."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mnist_ray.config import Device
from mnist_ray.console import Console
from mnist_ray.data.storage import absolute, is_local
from mnist_ray.errors import ClusterError, first_line

ANSWER_S = 10.0
"""Seconds to wait for a cluster's first answer."""
START_S, STARTS = 30, 20
"""Seconds that one start of the workers waits for nodes, and the number of starts: 10 minutes in all.

One start is short, because Ray may still count a node that has just died. With `--workers MIN:MAX` the next start is smaller.
"""
WORKERS_PER_CPU = 4
"""Largest number of workers that share one CPU (docs/decisions/0008)."""


@contextmanager
def cluster(address: str) -> Iterator[bool]:
    """Connect to the cluster at `address` or `RAY_ADDRESS`, or start one for this job alone; yields whether it was started.

    Raises ClusterError.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a future default; without it, every task warns
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")  # the default of 2 s delays the end of a job
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_S))
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    owns_cluster = target == "local"
    dashboard = False if owns_cluster else None
    if owns_cluster:  # this machine gets no preemption notices, and nobody scrapes the metrics of a temporary cluster
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)  # the job prints its own messages
    _require_answer(target)
    try:
        ray.init(address=target, log_to_driver=False, configure_logging=False, include_dashboard=dashboard)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        if owns_cluster:
            raise ClusterError(
                f"Ray could not be started here: {first_line(error)}; use --workers 0 to run without Ray"
            ) from None
        raise _unreachable(target, first_line(error)) from None
    try:
        yield owns_cluster
    finally:
        ray.shutdown()


def warn_of_lost_output(out: str, console: Console) -> None:
    """Warn if `out` is lost with the job: in a submitted job, a relative path lies in a temporary working directory."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and is_local(out) and not os.path.isabs(out):
        console.line(
            f"warning: {absolute(out)} is in a temporary folder of this job; give --out an absolute path or a URI to keep it"
        )


def _unreachable(target: str, why: str) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers at {target}: {why} (give HOST:6379 on a machine of the cluster, or submit the job with "
        "`ray job submit --address http://HOST:8265`; without --address and RAY_ADDRESS, a local cluster is started)"
    )


def _require_answer(target: str) -> None:
    """Raise ClusterError if no gRPC server answers at HOST:PORT. `ray.init` would try for minutes and then exit the process."""
    if target.startswith("ray://"):
        raise _unreachable(target, "jobs do not run through Ray Client")
    if ":" not in target or os.environ.get("RAY_USE_TLS") == "1":
        return
    import grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise _unreachable(target, f"no answer within {ANSWER_S:.0f} s") from None


def resources(fewest: int, most: int, device: str) -> dict[str, float]:
    """The resources of each of `fewest` to `most` workers: one GPU if the fewest can have one each, else up to one CPU.

    Raises ClusterError if the cluster can never provide them.
    """
    gpus, cpus = _gpus_and_cpus()
    if device == "cuda" and gpus < fewest:
        raise ClusterError(
            f"--workers {fewest} --device cuda: asks for {fewest} GPUs and the cluster has {gpus:g}; ask for fewer workers"
        )
    if fewest > cpus * WORKERS_PER_CPU:
        raise ClusterError(
            f"--workers {fewest}: the cluster has {cpus:g} CPUs, and at most {WORKERS_PER_CPU} workers share one; "
            f"ask for at most {int(cpus * WORKERS_PER_CPU)}, or add nodes"
        )
    # A whole number of workers per CPU fits on nodes of every size.
    share = {"CPU": 1 / math.ceil(min(most, cpus * WORKERS_PER_CPU) / cpus)}
    return {**share, "GPU": 1.0} if device != "cpu" and gpus >= fewest > 0 else share


def size(device: str) -> int:
    """Number of workers for the cluster at its largest: one per GPU, or one per CPU if it has no GPU or `device` is cpu."""
    gpus, cpus = _gpus_and_cpus()
    return (int(gpus) if device != "cpu" else 0) or max(1, int(cpus))


def granted_device(needs: dict[str, float]) -> Device:
    """The device of workers with these resources: a GPU only if they asked for one."""
    return "cuda" if "GPU" in needs else "cpu"


def nodes(workers: int, needs: dict[str, float]) -> int:
    """Number of nodes that so many workers fill, if all nodes are like the largest one that the cluster has now."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = [min(int(there.get(name, 0) / number + 1e-9) for name, number in needs.items()) for there in alive]
    return math.ceil(workers / max(1, *fit))


def describe() -> str:
    """The resources that the cluster has now."""
    import ray

    there = ray.cluster_resources()
    return f"the cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs now"


def _gpus_and_cpus() -> tuple[float, float]:
    """The most that the cluster can have: the autoscaler's maximum, or else what the cluster has now."""
    import ray
    from ray._private.state import state

    found = state.get_max_resources_from_cluster_config() or ray.cluster_resources()
    return found.get("GPU", 0), found.get("CPU", 0)


def cause(error: BaseException) -> str:
    """The cause of a failed Ray Train job: the last line of a worker's error, or else the first line of Ray's error."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    lines = [line for failure in failures if failure for line in str(failure).strip().splitlines()]
    return lines[-1].strip() if lines else first_line(error)
