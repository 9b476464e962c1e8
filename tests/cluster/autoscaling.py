"""A Ray cluster whose autoscaler starts and stops nodes on this machine: Ray's fake nodes, real raylets."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

from tests.conftest import ROOT, RayCluster

HEAD = "ray.head.default"


class NodeProvider(FakeMultiNodeProvider):
    """Ray's provider of fake nodes. Its cloud has no GPUs left."""

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, float], labels: Any
    ) -> None:
        """Start nodes, or fail as the provider of a cloud does."""
        if "GPU" in resources:
            raise NodeLaunchException("InsufficientInstanceCapacity", "there are no GPUs left", None)
        super().create_node_with_resources_and_labels(  # type: ignore[no-untyped-call]
            node_config, tags, count, resources, labels
        )


class AutoscalingCluster(RayCluster):
    """A head of 0 CPUs, and up to four workers of 1 CPU and two of 1 GPU that the autoscaler starts. GPUs fail to start.

    Ray's class of this name would run `ray stop`, which ends every Ray of the machine. Its settings are not in the wheel.
    """

    def __init__(self, version: str, folder: Path) -> None:
        self.version, self._config = version, folder / "cluster.json"
        variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "PYTHONPATH": str(ROOT)}
        if version == "v2":
            variables |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
        super().__init__(cpus=0, **variables, RAY_enable_autoscaler_v2="1" if version == "v2" else "0")

    def _head_flags(self) -> list[str]:
        provider = {
            "type": "external",
            "module": f"{NodeProvider.__module__}.{NodeProvider.__name__}",
            "gcs_address": self.address,
            "use_node_id_as_ip": True,
            "disable_launch_config_check": True,
            "disable_node_updaters": True,
            "foreground_node_launch": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        }
        types: dict[str, dict[str, Any]] = {
            HEAD: {"resources": {"CPU": 0}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": 4},
            "gpu-worker": {"resources": {"CPU": 1, "GPU": 1}, "min_workers": 0, "max_workers": 2},
        }
        lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands", "rsync_exclude")
        config = {
            "cluster_name": "fake",
            "max_workers": 6,
            "upscaling_speed": 100.0,
            "idle_timeout_minutes": 0.2,
            "provider": provider,
            "auth": {},
            "file_mounts": {},
            "head_node_type": HEAD,
            "available_node_types": {name: {**settings, "node_config": {}} for name, settings in types.items()},
            **{name: [] for name in (*lists, "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")},
        }
        self._config.write_text(json.dumps(config))
        return [f"--autoscaling-config={self._config}"]

    @contextmanager
    def nodes_over_time(self) -> Iterator[list[int]]:
        """The number of nodes now, and then each number that it changes to."""
        seen, ended = [self.num_nodes()], threading.Event()

        def look() -> None:
            start = time.monotonic()
            while not ended.wait(0.5):
                if (now := self.num_nodes()) not in (0, seen[-1]):  # 0: the dashboard did not answer
                    seen.append(now)
                    print(f"{time.monotonic() - start:5.0f} s: {now} nodes")

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield seen
        finally:
            ended.set()
            thread.join()
