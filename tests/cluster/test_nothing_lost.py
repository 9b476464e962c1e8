"""What training keeps when it is stopped, killed, started twice, or out of space."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.data.digits import Splits
from mnist_ray.errors import OutputError
from mnist_ray.learn.control import Request, RunControl
from mnist_ray.run import owner
from mnist_ray.run.worker import work
from tests.cluster.runs import checkpoints, history, metrics, weights
from tests.conftest import BIN, ROOT, RayCluster, cli, start_cli, wait_for

EPOCHS = 20
LONG = ["--epochs", "4000", "--checkpoint-every", "4000"]
"""A run of minutes that saves no checkpoint before its end, unless it is asked to."""


@pytest.fixture(scope="module")
def unbroken(small_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run in one process that nothing interrupts."""
    run = tmp_path_factory.mktemp("unbroken")
    done = cli("train", "--data", str(small_idx), "--workers", "0", "--epochs", str(EPOCHS), "--out", str(run))
    assert done.returncode == 0, done.stderr
    return weights(run)


@pytest.mark.parametrize(
    ("number", "status"),
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)],
)
def test_a_stopped_run_saves_and_continues_bit_equal(
    number: int, status: int, unbroken: bytes, small_idx: Path, tmp_path: Path
) -> None:
    flags = ["train", "--data", str(small_idx), "--workers", "0", "--epochs", str(EPOCHS), "--out", str(tmp_path)]
    job = start_cli(*flags, "--checkpoint-every", str(EPOCHS))
    wait_for((tmp_path / "history.jsonl").exists, job)
    assert not checkpoints(tmp_path)
    job.send_signal(number)
    _, said = job.communicate(timeout=60)
    assert job.returncode == status, said
    assert "Traceback" not in said
    assert [samples < EPOCHS * 600 for samples in checkpoints(tmp_path)] == [True], "it did not save where it stopped"
    assert json.loads((tmp_path / "owner.json").read_text())["ended"]
    assert cli(*flags).returncode == 0
    assert weights(tmp_path) == unbroken
    assert sum(row["train_samples"] for row in history(tmp_path)) == EPOCHS * 600


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.long)])
def test_a_killed_driver_continues_bit_equal(threads: int, unbroken: bytes, small_idx: Path, tmp_path: Path) -> None:
    """Training in one process: killed and started again, it ends with the weights of a run that was never killed."""
    epochs = EPOCHS if threads == 1 else 8  # two threads are slow on busy cores
    flags = ["train", "--data", str(small_idx), "--workers", "0", "--epochs", str(epochs), "--checkpoint-every", "10steps"]
    run = tmp_path / "run"
    job = start_cli(*flags, "--out", str(run), threads=threads)
    wait_for(lambda: checkpoints(run), job)
    job.kill()
    job.communicate()
    assert not (run / "metrics.json").exists()
    if threads == 1:
        assert cli(*flags, "--out", str(run)).returncode == 0
    else:  # the weights depend on the number of threads
        for out in (run, tmp_path / "unbroken"):
            again = start_cli(*flags, "--out", str(out), threads=threads)
            _, said = again.communicate(timeout=240)
            assert again.returncode == 0, said
        unbroken = weights(tmp_path / "unbroken")
    assert weights(run) == unbroken
    assert metrics(run)["samples_seen"] == epochs * 600


def test_a_second_job_is_refused_and_a_job_that_lost_its_run_stops(small_idx: Path, tmp_path: Path) -> None:
    flags = ["train", "--data", str(small_idx), "--workers", "0", *LONG, "--out", str(tmp_path)]
    first = start_cli(*flags)
    wait_for((tmp_path / "owner.json").exists, first)
    second = cli(*flags)
    assert second.returncode == 5
    assert re.search(rf"{tmp_path}: process {first.pid} on .* is writing here", second.stderr), second.stderr
    other = {"token": "another", "pid": 1, "place": "elsewhere pid", "began": "now", "beats": 1, "stop": False}
    (tmp_path / "owner.json").write_text(json.dumps(other))
    _, said = first.communicate(timeout=60)
    assert first.returncode == 5
    assert "was taken over by process 1 on elsewhere" in said
    assert json.loads((tmp_path / "owner.json").read_text()) == other


@pytest.mark.parametrize(
    "record",
    ["[]", '{"token": "a"}', '{"token": "a", "pid": "1", "place": "here", "began": "now"}', '{"token": null, "pid": 1}'],
)
def test_a_record_that_lacks_something_counts_as_none(record: str, tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_text(record)
    assert owner.read(str(tmp_path)) == {}
    owner.require_free(str(tmp_path))


def test_what_killed_processes_have_left_is_deleted_but_not_what_another_job_is_writing(tmp_path: Path) -> None:
    scratch = f".{'0' * 32}.tmp"
    for place in ("mine", "mine/parts", "mine/shards/other", "mine/shards/other/parts"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / scratch).touch()
    (tmp_path / "mine/shards/other/owner.json").touch()
    with owner.owning(owner.Owner(str(tmp_path / "mine"))):
        left = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob(scratch)}
    assert left == {"mine/shards/other", "mine/shards/other/parts"}


def test_a_record_with_odd_values_is_that_of_an_ended_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(owner, "SILENT_S", 0.1)
    record = {"token": "a", "pid": 10**30, "place": owner._place(), "began": "now"}
    (tmp_path / "owner.json").write_text(json.dumps(record))
    owner.require_free(str(tmp_path))
    (tmp_path / "owner.json").write_text(json.dumps(record | {"place": ""}))
    with pytest.raises(OutputError, match=r"was taken over by process 10+ on , started at now"):
        owner.require_ownership(str(tmp_path), "b")


def test_workers_that_outlive_their_job_write_nothing_into_the_run_of_the_next(small: Splits, tmp_path: Path) -> None:
    run = str(tmp_path)
    (tmp_path / "owner.json").write_text(json.dumps({"token": "next", "pid": 1, "place": "elsewhere", "began": "now"}))
    with pytest.raises(OutputError, match="was taken over by process 1 on elsewhere"), owner.fenced(run, "mine"):
        work(run, TrainConfig(workers="0", epochs=2), "cpu", small, RunControl())
    assert not checkpoints(tmp_path)


class StoppingControl(RunControl):
    """Asks the run to stop, the third time that it is asked."""

    calls = 0

    def requested(self) -> Request:
        self.calls += 1
        return Request.STOP if self.calls > 2 else Request.NOTHING


@pytest.mark.slow
def test_a_run_in_an_object_store_stops_and_continues_bit_equal(small: Splits, tmp_path: Path) -> None:
    config = TrainConfig(workers="0", epochs=4)
    run = f"memory://{tmp_path.name}/run"
    assert not work(run, config, "cpu", small, StoppingControl())
    assert storage.names(f"{run}/checkpoints")
    assert not storage.is_file(f"{run}/metrics.json")
    assert work(run, config, "cpu", small, RunControl())
    assert work(str(tmp_path), config, "cpu", small, RunControl())
    assert storage.read(f"{run}/model/weights.safetensors") == weights(tmp_path)


@pytest.mark.slow
def test_ray_job_stop_saves_a_checkpoint_and_the_job_ends_by_itself(
    ray_cluster: RayCluster, small_idx: Path, tmp_path: Path
) -> None:
    job, to = [str(BIN / "ray"), "job"], f"--address={ray_cluster.jobs_address}"
    name = f"stop-{os.getpid()}"
    submit = [*job, "submit", to, "--no-wait", f"--submission-id={name}", "--working-dir", str(ROOT), "--"]
    train = ["python", "jobs/train.py", "--data", str(small_idx), *LONG, "--out", str(tmp_path)]
    subprocess.run([*submit, *train], check=True, capture_output=True)
    wait_for((tmp_path / "progress.json").exists)
    assert not checkpoints(tmp_path)
    subprocess.run([*job, "stop", to, name], check=True, capture_output=True)
    assert checkpoints(tmp_path)
    logs = subprocess.run([*job, "logs", to, name], check=True, capture_output=True, text=True).stdout
    assert "stopped as asked; run the same command again" in logs


@pytest.mark.long
def test_a_notice_that_a_node_goes_away_saves_a_checkpoint(ray_cluster: RayCluster, small_idx: Path, tmp_path: Path) -> None:
    flags = ["--data", str(small_idx), "--workers", "3", *LONG, "--address", ray_cluster.address, "--out", str(tmp_path)]
    with ray_cluster.another_node() as node:
        job = start_cli("train", *flags)
        wait_for((tmp_path / "progress.json").exists, job)
        assert not checkpoints(tmp_path)
        drain = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "60"]
        to = ["--address", ray_cluster.address, "--node-id", node]
        subprocess.run([str(BIN / "ray"), "drain-node", *to, *drain], check=True, capture_output=True)
        wait_for(lambda: checkpoints(tmp_path), job)
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


@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.slow), pytest.param("2", marks=pytest.mark.long)])
def test_a_full_disk_stops_the_run_with_its_checkpoint_intact(
    workers: str, ray_cluster: RayCluster, small_idx: Path, full_disk: Path
) -> None:
    run, ballast = full_disk / "run", full_disk / "ballast"
    flags = ["train", "--data", str(small_idx), "--workers", workers, "--epochs", str(EPOCHS), "--checkpoint-every", "1step"]
    flags += ["--address", ray_cluster.address, "--out", str(run)]
    job = start_cli(*flags)
    wait_for(lambda: checkpoints(run), job)
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(b"0" * 12_000_000)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 8, said
    assert re.search(r"error: .*samples-\d+/state.pt: cannot be written: .*No space left.*; tried for \d+ s; ", said), said
    assert "the newest is samples-" in said
    assert "Traceback" not in said
    assert checkpoints(run)
    ballast.unlink()
    done = cli(*flags)
    assert done.returncode == 0, done.stderr
    assert sum(row["train_samples"] for row in history(run)) == EPOCHS * 600
