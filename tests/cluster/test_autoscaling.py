"""Jobs on a cluster with a head of 0 CPUs and workers from 0: they scale it up, and it shrinks again after them."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.cluster import capacity
from mnist_ray.cluster.capacity import Capacity
from mnist_ray.errors import ClusterError
from tests.cluster.autoscaling import AutoscalingCluster
from tests.conftest import cli, start_cli, wait_for

ONE_CPU, FOUR_CPUS, NOTHING = Capacity(1, 0, 1, 0), Capacity(4, 2, 4, 2), Capacity(0, 0, 0, 0)
HEAD_OF_ONE = Capacity(1, 0, 1, 0, grows=True)


@pytest.fixture(scope="module", params=["v2", pytest.param("v1", marks=pytest.mark.long)])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoscalingCluster]:
    started = AutoscalingCluster(request.param, tmp_path_factory.mktemp("cluster"))
    yield started
    started.stop()


@pytest.mark.slow
def test_a_node_that_can_never_be_launched_is_named_and_ends_the_job(
    cluster: AutoscalingCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "WAIT_S", 16.0)
    monkeypatch.setattr(capacity, "REPORT_S", 4.0)
    run = tmp_path / "run"
    flags = ["--data", "mnist5k", "--workers", "1", "--device", "cuda", "--out", str(run), "--address", cluster.address]
    done = cli("train", *flags)
    asked = "--workers 1: asks for 1 x (1 CPU, 1 GPU)"
    has = "the cluster has 0 CPUs (0 free) and 0 GPUs (0 free); launching: "
    assert f" of 16 s: {asked}; {has}" in done.stdout, done.stdout
    assert done.stdout.count("waiting for room") >= 3
    assert f"error: {asked} and found no room in" in done.stderr, done.stderr
    reason = {"v1": "InsufficientInstanceCapacity, there are no GPUs left", "v2": "`ray logs cluster monitor.log` says why"}
    assert re.search(rf"failed to launch: (\d+ x )?gpu-worker: {reason[cluster.version]}", done.stderr), done.stderr
    assert done.returncode == 7
    assert not run.exists()


def _finish(job: subprocess.Popen[str], status: int = 0) -> str:
    printed, said = job.communicate(timeout=400)
    assert job.returncode == status, printed + said
    assert "Traceback" not in said
    print(printed)
    return printed


@pytest.mark.long
def test_training_scales_up_and_back_down(cluster: AutoscalingCluster, tmp_path: Path) -> None:
    flags = ["--data", "mnist5k", "--epochs", "2", "--workers", "4", "--out", str(tmp_path)]
    with cluster.nodes_over_time() as nodes:
        printed = _finish(start_cli("train", *flags, "--address", cluster.address))
        wait_for(lambda: nodes[-1] == 1)
    assert (nodes[0], max(nodes), nodes[-1]) == (1, 5, 1)
    assert "epoch 2/2" in printed


@pytest.mark.slow
def test_scoring_scales_up_and_back_down(
    cluster: AutoscalingCluster, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "2:4", "--address", cluster.address]
    with cluster.nodes_over_time() as nodes:
        printed = _finish(start_cli("score", str(digit_folder), *flags))
        wait_for(lambda: nodes[-1] == 1)
    assert "300 inputs = 300 predicted + 0 quarantined" in printed
    assert nodes[0] == 1
    assert max(nodes) >= 3
    assert cli("verify", str(tmp_path / "out")).returncode == 0


@pytest.mark.long
def test_the_pool_of_auto_grows_with_the_work(
    cluster: AutoscalingCluster, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    """More work than there is time for: the job is stopped once the cluster has grown."""
    lines = "\n".join(str(path) for path in digit_folder.rglob("*.png")) + "\n"
    (tmp_path / "list.txt").write_text(lines * 5000)
    flags = ["--model", str(run_dir), "--out", str(tmp_path / "out"), "--unit-rows", "500", "--address", cluster.address]
    with cluster.nodes_over_time() as nodes:
        job = start_cli("score", str(tmp_path / "list.txt"), *flags)
        wait_for(lambda: nodes[-1] >= 3, job)
        job.send_signal(signal.SIGTERM)
        _finish(job, status=143)
        wait_for(lambda: nodes[-1] == 1)
    assert nodes[:2] == [1, 2], "the pool did not start with one actor"


@pytest.mark.parametrize(
    ("workers", "device", "has", "expected"),
    [
        (4, "auto", ONE_CPU, {"CPU": 0.25}),
        (3, "cpu", FOUR_CPUS, {"CPU": 1}),
        (2, "auto", FOUR_CPUS, {"CPU": 1, "GPU": 1}),
        (3, "auto", FOUR_CPUS, {"CPU": 1}),
        (4, "auto", HEAD_OF_ONE, {"CPU": 1}),
        (4, "cuda", HEAD_OF_ONE, {"CPU": 1, "GPU": 1}),
    ],
)
def test_workers_share_a_cpu_only_where_no_autoscaler_brings_more(
    workers: int, device: str, has: Capacity, expected: dict[str, float]
) -> None:
    assert capacity.needs(workers, device, has) == expected


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_workers_of_a_range_never_share_a_cpu(workers: int) -> None:
    assert capacity.needs(workers, "cpu", FOUR_CPUS, elastic=True) == {"CPU": 1}


def test_a_range_with_fewer_cpus_than_its_smallest_number_is_refused() -> None:
    message = "--workers 3:MAX: the cluster has 1 CPUs, and MIN:MAX workers take one each; ask for at most 1, or add nodes"
    with pytest.raises(ClusterError, match=message):
        capacity.needs(3, "cpu", ONE_CPU, elastic=True)


@pytest.mark.parametrize(
    ("workers", "device", "has", "message"),
    [
        (1, "auto", NOTHING, "--workers 1: the cluster has 0 CPUs"),
        (5, "cpu", ONE_CPU, "ask for at most 4, or add nodes"),
        (3, "cuda", FOUR_CPUS, "asks for 3 GPUs and the cluster has 2"),
    ],
)
def test_a_cluster_that_cannot_grow_is_refused_at_once(workers: int, device: str, has: Capacity, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        capacity.needs(workers, device, has)


@pytest.mark.parametrize(
    ("device", "has", "expected"),
    [("auto", FOUR_CPUS, 2), ("cpu", FOUR_CPUS, 4), ("auto", ONE_CPU, 1), ("cpu", HEAD_OF_ONE, capacity.LARGEST_POOL)],
)
def test_auto_asks_for_one_worker_per_gpu_or_cpu(device: str, has: Capacity, expected: int) -> None:
    assert capacity.size(device, has) == expected


@pytest.mark.parametrize(
    ("nodes", "share"),
    [
        ([], 1.0),
        ([{"CPU": 16}], 1.0),
        ([{"CPU": 1, "GPU": 1}], 1.0),
        ([{"CPU": 16}, {"CPU": 4, "GPU": 1}], 1 / 4),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 12, "GPU": 4}], 1 / 2),
        ([{"CPU": 192, "GPU": 8}], 1 / capacity.ACTORS_PER_GPU),
    ],
)
def test_the_scoring_actors_of_a_node_share_its_gpus(nodes: list[dict[str, float]], share: float) -> None:
    assert capacity.gpu_share(nodes) == share


def test_a_pool_has_as_many_actors_as_the_gpus_have_shares() -> None:
    assert capacity.size("auto", FOUR_CPUS, 0.5) == 4
    assert capacity.needs(4, "auto", FOUR_CPUS, gpus=0.5) == {"CPU": 1, "GPU": 0.5}
    assert capacity.needs(3, "auto", FOUR_CPUS, gpus=1.0) == {"CPU": 1}, "the GPUs are too few for all"
    with pytest.raises(ClusterError, match=r"asks for 2\.5 GPUs and the cluster has 2"):
        capacity.needs(5, "cuda", FOUR_CPUS, gpus=0.5)
