"""Training on Ray: two nodes, lost workers, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.cli import main
from mnist_ray.data.digits import Splits
from tests.conftest import ROOT, RayCluster, cli, wait_for, worker_pids, write_idx


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def train(run: Path, address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return cli("train", "--data", "mnist5k", "--epochs", "2", "--out", str(run), "--address", address, *flags)


def test_workers_on_two_nodes_learn_and_a_rerun_sees_it(ray_cluster: RayCluster, tmp_path: Path) -> None:
    with ray_cluster.another_node():
        done = train(tmp_path / "run", ray_cluster.address, "--workers", "3")
    assert done.returncode == 0, done.stderr
    found = metrics(tmp_path / "run")
    assert found["accuracy"] > 0.9
    assert (found["samples_seen"], found["num_images"], found["data"], found["workers"]) == (9000, 500, "mnist5k", 3)
    assert sum(map(sum, found["confusion"])) == 500
    assert f"test accuracy {found['accuracy']:.2%}" in done.stdout
    assert "epoch 2/2" in done.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "config.json",
        "history.jsonl",
        "tensorboard",
        "checkpoints",
        "model",
        "metrics.json",
    }
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2]
    again = train(tmp_path / "run", ray_cluster.address, "--workers", "2")
    assert again.returncode == 0
    assert "is done: nothing to train" in again.stdout
    other = train(tmp_path / "run", ray_cluster.address, "--seed", "1")
    assert other.returncode == 5
    assert "holds a run with other settings (seed 0 -> 1)" in other.stderr


def test_a_killed_worker_is_replaced_and_no_sample_is_lost(ray_cluster: RayCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--data", "mnist5k", "--epochs", "8", "--workers", "2", "--out", str(run), "--address", ray_cluster.address]
    job = subprocess.Popen([sys.executable, "-m", "mnist_ray", "train", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: list((run / "checkpoints").glob("samples-*/commit.json")))
    os.kill(worker_pids()[0], signal.SIGKILL)
    printed, _ = job.communicate(timeout=240)
    assert job.returncode == 0, printed
    assert metrics(run)["samples_seen"] == 8 * 4500
    history = [json.loads(line)["epoch"] for line in (run / "history.jsonl").read_text().splitlines()]
    assert history == list(range(1, 9))


def test_a_killed_driver_continues_bit_equal(small_idx: Path, tmp_path: Path) -> None:
    """In one process: killed in mid-run and started again, it ends with the weights of a run that was never killed."""
    flags = ["train", "--data", str(small_idx), "--workers", "0", "--epochs", "40", "--checkpoint-every", "0.5"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli(*flags, "--out", str(whole)).returncode == 0
    job = subprocess.Popen([sys.executable, "-m", "mnist_ray", *flags, "--out", str(broken)], cwd=ROOT)
    wait_for(lambda: list((broken / "checkpoints").glob("samples-*/commit.json")))
    job.kill()
    job.wait()
    assert not (broken / "metrics.json").exists()
    assert cli(*flags, "--out", str(broken)).returncode == 0
    assert (broken / "model" / "weights.safetensors").read_bytes() == (whole / "model" / "weights.safetensors").read_bytes()
    assert metrics(broken)["samples_seen"] == 40 * 600


def test_training_in_this_process_starts_no_ray(small_idx: Path, tmp_path: Path) -> None:
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
    assert main(["train", *flags]) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    write_idx(tmp_path / "idx", Splits("", "", "", mnist5k.train.take(np.arange(1, 4500, 9)), mnist5k.test))
    assert main(["train", *flags]) == 5


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--workers", "64"], 7, "--workers 64: the cluster has 2 CPUs"),
        (["--workers", "8"], 2, "so it has work for 4; give at least --global-batch-size 256"),
        (["--workers", "1", "--device", "cuda"], 7, "asks for 1 GPUs and the cluster has 0"),
    ],
)
def test_what_the_cluster_or_the_batch_can_never_give_is_refused(
    flags: list[str], status: int, message: str, ray_cluster: RayCluster, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", ray_cluster.address, *flags)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
