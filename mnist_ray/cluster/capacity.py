"""Room for the workers of a job: what they ask for, what the cluster has, and what its autoscaler may add."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mnist_ray.config import Device
from mnist_ray.console import Console
from mnist_ray.errors import ClusterError

WAIT_S = 900.0
"""Seconds that a job waits for room in the cluster: a cloud takes minutes to start a machine and to fetch its image."""
REPORT_S = 30.0
"""Seconds between two lines about what the job waits for."""
POLL_S = 2.0
"""Seconds between two looks at the cluster while the job waits."""
FIRST_WORD_S = 10.0
"""Seconds that an autoscaler may take after the start of the cluster until it says anything."""
WORKERS_PER_CPU = 4
"""Largest number of workers that share one CPU (docs/decisions/0008)."""
ACTORS_PER_GPU = 8
"""Largest number of scoring actors that share a GPU by default. Each takes up to 1 GiB of its memory."""
_SILENT = "`ray logs cluster monitor.log` says why"
"""The reason of a failed launch for which autoscaler v2 reports none: those of most clouds."""
LARGEST_POOL = 1000
"""Largest number of actors of `--workers auto` on a cluster that grows: nobody knows how far it can grow."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a cluster has, and what its autoscaler says."""

    cpus: float
    """CPUs of all nodes that are there."""
    gpus: float
    """GPUs of all nodes that are there."""
    free_cpus: float
    """CPUs that nothing uses."""
    free_gpus: float
    """GPUs that nothing uses."""
    grows: bool = False
    """Whether an autoscaler may add nodes."""
    launching: tuple[str, ...] = ()
    """Nodes that are being launched, as text."""
    failed: tuple[str, ...] = ()
    """Launches that failed, and why, as text."""
    impossible: bool = False
    """Whether the autoscaler says that it has no nodes for something that is asked for."""

    def __str__(self) -> str:
        """What is there, what is being launched, and what failed to launch."""
        said = [
            f"the cluster has {self.cpus:g} CPUs ({self.free_cpus:g} free) and {self.gpus:g} GPUs ({self.free_gpus:g} free)"
        ]
        if self.grows:
            said.append(f"launching: {', '.join(self.launching) or 'nothing'}")
        if self.failed:
            said.append(f"failed to launch: {', '.join(self.failed)}")
        if self.impossible:
            said.append("the autoscaler has no type of node for what is asked, or has reached its limits")
        return "; ".join(said)


def capacity() -> Capacity:
    """What the cluster that this process has joined has now, and what its autoscaler says. A cluster of its own has none."""
    from ray._private import worker

    deadline = time.monotonic() + (0.0 if worker._global_node.head else FIRST_WORD_S)  # type: ignore[attr-defined]
    while (found := _capacity()) is None:
        if time.monotonic() >= deadline:  # nodes of a cloud, but no autoscaler
            return _capacity(silent=True) or Capacity(0, 0, 0, 0)
        time.sleep(POLL_S)
    return found


def _capacity(silent: bool = False) -> Capacity | None:
    """What the cluster has; None if its autoscaler has not said anything yet, unless it is `silent`."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.autoscaler.v2.utils import is_autoscaler_v2, is_head_node
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus  # type: ignore[attr-defined]

    gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
    status = GetClusterStatusReply.FromString(gcs.get_cluster_status())
    nodes = [node for node in status.cluster_resource_state.node_states if node.status != NodeStatus.DEAD]
    there = [
        sum(getattr(node, kind).get(name, 0.0) for node in nodes)
        for kind in ("total_resources", "available_resources")
        for name in ("CPU", "GPU")
    ]
    if not is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs):
        report = gcs.internal_kv_get(b"__autoscaling_status")
        told = json.loads(report).get("autoscaler_report") if report else None
        return Capacity(*there, **_said_by_v1(told)) if told or silent else None
    # The autoscaler v2 must know the head as an instance of its cloud. Without a cloud, it only watches.
    if not any(node.instance_id for node in nodes if is_head_node(node)):
        return Capacity(*there)
    if silent or not status.autoscaling_state.autoscaler_state_version:
        return Capacity(*there) if silent else None
    return Capacity(*there, **_said_by_v2(status.autoscaling_state))


def _said_by_v1(report: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of Capacity from the report of autoscaler v1. If it only watches, it calls each node a type of its own."""
    if not report or all(kind == f"node_{node}" for node, kind in (report["node_type_mapping"] or {}).items()):
        return {}
    nodes = report["node_availability_summary"]["node_availabilities"]
    reasons = {kind: node["unavailable_node_information"] for kind, node in nodes.items() if not node["is_available"]}
    lost = [f"{kind}: the node at {ip} did not join" for ip, kind in report["failed_nodes"]]
    return {
        "grows": True,
        "launching": (
            *(f"{count} x {kind}" for kind, count in report["pending_launches"].items()),
            *(f"{kind} at {ip}" for ip, kind, _ in report["pending_nodes"]),
        ),
        "failed": (*(f"{kind}: {why['category']}, {why['description']}" for kind, why in reasons.items() if why), *lost),
    }


def _said_by_v2(state: Any) -> dict[str, Any]:
    """The fields of Capacity from the state of autoscaler v2."""
    failed = Counter((each.ray_node_type_name, each.reason) for each in state.failed_instance_requests)
    return {
        "grows": True,
        "launching": (
            *(f"{asked.count} x {asked.ray_node_type_name}" for asked in state.pending_instance_requests),
            *(f"{node.ray_node_type_name} ({node.details or node.instance_id})" for node in state.pending_instances),
        ),
        "failed": tuple(f"{count} x {kind}: {why or _SILENT}" for (kind, why), count in failed.items()),
        "impossible": bool(state.infeasible_resource_requests or state.infeasible_gang_resource_requests),
    }


def needs(fewest: int, device: str, has: Capacity, *, elastic: bool = False, gpus: float = 1.0) -> dict[str, float]:
    """The resources of each of `fewest` workers or more: `gpus` of a GPU if all can have them, and up to one CPU.

    With `elastic`, Ray Train may resize the group. It supports whole CPUs only, so workers do not share one.

    Raises ClusterError if the cluster can never provide the resources.
    """
    asked = round(fewest * gpus, 4)  # Ray counts in steps of 0.0001
    if device == "cuda" and has.gpus < asked and not has.grows:
        raise ClusterError(
            f"--workers {fewest} --device cuda: asks for {asked:g} GPUs and the cluster has {has.gpus:g}; ask for fewer workers"
        )
    shared = 1 if elastic else WORKERS_PER_CPU
    if fewest > has.cpus * shared and not has.grows:
        limit = "MIN:MAX workers take one each" if elastic else f"at most {shared} workers share one"
        raise ClusterError(
            f"--workers {f'{fewest}:MAX' if elastic else fewest}: the cluster has {has.cpus:g} CPUs, and {limit}; "
            f"ask for at most {int(has.cpus * shared)}, or add nodes"
        )
    # A whole number of workers per CPU fits on nodes of every size.
    cpu = 1.0 if has.grows or elastic else 1 / math.ceil(fewest / has.cpus)
    gpu = device == "cuda" or (device == "auto" and has.gpus >= asked > 0)
    return {"CPU": cpu, "GPU": gpus} if gpu else {"CPU": cpu}


def gpu_share(nodes: Iterable[dict[str, float]]) -> float:
    """The part of a GPU that a scoring actor takes, so that the actors of a node with GPUs use all its CPUs.

    Reading and decoding take most of an actor's time. `nodes` are the resources of each node.
    """
    cpus_per_gpu = [int(node.get("CPU", 0) / node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    return 1 / max(1, min([ACTORS_PER_GPU, *cpus_per_gpu])) if cpus_per_gpu else 1.0


def size(device: str, has: Capacity, gpus: float = 1.0) -> int:
    """The most workers that the cluster has work for: one per CPU if it has no GPU or `device` is cpu, else one per `gpus`."""
    if has.grows:
        return LARGEST_POOL
    return (int(has.gpus / gpus + 1e-9) if device != "cpu" else 0) or max(1, int(has.cpus))


def nodes() -> list[dict[str, float]]:
    """The resources of each node that is there."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def per_node(needs: dict[str, float]) -> int:
    """How many workers with these resources fit on the largest node that is there; 0 if none does."""
    return max((min(int(has.get(name, 0) / count + 1e-9) for name, count in needs.items()) for has in nodes()), default=0)


def granted_device(needs: dict[str, float]) -> Device:
    """The device of workers with these resources: a GPU only if they asked for one."""
    return "cuda" if "GPU" in needs else "cpu"


def wait_for_room(workers: int, needs: dict[str, float], console: Console) -> None:
    """Wait until the cluster has room for so many workers at the same time, and print what the job waits for.

    Asking for the room makes an autoscaler add nodes. Raises ClusterError if there is no room within `WAIT_S`.
    """
    from ray.util import placement_group, remove_placement_group

    asked = f"--workers {workers}: asks for {workers} x ({', '.join(f'{count:g} {name}' for name, count in needs.items())})"
    room = placement_group([needs] * workers, strategy="PACK")
    start, report_s = time.monotonic(), 0.0
    console.progress("waiting for room in the cluster", detail=asked)
    try:
        while not room.wait(POLL_S):
            waited_s = time.monotonic() - start
            if waited_s >= WAIT_S:
                raise ClusterError(f"{asked} and found no room in {waited_s:.0f} s; {capacity()}; ask for less, or add nodes")
            if waited_s >= report_s:
                console.line(f"waiting for room, {waited_s:.0f} of {WAIT_S:.0f} s: {asked}; {capacity()}")
                report_s = waited_s + REPORT_S
    finally:
        remove_placement_group(room)
