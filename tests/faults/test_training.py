"""Kills in the middle of training that take minutes to prove; `make test-faults` runs them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.cluster.test_nothing_lost import checkpoints, history, start, wait_for, weights
from tests.conftest import RayCluster, cli


def test_a_killed_driver_on_ray_is_followed_by_the_next_at_once(
    ray_cluster: RayCluster, small_idx: Path, tmp_path: Path
) -> None:
    """Also while workers of the first still live: they no longer write."""
    flags = ["--data", str(small_idx), "--workers", "2", "--epochs", "30", "--checkpoint-every", "20steps"]
    flags += ["--address", ray_cluster.address]
    assert cli("train", *flags, "--out", str(tmp_path / "whole")).returncode == 0
    run = tmp_path / "run"
    job = start(*flags, "--out", str(run))
    wait_for(lambda: checkpoints(run))
    job.kill()
    job.communicate()
    done = cli("train", *flags, "--out", str(run))
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(tmp_path / "whole")
    assert sum(row["train_samples"] for row in history(run)) == 30 * 600


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
            wait_for(partial(_passed, run, reached), 240)
            cluster.kill_node()
        _, said = job.communicate(timeout=400)
        assert job.returncode == 0, said
    finally:
        cluster.stop()
    assert [row["epoch"] for row in history(run)] == list(range(1, 13))
    assert sum(row["train_samples"] for row in history(run)) == 12 * 4500


def _passed(run: Path, reached: int) -> bool:
    return (checkpoints(run) or [0])[-1] > reached
