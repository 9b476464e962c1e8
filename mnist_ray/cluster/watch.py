"""What the user is told about the cluster while a job runs: nodes that leave it, and what it has if nothing moves."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mnist_ray.cluster.capacity import POLL_S, REPORT_S, capacity
from mnist_ray.console import Console

_WHY = {1: "was stopped", 3: "was preempted", 4: "was idle"}
"""Ray's reasons for the end of a node (NodeDeathInfo.Reason). Others are failures."""
_IDLE = 4


class Watch:
    """Prints a line for each node that leaves the cluster, and one every 30 s while the job makes no progress."""

    def __init__(self, console: Console, consequence: str) -> None:
        """`consequence` says what the loss of a node means for the job."""
        self._console, self._consequence = console, consequence
        self._nodes: dict[str, dict[str, Any]] = {}
        self._moved = self._told = time.monotonic()
        self.ended = threading.Event()

    def moved(self) -> None:
        """Note that the job has made progress."""
        self._moved = self._told = time.monotonic()

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


@contextmanager
def watching(console: Console, consequence: str) -> Iterator[Watch]:
    """Watch the cluster that this process has joined. `consequence` says what the loss of a node means for the job."""
    watch = Watch(console, consequence)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        thread.join(2 * POLL_S)
