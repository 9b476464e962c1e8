"""Kills in the middle of training that take minutes to prove; `make test-faults` runs them."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.test_nothing_lost import checkpoints, history, start, weights
from tests.conftest import RayCluster, cli, wait_for, worker_pids

EPOCHS = 40
FLAGS = ["--workers", "2", "--epochs", str(EPOCHS), "--checkpoint-every", "10steps"]


@pytest.fixture(scope="module")
def unbroken(ray_cluster: RayCluster, small_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nothing has stopped."""
    run = tmp_path_factory.mktemp("whole")
    done = cli("train", *FLAGS, "--data", str(small_idx), "--address", ray_cluster.address, "--out", str(run))
    assert done.returncode == 0, done.stderr
    return weights(run)


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_worker_and_then_a_killed_driver_change_nothing(
    seed: int, unbroken: bytes, ray_cluster: RayCluster, small_idx: Path, tmp_path: Path
) -> None:
    """Each at a random step; the next driver starts at once, while workers of the first may still live."""
    when = random.Random(seed)
    flags = [*FLAGS, "--data", str(small_idx), "--address", ray_cluster.address, "--out", str(tmp_path)]
    job = start(*flags)
    wait_for(partial(_reached, tmp_path, when.randint(1, 8000)))
    os.kill(when.choice(worker_pids()), signal.SIGKILL)
    wait_for(partial(_reached, tmp_path, when.randint(12_000, 20_000)))
    job.kill()
    job.communicate()
    assert not (tmp_path / "metrics.json").exists(), "it was killed too late"
    done = cli("train", *flags)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path) == unbroken
    assert sum(row["train_samples"] for row in history(tmp_path)) == EPOCHS * 600


def _reached(run: Path, samples: int) -> bool:
    return (checkpoints(run) or [0])[-1] >= samples


def test_workers_lost_with_their_nodes_leave_a_smaller_group(tmp_path: Path) -> None:
    """Four workers on four nodes, then three, then two: every sample still comes once per epoch."""
    cluster = RayCluster(cpus=1)
    try:
        for _ in range(3):
            cluster.add_node(1)
        run = tmp_path / "run"
        flags = ["--data", "mnist5k", "--workers", "1:4", "--epochs", "12", "--checkpoint-every", "30steps"]
        job = start(*flags, "--address", cluster.address, "--out", str(run))
        for _ in range(2):
            reached = (checkpoints(run) or [0])[-1]
            wait_for(partial(_reached, run, reached + 1), 240)
            cluster.kill_node()
        _, said = job.communicate(timeout=400)
        assert job.returncode == 0, said
    finally:
        cluster.stop()
    assert [row["epoch"] for row in history(run)] == list(range(1, 13))
    assert sum(row["train_samples"] for row in history(run)) == 12 * 4500
