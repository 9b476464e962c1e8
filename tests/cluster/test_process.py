"""What a job does to its process while Ray runs there: it answers SIGTERM itself, and leaves Ray as it was."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from mnist_ray.cluster import actors, runtime
from mnist_ray.errors import ClusterError, StoppedError
from mnist_ray.run.ahead import ahead
from tests.conftest import RayCluster, start_cli, wait_for

STOPPED = "stopped as asked; run the same command again"


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("train", signal.SIGTERM),
        pytest.param("train", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("score", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_job_that_waits_for_room_ends_with_one_line(
    command: str, number: int, ray_cluster: RayCluster, run_dir: Path, digit_folder: Path, tmp_path: Path
) -> None:
    inputs = ["--data", "mnist5k"] if command == "train" else [str(digit_folder), "--model", str(run_dir)]
    flags = ["--workers", "1", "--address", ray_cluster.address, "--out", str(tmp_path / "out")]
    with runtime.cluster(ray_cluster.address):
        assert ray.util.placement_group([{"CPU": 2}]).wait(60)
        job = start_cli(command, *inputs, *flags)
        assert job.stdout
        assert any("waiting for room" in line for line in job.stdout)
        job.send_signal(number)
        _, said = job.communicate(timeout=120)
    assert (job.returncode, said) == (143, f"error: {STOPPED}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "kind", "message"), [(signal.SIGTERM, StoppedError, STOPPED), (signal.SIGINT, KeyboardInterrupt, "^$")]
)
def test_a_signal_while_ray_starts_stops_the_job_when_it_has_started(
    number: int, kind: type[BaseException], message: str, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, started = runtime._connect, []

    def connect_and_be_stopped(target: str, *, owns_cluster: bool) -> None:
        signal.raise_signal(number)
        connect(target, owns_cluster=owns_cluster)
        started.append(ray.is_initialized())

    monkeypatch.setattr(runtime, "_connect", connect_and_be_stopped)
    before = signal.getsignal(number)
    with pytest.raises(kind, match=message), runtime.cluster(ray_cluster.address):
        pytest.fail("the job began")
    assert started == [True]
    assert not ray.is_initialized()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_interrupts_the_start_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the start went on")

    monkeypatch.setattr(runtime, "_connect", connect)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), runtime.cluster("local"):
        pytest.fail("the job began")
    assert signal.getsignal(signal.SIGINT) == before


def test_a_later_ray_of_the_process_prints_what_tasks_print(ray_cluster: RayCluster, tmp_path: Path) -> None:
    program = (
        "import ray, sys\n"
        "from mnist_ray.cluster import runtime\n"
        "with runtime.cluster(sys.argv[1]): pass\n"
        "ray.init(sys.argv[1])\n"
        "ray.get(ray.remote(lambda: print('a task speaks')).remote())\n"
        "sys.stdin.read()\n"
    )
    printed = tmp_path / "printed"
    with printed.open("w") as file:
        command = [sys.executable, "-u", "-c", program, ray_cluster.address]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "a task speaks" in printed.read_text(), process)
    finally:
        process.communicate()
    assert process.returncode == 0, printed.read_text()


def test_a_process_that_uses_ray_already_is_told_what_to_do(ray_cluster: RayCluster) -> None:
    with (
        runtime.cluster(ray_cluster.address),
        pytest.raises(ClusterError, match=r"call ray\.shutdown\(\) first, or give workers=0"),
        runtime.cluster("local"),
    ):
        pytest.fail("the job began")


AT_THE_END = """
import gc, sys, threading
import ray
from mnist_ray.cli import main
shutdown = ray.shutdown

def tell():
    names = [thread.name for thread in threading.enumerate()]
    print("at the end of Ray:", gc.isenabled(), *[name for name in names if "StreamingExecutor" in name or "(read)" in name])
    shutdown()

ray.shutdown = tell
sys.exit(main(sys.argv[1:]))
"""
"""The command line. When the job ends Ray, it prints whether Python collects garbage, and which threads use Ray Data."""


def test_no_thread_uses_ray_any_more_when_an_interrupted_job_ends_ray(long_job: list[str]) -> None:
    """Ray would end the process with status 1, without a message."""
    job = [*long_job[: long_job.index("--workers")], "--workers", "1"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-uc", AT_THE_END, *job], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout
    assert any("starting the actors" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "interrupted; run again with --resume to score the rest\n")
    assert printed == "at the end of Ray: False\n"


def test_another_ctrl_c_does_not_wait_for_the_threads_of_ray_data() -> None:
    ended = threading.Event()

    def rows() -> Iterator[dict[str, Any]]:
        yield {"row": 1}
        ended.wait()

    def interrupt() -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt), closing(ahead(rows(), 0.1, interrupt, 10_000.0)) as found:
        assert next(found) == {"row": 1}
    ended.set()


def test_with_a_ray_that_has_no_callbacks_nothing_is_ended() -> None:
    dataset: Any = SimpleNamespace(context=SimpleNamespace())
    actors._ending(dataset)()


ENDED = """
import os
from mnist_ray.cluster import runtime

with runtime._without_lines_of_ray():
    os.write(2, b"mine\\n[2026-11-27 10:00:00,000 C 12 34] of Ray\\nlast")
    END
"""


@pytest.mark.parametrize(("end", "status", "said"), [("pass", 0, ""), ("os._exit(1)", 1, f"{runtime.KILLED}\n")])
def test_a_process_that_ray_ends_leaves_a_message(end: str, status: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", ENDED.replace("END", end)], text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (status, f"mine\nlast{said}")
