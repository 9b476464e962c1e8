"""The Ray cluster of a job: join one, or start one here; what it has; and what its failures mean."""

from __future__ import annotations

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
START_S, STARTS = 30, 20
"""Seconds that a start of workers waits for busy or missing nodes, and the starts that may so fail: 10 minutes in all.

Short, because Ray may count on a node that has just died; the next start, within `--workers MIN:MAX`, is a smaller one.
"""
WORKERS_PER_CPU = 4
"""Where there are more workers than CPUs, up to this many share one."""


@contextmanager
def cluster(address: str) -> Iterator[bool]:
    """A connection to the cluster at `address`, at `RAY_ADDRESS`, or to one started here for this job alone (true then)."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; without it every task warns
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")  # at 2 s, each report and the end wait for it
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_S))
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    owns_cluster = target == "local"
    dashboard = {"include_dashboard": False} if owns_cluster else {}
    if owns_cluster:  # nobody announces that a machine of one's own goes away, or knows the port of its metrics
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)  # this job's own lines are the ones to be seen
    _require_answer(target)
    try:
        ray.init(address=target, log_to_driver=False, configure_logging=False, **dashboard)  # type: ignore[arg-type]
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        if owns_cluster:
            raise ClusterError(f"Ray could not be started here: {first_line(error)}; --workers 0 does without it") from None
        raise _unreachable(target, first_line(error)) from None
    try:
        yield owns_cluster
    finally:
        ray.shutdown()


def warn_of_lost_output(out: str, console: Console) -> None:
    """In a job that was submitted to a cluster, a relative path lies in the job's temporary copy of the working directory."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and is_local(out) and not os.path.isabs(out):
        console.line(
            f"warning: {absolute(out)} is a temporary folder of this job; give --out an absolute path or a URI to keep it"
        )


def _unreachable(target: str, why: str) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers at {target}: {why} (give HOST:6379 on a machine of the cluster, or send the job with "
        "`ray job submit --address http://HOST:8265`; without --address and RAY_ADDRESS a cluster is started here)"
    )


def _require_answer(target: str) -> None:
    """Raise ClusterError if nothing at HOST:PORT speaks gRPC: `ray.init` would try for minutes and end the process."""
    if target.startswith("ray://"):
        raise _unreachable(target, "jobs are not run through Ray's client")
    if ":" not in target or os.environ.get("RAY_USE_TLS") == "1":
        return
    import grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise _unreachable(target, f"no answer within {ANSWER_S:.0f} s") from None


def resources(fewest: int, most: int, device: str) -> dict[str, float]:
    """What each worker asks for: one GPU where the fewest can each have one, else one CPU or a share of it.

    Raises ClusterError for what the cluster can never give.
    """
    total = max_resources()
    gpus, cpus = total.get("GPU", 0), total.get("CPU", 0)
    if device == "cuda" and gpus < fewest:
        raise ClusterError(
            f"--workers {fewest} --device cuda: asks for {fewest} GPUs and the cluster has {gpus:g}; ask for less"
        )
    if fewest > cpus * WORKERS_PER_CPU:
        raise ClusterError(
            f"--workers {fewest}: the cluster has {cpus:g} CPUs, and at most {WORKERS_PER_CPU} workers share one; "
            f"ask for at most {int(cpus * WORKERS_PER_CPU)}, or add nodes"
        )
    # A whole number of workers per CPU fits on every node, whatever its size.
    share = {"CPU": 1 / math.ceil(min(most, cpus * WORKERS_PER_CPU) / cpus)}
    return {**share, "GPU": 1.0} if device != "cpu" and gpus >= fewest > 0 else share


def size(device: str) -> int:
    """Workers that have a GPU, or where there are none a CPU, each, in the cluster as large as it can become."""
    total = max_resources()
    gpus = 0 if device == "cpu" else int(total.get("GPU", 0))
    return gpus or max(1, int(total.get("CPU", 0)))


def granted_device(needs: dict[str, float]) -> Device:
    """Where workers that were given these resources compute: never on a GPU that they did not ask for."""
    return "cuda" if "GPU" in needs else "cpu"


def max_resources() -> dict[str, float]:
    """The resources the cluster can ever have: those of an autoscaler's largest size, else those it has."""
    import ray
    from ray._private.state import state

    found = state.get_max_resources_from_cluster_config() or ray.cluster_resources()
    return dict(found)


def cause(error: BaseException) -> str:
    """What a failed Ray Train job failed of: the last line of a worker's error, else what Ray says first."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    lines = [line for failure in failures if failure for line in str(failure).strip().splitlines()]
    return lines[-1].strip() if lines else first_line(error)
