"""Training: workers on two nodes of Ray, a killed worker, refusals."""

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.util.state import list_placement_groups

from mnist_ray.cluster import fit
from mnist_ray.config import TrainConfig
from mnist_ray.console import Quiet
from mnist_ray.data.digits import Splits
from mnist_ray.errors import ClusterError, DefectError, StorageError, UsageError
from mnist_ray.learn.control import PeersLostError
from mnist_ray.run import owner
from mnist_ray.train_job import train
from tests.cluster.runs import checkpoints, history, metrics
from tests.cluster.test_doctor import require_namespaces
from tests.conftest import ROOT, RayCluster, cli, descendants, start_cli, wait_for, write_idx


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


@pytest.mark.slow
def test_a_worker_killed_on_the_jobs_own_cluster_is_replaced(small_idx: Path, tmp_path: Path) -> None:
    flags = ["--data", str(small_idx), "--workers", "2", "--epochs", "40", "--checkpoint-every", "10steps"]
    job = start_cli("train", *flags, "--out", str(tmp_path))
    wait_for(lambda: checkpoints(tmp_path), job)
    workers = [pid for pid, command in descendants(job.pid).items() if command.startswith("ray::RayTrainWorker")]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    printed, errors = job.communicate(timeout=240)
    assert job.returncode == 0, printed + errors
    assert "Traceback" not in printed + errors
    assert sum(row["train_samples"] for row in history(tmp_path)) == 40 * 600


@pytest.mark.slow
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


Worker = Callable[[dict[str, Any]], bool]


def _raising_on_rank_1(error: Exception, starts: Path) -> Worker:
    """What workers do instead of training: rank 1 raises the error, the others wait for it. Each leaves a file per start."""

    def worker(launch: dict[str, Any]) -> bool:
        import time
        import uuid

        import ray.train

        from mnist_ray.cluster import fit

        def work(*_: Any) -> bool:
            rank = ray.train.get_context().get_world_rank()
            (starts / f"{rank}-{uuid.uuid4()}").touch()
            if rank == 1:
                raise error
            time.sleep(100)
            return True

        fit.work = work  # type: ignore[attr-defined,assignment]
        return fit._worker(launch)

    return worker


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False], ids=["joined cluster", "own cluster"])
@pytest.mark.parametrize(
    ("raised", "seen", "message"),
    [
        (StorageError("s3://bucket: is gone"), StorageError, r"s3://bucket: is gone"),
        (ZeroDivisionError("what?"), DefectError, r"(?s)a worker on .* in work\n.*ZeroDivisionError: what\?.*logs .* are in /"),
    ],
)
def test_an_error_on_one_worker_ends_the_job_at_once_with_its_own_message(
    raised: Exception,
    seen: type[Exception],
    message: str,
    joined: bool,
    ray_cluster: RayCluster,
    small_idx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit, "_worker", _raising_on_rank_1(raised, tmp_path))
    address = ray_cluster.address if joined else "local"
    config = TrainConfig(data=str(small_idx), address=address, workers="2", epochs=1, out=str(tmp_path / "run"))
    with pytest.raises(seen, match=message):
        train(config, Quiet())
    started = [path.name[0] for path in tmp_path.glob("?-*")]  # the job may end before rank 0 has begun
    assert sorted(started) in (["1"], ["0", "1"]), "the workers were started again"


@pytest.mark.parametrize(
    ("errors", "final"),
    [
        ([StorageError("full")], "full"),
        ([PeersLostError("reset"), DefectError("trace")], "trace"),
        ([UsageError("diverged"), UsageError("diverged")], "diverged"),
        ([PeersLostError("reset"), PeersLostError("reset")], None),
        ([RuntimeError("the actor died"), PeersLostError("reset")], None),
        ([RuntimeError("the actor died"), DefectError("what follows from it")], None),
    ],
)
def test_workers_start_again_only_if_one_was_lost(errors: list[Exception], final: str | None) -> None:
    found = fit.final_error(errors)
    assert (str(found) if found else None) == final


def test_a_folder_that_does_not_hold_the_jobs_record_is_not_its_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "VISIBLE_S", 0.1)
    message = f"{tmp_path}: the node {platform.node()} does not see the folder of this job; give an --out that all nodes share"
    another = {"pid": 1, "place": "elsewhere", "began": "now"}
    for record in (None, "another"):
        if record:
            (tmp_path / "owner.json").write_text(json.dumps({**another, "token": record}))
        with pytest.raises(ClusterError, match=message):
            owner.require_visible(str(tmp_path), "mine")
    (tmp_path / "owner.json").write_text(json.dumps({**another, "token": "mine"}))
    owner.require_visible(str(tmp_path), "mine")


@pytest.mark.slow
def test_a_run_directory_that_one_node_does_not_see_ends_the_job(
    ray_cluster: RayCluster, small_idx: Path, tmp_path: Path
) -> None:
    """The second node has another file system at the folder `hidden`, as a machine of its own would."""
    unshare = require_namespaces("--mount", "--propagation", "private")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    flags = ["--data", str(small_idx), "--epochs", "4000", "--workers", "4", "--address", ray_cluster.address]
    with ray_cluster.another_node(*unshare, "sh", "-c", f'mount -t tmpfs tmpfs {hidden} && exec "$0" "$@"'):
        done = cli("train", *flags, "--out", str(hidden / "run"))
    assert done.returncode == 7
    assert f"{hidden}/run: the node {platform.node()} does not see the folder of this job; give an --out" in done.stderr


def _killed_while_the_group_forms(mark: Path) -> Worker:
    """What workers do: rank 1 is killed when it enters its first process group, while rank 0 waits for it there."""

    def worker(launch: dict[str, Any]) -> bool:
        import ray.train
        import torch.distributed as td

        from mnist_ray.cluster import fit

        def init_process_group(*_: Any, **__: Any) -> None:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

        if ray.train.get_context().get_world_rank() == 1 and not mark.exists():
            td.init_process_group = init_process_group
        return fit._worker(launch)

    return worker


@pytest.mark.slow
def test_a_worker_that_dies_while_the_process_group_forms_is_replaced(
    ray_cluster: RayCluster, small_idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "_worker", _killed_while_the_group_forms(tmp_path / "killed"))
    done = cli(
        "train", "--data", str(small_idx), "--workers", "2", "--address", ray_cluster.address, "--out", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert metrics(tmp_path / "run")["workers"] == 2
    left = {group.state for group in list_placement_groups(ray_cluster.jobs_address)}
    assert left == {"REMOVED"}


@pytest.mark.parametrize("workers", ["8", "1:8"])
def test_more_workers_than_a_batch_has_work_for_are_refused_before_ray_starts(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_ray.cluster.runtime.cluster", None)
    done = cli("train", "--data", "mnist5k", "--out", str(tmp_path / "run"), "--workers", workers)
    assert done.returncode == 2
    assert "it has work for 4; ask for at most 4 workers, or give at least --global-batch-size 256" in done.stderr
    assert not (tmp_path / "run").exists()
