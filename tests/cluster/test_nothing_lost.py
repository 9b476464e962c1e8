"""What training keeps when it is stopped, killed, resized, started twice, or out of space."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.data.digits import Splits
from mnist_ray.errors import OutputError
from mnist_ray.learn.control import Request, RunControl
from mnist_ray.run import owner
from mnist_ray.run.worker import work
from tests.conftest import BIN, ROOT, RayCluster, cli, wait_for


def checkpoints(run: Path) -> list[int]:
    """Samples seen at the run's whole checkpoints."""
    return sorted(int(path.parent.name.removeprefix("samples-")) for path in run.glob("checkpoints/samples-*/commit.json"))


def weights(run: Path) -> bytes:
    return (run / "model" / "weights.safetensors").read_bytes()


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def start(*flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mnist_ray", "train", *flags]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_and_continues_bit_equal(number: int, status: int, small_idx: Path, tmp_path: Path) -> None:
    flags = ["--data", str(small_idx), "--workers", "0", "--epochs", "40", "--checkpoint-every", "10"]
    assert cli("train", *flags, "--out", str(tmp_path / "whole")).returncode == 0
    run = tmp_path / "run"
    job = start(*flags, "--out", str(run))
    wait_for(lambda: checkpoints(run))
    job.send_signal(number)
    _, said = job.communicate(timeout=60)
    assert job.returncode == status, said
    assert "Traceback" not in said
    assert checkpoints(run)[-1] % 6000 != 0, "it saved where it stood"
    assert not (run / "owner.json").exists()
    assert cli("train", *flags, "--out", str(run)).returncode == 0
    assert weights(run) == weights(tmp_path / "whole")
    assert sum(row["train_samples"] for row in history(run)) == 40 * 600


def test_a_second_job_on_a_run_is_refused_and_names_the_first(small_idx: Path, tmp_path: Path) -> None:
    flags = ["--data", str(small_idx), "--workers", "0", "--epochs", "4000", "--out", str(tmp_path)]
    first = start(*flags)
    wait_for((tmp_path / "owner.json").exists)
    second = cli("train", *flags)
    assert second.returncode == 5
    assert re.search(rf"{tmp_path}: process {first.pid} on .* is writing here", second.stderr), second.stderr
    first.kill()
    first.communicate()


def test_a_job_whose_run_was_taken_over_stops_and_says_so(small_idx: Path, tmp_path: Path) -> None:
    job = start("--data", str(small_idx), "--workers", "0", "--epochs", "4000", "--out", str(tmp_path))
    wait_for((tmp_path / "owner.json").exists)
    other = {"token": "another", "pid": 1, "place": "elsewhere pid", "began": "now", "beats": 1, "stop": False}
    (tmp_path / "owner.json").write_text(json.dumps(other))
    _, said = job.communicate(timeout=60)
    assert job.returncode == 5
    assert "was taken over by process 1 on elsewhere" in said
    assert json.loads((tmp_path / "owner.json").read_text()) == other


class OutlivingControl(RunControl):
    """Control of a worker whose job no longer owns the run."""

    def __init__(self, run: str) -> None:
        self.run = run

    def require_ownership(self) -> None:
        owner.require_ownership(self.run, "mine")


def test_workers_that_outlive_their_job_write_nothing_into_the_next_ones_run(small: Splits, tmp_path: Path) -> None:
    run = str(tmp_path)
    (tmp_path / "owner.json").write_text(json.dumps({"token": "next", "pid": 1, "place": "elsewhere", "began": "now"}))
    with pytest.raises(OutputError, match="was taken over by process 1 on elsewhere"):
        work(run, TrainConfig(workers="0", epochs=2), "cpu", small, OutlivingControl(run))
    assert not checkpoints(tmp_path)


class StoppingControl(RunControl):
    """Asks the run to stop, the third time that it is asked."""

    calls = 0

    def requested(self) -> Request:
        self.calls += 1
        return Request.STOP if self.calls > 2 else Request.NOTHING


def test_a_run_in_an_object_store_stops_and_continues_bit_equal(small: Splits, tmp_path: Path) -> None:
    config = TrainConfig(workers="0", epochs=4)
    run = f"memory://{tmp_path.name}/run"
    assert not work(run, config, "cpu", small, StoppingControl())
    assert storage.names(f"{run}/checkpoints")
    assert not storage.is_file(f"{run}/metrics.json")
    assert work(run, config, "cpu", small, RunControl())
    assert work(str(tmp_path), config, "cpu", small, RunControl())
    assert storage.read(f"{run}/model/weights.safetensors") == weights(tmp_path)


def test_ray_job_stop_saves_a_checkpoint(ray_cluster: RayCluster, small_idx: Path, tmp_path: Path) -> None:
    flags = ["--data", str(small_idx), "--epochs", "4000", "--checkpoint-every", "1000", "--out", str(tmp_path / "run")]
    job = [str(BIN / "ray"), "job"]
    to = [f"--address={ray_cluster.jobs_address}"]
    name = f"--submission-id=stop-{os.getpid()}"
    submit = [*job, "submit", *to, "--no-wait", name, "--working-dir", str(ROOT), "--", "python", "jobs/train.py", *flags]
    subprocess.run(submit, check=True, capture_output=True)
    wait_for((tmp_path / "run" / "progress.json").exists)
    time.sleep(2)
    assert not checkpoints(tmp_path / "run")
    subprocess.run([*job, "stop", *to, name.partition("=")[2]], check=True, capture_output=True)
    wait_for(lambda: checkpoints(tmp_path / "run"), 5)


def test_a_notice_that_a_node_goes_away_saves_a_checkpoint(ray_cluster: RayCluster, small_idx: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--data", str(small_idx), "--workers", "3", "--epochs", "4000", "--checkpoint-every", "1000"]
    with ray_cluster.another_node() as node:
        job = start(*flags, "--address", ray_cluster.address, "--out", str(run))
        wait_for((run / "progress.json").exists)
        assert not checkpoints(run)
        drain = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "60"]
        to = ["--address", ray_cluster.address, "--node-id", node]
        subprocess.run([str(BIN / "ray"), "drain-node", *to, *drain], check=True, capture_output=True)
        wait_for(lambda: checkpoints(run), 30)
        job.terminate()
        job.communicate(timeout=60)
        assert job.returncode == 143


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_full_disk_stops_the_run_with_its_checkpoint_intact(
    workers: str, ray_cluster: RayCluster, small_idx: Path, full_disk: Path
) -> None:
    run, ballast = full_disk / "run", full_disk / "ballast"
    flags = ["--data", str(small_idx), "--workers", workers, "--epochs", "20", "--checkpoint-every", "2"]
    flags += ["--address", ray_cluster.address, "--out", str(run)]
    job = start(*flags)
    wait_for(lambda: checkpoints(run))
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(b"0" * 12_000_000)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 8, said
    assert re.search(r"error: .*samples-\d+/state.pt: cannot be written: .*No space left.* \(4 attempts\); ", said), said
    assert "the newest is samples-" in said
    assert "Traceback" not in said
    kept = checkpoints(run)
    ballast.unlink()
    done = cli("train", *flags)
    assert done.returncode == 0, done.stderr
    assert kept
    assert sum(row["train_samples"] for row in history(run)) == 20 * 600
