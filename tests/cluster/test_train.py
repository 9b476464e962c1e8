"""Training: workers on two nodes of Ray, a killed worker, refusals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.data.digits import Splits
from tests.cluster.runs import checkpoints, history, metrics
from tests.conftest import ROOT, RayCluster, cli, start_cli, wait_for, write_idx


@pytest.mark.slow
def test_workers_on_two_nodes_learn_although_one_is_killed_and_a_rerun_sees_it(ray_cluster: RayCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["train", "--data", "mnist5k", "--epochs", "4", "--address", ray_cluster.address, "--out", str(run)]
    with ray_cluster.another_node():
        job = start_cli(*flags, "--workers", "3", "--checkpoint-every", "20steps")
        wait_for(lambda: checkpoints(run), job)
        os.kill(ray_cluster.processes("RayTrainWorker")[0], signal.SIGKILL)
        printed, errors = job.communicate(timeout=240)
    assert job.returncode == 0, printed + errors
    found = metrics(run)
    assert found["accuracy"] > 0.9
    assert (found["samples_seen"], found["num_images"], found["data"], found["workers"]) == (4 * 4500, 500, "mnist5k", 3)
    assert sum(map(sum, found["confusion"])) == 500
    assert f"test accuracy {found['accuracy']:.2%}" in printed
    assert "epoch 4/4" in printed
    files = {"config.json", "history.jsonl", "tensorboard", "checkpoints", "model", "metrics.json"}
    assert {path.name for path in run.iterdir()} >= files
    assert [row["epoch"] for row in history(run)] == [1, 2, 3, 4]
    again = cli(*flags, "--workers", "2")
    assert again.returncode == 0
    assert "is done: nothing to train" in again.stdout
    other = cli(*flags, "--seed", "1")
    assert other.returncode == 5
    assert "holds a run with other settings (seed 0 -> 1)" in other.stderr


def test_training_in_one_process_does_not_import_ray(small_idx: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom mnist_ray.cli import main\n"
        f"args = ['--data', {str(small_idx)!r}, '--workers', '0', '--epochs', '1', '--out', {str(tmp_path)!r}]\n"
        "assert main(['train', *args]) == 0\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_a_run_is_not_continued_on_other_digits(small_idx: Path, mnist5k: Splits, tmp_path: Path) -> None:
    flags = ["--data", str(tmp_path / "idx"), "--workers", "0", "--epochs", "1", "--out", str(tmp_path / "run")]
    write_idx(tmp_path / "idx", Splits("", "", "", mnist5k.train.take(np.arange(0, 4500, 9)), mnist5k.test))
    assert cli("train", *flags).returncode == 0
    (tmp_path / "run" / "metrics.json").unlink()
    write_idx(tmp_path / "idx", Splits("", "", "", mnist5k.train.take(np.arange(1, 4500, 9)), mnist5k.test))
    assert cli("train", *flags).returncode == 5


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--workers", "64", "--global-batch-size", "2048"], 7, "--workers 64: the cluster has 2 CPUs"),
        (["--workers", "1", "--device", "cuda"], 7, "asks for 1 GPUs and the cluster has 0"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused(
    flags: list[str], status: int, message: str, ray_cluster: RayCluster, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = cli("train", "--data", "mnist5k", "--out", str(run), "--address", ray_cluster.address, *flags)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.exists()


@pytest.mark.parametrize("workers", ["8", "1:8"])
def test_more_workers_than_a_batch_has_work_for_are_refused_before_ray_starts(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_ray.cluster.runtime.cluster", None)
    done = cli("train", "--data", "mnist5k", "--out", str(tmp_path / "run"), "--workers", workers)
    assert done.returncode == 2
    assert "it has work for 4; ask for at most 4 workers, or give at least --global-batch-size 256" in done.stderr
    assert not (tmp_path / "run").exists()
