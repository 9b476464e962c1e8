"""What tests share: small datasets, a trained bundle, one Ray cluster, and ways to run the command line."""

import io
import os
import pickle
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from PIL import Image

from mnist_ray.cli import main
from mnist_ray.config import TrainConfig
from mnist_ray.data import datasets
from mnist_ray.data.digits import LabelledDigits, Splits
from mnist_ray.learn.control import RunControl
from mnist_ray.run.worker import work

ROOT = Path(__file__).parent.parent
NODES = ("cluster", "deploy", "faults", "lab")
"""Folders of tests with several nodes, which load the machine. They never run side by side."""
BIN = Path(sys.executable).parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background programs without it
settings.register_profile("busy", deadline=None)  # no test asserts a duration
settings.load_profile("busy")
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ["OMP_NUM_THREADS"] = "1"  # on busy cores, threads of one process wait for each other: many times slower
os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # jobs on the test cluster say `python`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the process that runs a test, for `make test-all`: one for tests with several nodes, one for all others."""
    for item in items:
        room = item.path.relative_to(ROOT / "tests").parts[0]
        item.add_marker(pytest.mark.xdist_group("nodes" if room in NODES else "one machine"))


@pytest.fixture(scope="session")
def mnist5k() -> Splits:
    return datasets.load("mnist5k")


@pytest.fixture(scope="session")
def small(mnist5k: Splits) -> Splits:
    """600 training and 100 test digits, as many of each class."""
    rows = np.arange(4500).reshape(10, 450)[:, :60].reshape(-1)
    return Splits("small", "test", "test", mnist5k.train.take(rows), mnist5k.test.take(np.arange(0, 500, 5)))


def write_idx(folder: Path, splits: Splits) -> Path:
    """Write a dataset as the four IDX files."""
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
    assert work(str(run), TrainConfig(data="mnist5k", recipe="fast", workers="0", epochs=3), "cpu", mnist5k, RunControl())
    return run


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory, mnist5k: Splits) -> Path:
    """300 digits as PNG files, one subfolder per class."""
    folder = tmp_path_factory.mktemp("digits")
    datasets.write_folder(mnist5k.test.take(np.arange(300)), str(folder))
    return folder


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of jobs in this process have no charts, whose drawing takes longer than such a job."""
    monkeypatch.setattr("mnist_ray.report.charts._to_svg", lambda *_: "")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_dir: Path, mnist5k: Splits) -> Path:
    """A working directory with images in `scans`, one of them damaged, and a copy of a finished run."""
    monkeypatch.chdir(tmp_path)
    datasets.write_folder(mnist5k.test.take(np.arange(0, 500, 10)), "scans")
    for name, row in (("scans/7/seven.png", 350), ("scans/3/three.png", 150), ("seven.png", 350)):
        Image.fromarray(mnist5k.test.images[row]).save(name)
    (tmp_path / "scans" / "damaged.png").write_bytes(b"not an image")
    shutil.copytree(run_dir, "runs/digits")
    return tmp_path


@pytest.fixture
def long_job(digit_folder: Path, run_dir: Path, tmp_path: Path) -> list[str]:
    """A job of seconds: a manifest of 90,000 lines, in 120 units."""
    lines = [str(path) for path in sorted(digit_folder.rglob("*.png"))]
    (tmp_path / "list.txt").write_text("\n".join(lines * 300))
    out = str(tmp_path / "out")
    return ["score", str(tmp_path / "list.txt"), "--model", str(run_dir), "--out", out, "--workers", "0", "--unit-rows", "750"]


@pytest.fixture(scope="session")
def mnist() -> Splits:
    """The full MNIST. Skips the test if this machine does not have it."""
    if "MNIST_RAY_DATA" not in os.environ:
        pytest.skip("MNIST_RAY_DATA does not name a folder with the full MNIST")
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
    """Write digits as Parquet, with pickled objects of Ray's extension type in two places.

    One object is a field of each image, beside its `data` and `shape`; the column `extra` holds another. Code that unpickles
    one of them creates the file `marker`.
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
    """A TCP port on the loopback interface that no process uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> dict[int, str]:
    """Process ids and command lines of all processes below a process, parents before their children."""
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    found: dict[int, str] = {}
    parents = [pid]
    for parent in parents:
        below = {int(row[0]): row[-1] for row in rows if int(row[1]) == parent}
        found |= below
        parents += below
    return found


class RayCluster:
    """A Ray head on this machine, and nodes that tests add to it."""

    def __init__(self, cpus: int = 2, **variables: str) -> None:
        """`variables` are more environment variables of all nodes."""
        self._variables = variables
        self.port, self.jobs_port, self.client_port = free_port(), free_port(), free_port()
        self.address, self.jobs_address = f"127.0.0.1:{self.port}", f"http://127.0.0.1:{self.jobs_port}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.mkdtemp(prefix="ray-")  # in a shared one, Ray mixes up clusters of one machine
        ports = [f"--port={self.port}", f"--dashboard-port={self.jobs_port}", f"--ray-client-server-port={self.client_port}"]
        try:
            self._start(cpus, "--head", "--node-ip-address=127.0.0.1", *ports, *self._head_flags())
        except BaseException:
            self.stop()
            raise

    def _head_flags(self) -> list[str]:
        """More flags for the head."""
        return []

    @contextmanager
    def another_node(self, *inside: str) -> Iterator[str]:
        """A node with two more CPUs, removed at the end. Yields its id. `inside`: see `add_node`.

        Do not submit a job meanwhile: nodes of one machine unpack the working directory of a job at the same place.
        """
        before = set(self._alive())
        self.add_node(2, *inside)
        try:
            yield (set(self._alive()) - before).pop()
        finally:
            node = self._nodes.pop()
            node.terminate()
            node.wait(60)
            self._wait_for_nodes()

    def add_node(self, cpus: int, *inside: str) -> None:
        """Add a node; `inside` is a command line that runs the node's command, such as `unshare --mount`."""
        self._start(cpus, f"--address={self.address}", inside=inside)

    def kill_node(self) -> None:
        """Kill all processes of the newest node, its raylet before its workers."""
        node = self._nodes.pop()
        for pid in [node.pid, *descendants(node.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait(60)

    def processes(self, name: str) -> list[int]:
        """Ids of the cluster's worker processes that run a class of this name."""
        found = [process for node in self._nodes for process in descendants(node.pid).items()]
        return [pid for pid, command in found if re.match(f"ray::_?{name}", command)]

    def stop(self) -> None:
        """Kill all nodes, and delete their logs."""
        while self._nodes:
            self.kill_node()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, cpus: int, *flags: str, inside: tuple[str, ...] = ()) -> None:
        command = [*inside, str(BIN / "ray"), "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats", *flags]
        command += [f"--dashboard-agent-listen-port={free_port()}"]  # jobs fail on a node whose agent finds its port in use
        # The head checks its nodes every second instead of every three, so that a lost node is noticed sooner.
        health = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
        job_stop = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}  # as in the launch files
        env = {**os.environ, **health, **job_stop, **self._variables, "RAY_TMPDIR": self._folder}
        self._nodes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env))
        self._wait_for_nodes()

    def _wait_for_nodes(self) -> None:
        wait_for(lambda: len(self._alive()) == len(self._nodes), *self._nodes)

    def num_nodes(self) -> int:
        """The number of living nodes."""
        return len(self._alive())

    def _alive(self) -> list[str]:
        """The ids of the living nodes."""
        from ray.util.state import list_nodes
        from ray.util.state.exception import RayStateApiException

        with suppress(RayStateApiException, OSError):  # not started yet
            return [node.node_id for node in list_nodes(self.jobs_address) if node.state == "ALIVE"]
        return []


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """A Ray cluster of one node with two CPUs."""
    cluster = RayCluster()
    yield cluster
    cluster.stop()


def cli(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process: it need not import torch and ray again."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = main(list(args))
    return subprocess.CompletedProcess(args, status, out.getvalue(), err.getvalue())


def start_cli(*args: str, threads: int = 1, new_session: bool = False) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, as a user does."""
    command = [sys.executable, "-m", "mnist_ray", *args]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=pipe, stderr=pipe, start_new_session=new_session)


def thread_pool(number: int) -> Callable[..., ThreadPoolExecutor]:
    """What makes so many threads of this process, in place of the processes of a scoring job."""

    def make(*_: object, **__: object) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(number)
        pool._processes = {}  # type: ignore[attr-defined]
        return pool

    return make


def wait_for(condition: Callable[[], Any], *processes: subprocess.Popen[Any]) -> None:
    """Wait until a condition holds. Fails after four minutes, and as soon as one of the processes ends."""
    deadline = time.monotonic() + 240
    while not condition():
        ended = [process.args for process in processes if process.poll() is not None]
        assert not ended or condition(), f"{ended} ended too early"
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.05)


def digits_of(images: int, seed: int = 0) -> LabelledDigits:
    """Random pixels with every label."""
    random = np.random.default_rng(seed)
    labels = (np.arange(images) % 10).astype(np.uint8)
    return LabelledDigits(random.integers(0, 256, (images, 28, 28), dtype=np.uint8), labels)
