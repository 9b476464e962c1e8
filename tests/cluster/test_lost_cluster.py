"""The Ray cluster that a job starts: it is lost in the middle of the job, or is beside another one."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from mnist_ray.cluster import runtime
from mnist_ray.errors import ClusterError
from tests.cluster.runs import checkpoints
from tests.conftest import descendants, start_cli, wait_for


def _kill(root: int, program: str) -> None:
    """Kill a program of Ray below a process."""
    (victim,) = [pid for pid, command in descendants(root).items() if command.split()[0].endswith(f"/{program}")]
    os.kill(victim, signal.SIGKILL)


def _require_lost(job: subprocess.Popen[str], message: str, advice: str) -> None:
    """Wait for a job that has lost its cluster: it ends with status 7 and says so in one line."""
    said, errors = job.communicate(timeout=240)
    assert job.returncode == 7, said + errors
    assert errors.startswith("error: ")
    assert message in errors
    assert advice in errors
    assert errors.count("\n") == 1, errors


@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param("gcs_server", "its head at ", id="head", marks=pytest.mark.long),
        pytest.param("raylet", "the raylet of this machine, ", id="raylet", marks=pytest.mark.slow),
    ],
)
def test_a_scoring_job_that_loses_its_cluster_says_so(program: str, message: str, long_job: list[str], tmp_path: Path) -> None:
    flags = [*long_job[: long_job.index("--workers")], "--workers", "1", "--unit-rows", "100"]
    job = start_cli(*flags)
    wait_for(lambda: len(list(tmp_path.glob("out/predictions/part-*"))) > 3, job)
    _kill(job.pid, program)
    _require_lost(job, f"lost the Ray cluster: {message}", "run again with --resume to score the rest")


@pytest.mark.long
def test_a_training_job_that_loses_its_own_raylet_says_so(small_idx: Path, tmp_path: Path) -> None:
    flags = ["--data", str(small_idx), "--epochs", "4000", "--workers", "2", "--checkpoint-every", "5steps"]
    job = start_cli("train", *flags, "--out", str(tmp_path))
    wait_for(lambda: checkpoints(tmp_path), job)
    _kill(job.pid, "raylet")
    _require_lost(job, "lost the Ray cluster: the raylet of this machine", "run the same command again to continue")


@pytest.mark.slow
def test_the_cluster_of_a_job_leaves_the_port_of_the_agent_free() -> None:
    """A head whose agent finds the port in use accepts no jobs."""
    with runtime.cluster("local"):
        from ray._private import worker

        node = worker._global_node
        assert node
        assert node.dashboard_agent_listen_port == -1, "the agent listens, by default at 52365"


def test_a_ray_that_does_not_start_in_time_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because …")  # as Ray does after 30 s

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ClusterError, match="could not be started here: The current node timed out during startup"):
        runtime._connect("local", owns_cluster=True)
