"""What the user is told about the cluster while a job runs: nodes that leave it, and what it has if nothing moves.

Also ends the job if the cluster itself is lost. Ray would end this process, without a message and without a clean end.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mnist_ray.cluster.capacity import POLL_S, REPORT_S, capacity
from mnist_ray.console import Console
from mnist_ray.errors import ClusterError

_WHY = {1: "was stopped", 3: "was preempted", 4: "was idle"}
"""Ray's reasons for the end of a node (NodeDeathInfo.Reason). Others are failures."""
_IDLE = 4
CONNECT_S = 5.0
"""Seconds to wait for a connection."""
HEAD_S = 30.0
"""Seconds without an answer of the head after which the cluster is lost. A head may be started again. Ray waits for 60 s."""


class Watch:
    """Prints a line for each node that leaves the cluster, and one every 30 s while the job makes no progress."""

    def __init__(self, console: Console, consequence: str) -> None:
        """`consequence` says what the loss of a node means for the job."""
        self._console, self._consequence = console, consequence
        self._nodes: dict[str, dict[str, Any]] = {}
        self._moved = self._told = time.monotonic()
        self._lost = ""
        self.ended = threading.Event()

    def moved(self) -> None:
        """Note that the job has made progress."""
        self._moved = self._told = time.monotonic()

    def require(self, advice: str) -> None:
        """Raise ClusterError, with advice how to go on, if the cluster is lost."""
        if self._lost:
            raise ClusterError(f"{self._lost}; {advice}")

    def check(self) -> None:
        """Until `ended` is set, look whether the head and the raylet of this machine still accept connections."""
        from ray._private import worker

        node: Any = worker._global_node
        host, _, port = node.gcs_address.rpartition(":")
        answered = time.monotonic()
        while not self._lost and not self.ended.wait(POLL_S):
            if _failure(host.strip("[]"), int(port)) is None:
                answered = time.monotonic()
            elif (silent := time.monotonic() - answered) > HEAD_S:
                self._lost = f"lost the Ray cluster: its head at {node.gcs_address} has not answered for {silent:.0f} s"
            if isinstance(_failure(node.node_ip_address, node.node_manager_port), ConnectionRefusedError):
                self._lost = f"lost the Ray cluster: the raylet of this machine, {node.node_ip_address}, has ended"

    def run(self) -> None:
        """Watch until `ended` is set."""
        while not self.ended.wait(POLL_S):
            with suppress(Exception):  # if the cluster does not answer, the job itself ends with an error
                self._look()

    def _look(self) -> None:
        import ray

        found = {node["NodeID"]: node for node in ray.nodes()}
        for name in [name for name in self._nodes if not found[name]["Alive"]]:
            self._tell_lost(self._nodes.pop(name), found[name]["DeathReason"])
        self._nodes |= {name: node for name, node in found.items() if node["Alive"]}
        now = time.monotonic()
        if now - self._told >= REPORT_S:
            self._told = now
            self._console.line(f"no progress for {now - self._moved:.0f} s; {capacity()}")

    def _tell_lost(self, node: dict[str, Any], reason: int) -> None:
        if reason != _IDLE:
            cpus, gpus = (node["Resources"].get(name, 0) for name in ("CPU", "GPU"))
            self._console.line(
                f"lost the node {node['NodeManagerAddress']} with {cpus:g} CPUs and {gpus:g} GPUs: "
                f"it {_WHY.get(reason, 'failed')}; {self._consequence}"
            )


def _failure(host: str, port: int) -> OSError | None:
    """Why no connection can be made to this address; None if a process accepts it."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        return error
    return None


@contextmanager
def watching(console: Console, consequence: str) -> Iterator[Watch]:
    """Watch the cluster that this process has joined. `consequence` says what the loss of a node means for the job."""
    watch = Watch(console, consequence)
    threads = [threading.Thread(target=target, daemon=True) for target in (watch.run, watch.check)]
    for thread in threads:
        thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        for thread in threads:
            thread.join(2 * POLL_S)
