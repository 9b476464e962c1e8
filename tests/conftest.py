"""What tests share: small real datasets, a trained bundle, and one Ray cluster."""

from __future__ import annotations

import json
import os
import pickle
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.config import TrainConfig
from mnist_ray.data import datasets
from mnist_ray.data.digits import LabelledDigits, Splits
from mnist_ray.learn.control import RunControl
from mnist_ray.run.worker import work

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # jobs on the test cluster say `python`


@pytest.fixture(scope="session")
def mnist5k() -> Splits:
    return datasets.load("mnist5k")


@pytest.fixture(scope="session")
def small(mnist5k: Splits) -> Splits:
    """600 training and 100 test digits, as many of each class."""
    rows = np.arange(4500).reshape(10, 450)[:, :60].reshape(-1)
    return Splits("small", "test", "test", mnist5k.train.take(rows), mnist5k.test.take(np.arange(0, 500, 5)))


def write_idx(folder: Path, splits: Splits) -> Path:
    """A dataset as the four IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, digits in (("train", splits.train), ("t10k", splits.test)):
        count = len(digits)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + digits.images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + digits.labels.tobytes())
    return folder


@pytest.fixture(scope="session")
def small_idx(tmp_path_factory: pytest.TempPathFactory, small: Splits) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx"), small)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory, mnist5k: Splits) -> Path:
    """A finished run, trained in this process on the bundled digits."""
    run = tmp_path_factory.mktemp("run")
    assert work(str(run), TrainConfig(data="mnist5k", workers="0", epochs=3), "cpu", mnist5k, RunControl())
    return run


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory, mnist5k: Splits) -> Path:
    """300 digits as PNG files, one subfolder per class."""
    folder = tmp_path_factory.mktemp("digits")
    datasets.write_folder(mnist5k.test.take(np.arange(300)), str(folder))
    return folder


@pytest.fixture(scope="session")
def mnist() -> Splits:
    """The full MNIST, where this machine has it."""
    if "MNIST_RAY_DATA" not in os.environ:
        pytest.skip("MNIST_RAY_DATA is not set: the full MNIST is not here")
    return datasets.load("mnist")


def _make_file(path: str) -> None:
    Path(path).touch()


class Bomb:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _make_file, (self.marker,)


def write_pickled_table(file: Path, digits: LabelledDigits, marker: Path, **more: Any) -> None:
    """Digits as Parquet, beside each in the same struct a pickled object of Ray's extension type; another as column `extra`.

    An image is stored as `{data, shape}`. Whoever unpickles one of the objects creates the file `marker`.
    """
    extension = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    pickled = pa.array([pickle.dumps(Bomb(marker))] * len(digits), pa.large_binary())
    data = pa.array(digits.images.reshape(-1, 784).tolist(), pa.list_(pa.uint8()))
    shape = pa.array([[28, 28]] * len(digits), pa.list_(pa.int64()))
    extra = pa.field("extra", pa.large_binary(), metadata=extension)
    fields = [pa.field("data", data.type), pa.field("shape", shape.type), extra]
    table = {"image": pa.StructArray.from_arrays([data, shape, pickled], fields=fields), "label": digits.labels}
    columns = {name: pa.array(values) for name, values in {**table, "extra": pickled, **more}.items()}
    schema = pa.schema([extra if name == "extra" else pa.field(name, column.type) for name, column in columns.items()])
    pq.write_table(pa.table(list(columns.values()), schema=schema), file)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_node(cpus: int, *flags: str) -> subprocess.Popen[bytes]:
    """Start a Ray node that lives until it is terminated."""
    command = [str(BIN / "ray"), "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class RayCluster:
    """A Ray head on this machine, and nodes that tests add to it for a while."""

    def __init__(self, cpus: int = 2) -> None:
        self.port, self.jobs_port = free_port(), free_port()
        self.address, self.jobs_address = f"127.0.0.1:{self.port}", f"http://127.0.0.1:{self.jobs_port}"
        ports = [f"--port={self.port}", f"--dashboard-port={self.jobs_port}", f"--ray-client-server-port={free_port()}"]
        self._nodes = [start_node(cpus, "--head", "--node-ip-address=127.0.0.1", *ports)]
        self._wait_for(1)

    @contextmanager
    def another_node(self) -> Iterator[str]:
        """Two more CPUs on a node of their own; gives its id.

        Not while a job is submitted: nodes of one machine unpack its working directory at the same place, over each other.
        """
        before = set(self._alive())
        self.add_node(2)
        try:
            yield (set(self._alive()) - before).pop()
        finally:
            self._stop(self._nodes.pop())
            self._wait_for(len(self._nodes))

    def add_node(self, cpus: int) -> None:
        """Add a node for good."""
        self._nodes.append(start_node(cpus, f"--address={self.address}"))
        self._wait_for(len(self._nodes))

    def kill_node(self) -> None:
        """Kill the newest node's raylet, and with it its workers."""
        node = self._nodes.pop()
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(node.pid)], capture_output=True, text=True, check=True)
        for pid in children.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        node.wait(60)

    def _wait_for(self, nodes: int) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert all(node.poll() is None for node in self._nodes), "a Ray node of the tests ended"
            if len(self._alive()) == nodes:
                return
            time.sleep(0.5)
        raise TimeoutError(f"there are not {nodes} Ray nodes")

    def _alive(self) -> list[str]:
        """The ids of the living nodes."""
        status = [str(BIN / "ray"), "list", "nodes", f"--address={self.jobs_address}", "--format=json"]
        found = subprocess.run(status, capture_output=True, text=True, check=False).stdout
        nodes = json.loads(found) if found.startswith("[") else []
        return [node["node_id"] for node in nodes if node["state"] == "ALIVE"]

    @staticmethod
    def _stop(node: subprocess.Popen[bytes]) -> None:
        node.terminate()
        node.wait(60)

    def stop(self) -> None:
        for node in reversed(self._nodes):
            self._stop(node)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    yield cluster
    cluster.stop()


def cli(*args: str, env: dict[str, str] | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, in a process of its own."""
    command = [sys.executable, "-m", "mnist_ray", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, cwd=ROOT, env={**os.environ, **(env or {})}
    )


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def worker_pids() -> list[int]:
    """The Ray Train workers of this machine."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if re.search("ray::_?RayTrainWorker", line)]


def digits_of(images: int, seed: int = 0) -> LabelledDigits:
    """Random pixels with every label."""
    random = np.random.default_rng(seed)
    labels = (np.arange(images) % 10).astype(np.uint8)
    return LabelledDigits(random.integers(0, 256, (images, 28, 28), dtype=np.uint8), labels)
