"""Kills in the middle of training on Ray that take minutes to prove."""

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.runs import checkpoints, history, weights
from tests.conftest import RayCluster, cli, start_cli, wait_for

pytestmark = pytest.mark.long

EPOCHS = 40
FLAGS = ["train", "--workers", "2", "--epochs", str(EPOCHS), "--checkpoint-every", "10steps"]


@pytest.fixture(scope="module")
def unbroken(ray_cluster: RayCluster, small_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nothing interrupts."""
    run = tmp_path_factory.mktemp("unbroken")
    done = cli(*FLAGS, "--data", str(small_idx), "--address", ray_cluster.address, "--out", str(run))
    assert done.returncode == 0, done.stderr
    return weights(run)


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_worker_and_then_a_killed_driver_change_nothing(
    seed: int, unbroken: bytes, ray_cluster: RayCluster, small_idx: Path, tmp_path: Path
) -> None:
    """Each at a random step. The next driver starts at once, while workers of the first may still live."""
    when = random.Random(seed)
    flags = [*FLAGS, "--data", str(small_idx), "--address", ray_cluster.address, "--out", str(tmp_path)]
    job = start_cli(*flags)
    wait_for(partial(_reached, tmp_path, when.randint(1, 8000)), job)
    os.kill(when.choice(ray_cluster.processes("RayTrainWorker")), signal.SIGKILL)
    wait_for(partial(_reached, tmp_path, when.randint(12_000, 20_000)), job)
    job.kill()
    job.communicate()
    assert not (tmp_path / "metrics.json").exists(), "the driver was killed too late"
    done = cli(*flags)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path) == unbroken
    assert sum(row["train_samples"] for row in history(tmp_path)) == EPOCHS * 600


def _reached(run: Path, samples: int) -> bool:
    return max(checkpoints(run), default=0) >= samples


def test_workers_lost_with_their_nodes_leave_a_smaller_group(tmp_path: Path) -> None:
    """Four workers on four nodes, then three, then two: each epoch still contains every sample."""
    cluster = RayCluster(cpus=1)
    try:
        for _ in range(3):
            cluster.add_node(1)
        flags = ["--data", "mnist5k", "--workers", "1:4", "--epochs", "12", "--checkpoint-every", "30steps"]
        job = start_cli("train", *flags, "--address", cluster.address, "--out", str(tmp_path))
        for _ in range(2):
            wait_for(partial(_reached, tmp_path, max(checkpoints(tmp_path), default=0) + 1), job)
            cluster.kill_node()
        printed, said = job.communicate(timeout=400)
        assert job.returncode == 0, said
    finally:
        cluster.stop()
    assert printed.count("with 1 CPUs and 0 GPUs: it failed; its workers are replaced when there is room") == 2, printed
    assert not [line for line in (printed + said).splitlines() if "raylet" in line or "state-dump" in line]
    assert [row["epoch"] for row in history(tmp_path)] == list(range(1, 13))
    assert sum(row["train_samples"] for row in history(tmp_path)) == 12 * 4500
