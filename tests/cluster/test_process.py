"""What a job does to its process while Ray runs there: it answers SIGTERM itself, and leaves Ray as it was."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from mnist_ray.cluster import runtime
from mnist_ray.errors import ClusterError, StoppedError
from tests.conftest import RayCluster, start_cli, wait_for

STOPPED = "stopped as asked; run the same command again"


@pytest.mark.parametrize("command", ["train", pytest.param("score", marks=pytest.mark.slow)])
def test_a_job_that_waits_for_room_ends_with_one_line(
    command: str, ray_cluster: RayCluster, run_dir: Path, digit_folder: Path, tmp_path: Path
) -> None:
    inputs = ["--data", "mnist5k"] if command == "train" else [str(digit_folder), "--model", str(run_dir)]
    flags = ["--workers", "1", "--address", ray_cluster.address, "--out", str(tmp_path / "out")]
    with runtime.cluster(ray_cluster.address):
        assert ray.util.placement_group([{"CPU": 2}]).wait(60)
        job = start_cli(command, *inputs, *flags)
        assert job.stdout
        assert any("waiting for room" in line for line in job.stdout)
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=120)
    assert (job.returncode, said) == (143, f"error: {STOPPED}\n")
    assert not (tmp_path / "out").exists()


def test_a_signal_while_ray_starts_stops_the_job_when_it_has_started(
    ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = runtime._connect

    def connect_and_be_stopped(target: str, *, owns_cluster: bool) -> None:
        signal.raise_signal(signal.SIGTERM)
        connect(target, owns_cluster=owns_cluster)
        assert ray.is_initialized()

    monkeypatch.setattr(runtime, "_connect", connect_and_be_stopped)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match=STOPPED), runtime.cluster(ray_cluster.address):
        pytest.fail("the job began")
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == before


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
