"""Scoring by actors on Ray and by processes without Ray: the same table, also after kills and stops."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, save

from mnist_ray.artifact import seal
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from tests.conftest import RayCluster, cli, descendants, start_cli, wait_for, write_pickled_table


def table(out: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(out / "predictions").to_pylist(), key=lambda row: str(row["source"]))


def parts(out: Path) -> int:
    """The number of finished parts of a table."""
    return len(list((out / "predictions").glob("part-*")))


@pytest.fixture(scope="module")
def without_ray(digit_folder: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table that one job without Ray writes."""
    out = tmp_path_factory.mktemp("without_ray") / "out"
    done = cli("score", str(digit_folder), "--model", str(run_dir), "--out", str(out), "--workers", "0")
    assert done.returncode == 0, done.stderr
    return out


LISTING = """
import sys
from mnist_ray.cli import main
from mnist_ray.scoring.planner import Planner
look_ahead = Planner.look_ahead
Planner.look_ahead = lambda planner, _: look_ahead(planner, lambda: sys.argv[1] == "none")
sys.exit(main(sys.argv[2:]))
"""
"""The command line, which lists all inputs while Ray starts, or none but the first."""


@pytest.mark.parametrize("listed", ["all", "none"], ids=["all inputs are known", "the plan grows"])
def test_actors_write_the_same_table_as_a_job_without_ray(
    listed: str, ray_cluster: RayCluster, without_ray: Path, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ["--model", str(run_dir), "--out", str(out), "--workers", "2", "--unit-rows", "40"]
    job = ["score", str(digit_folder), *flags, "--address", ray_cluster.address]
    command = [sys.executable, "-c", LISTING, listed, *job]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "300 inputs = 300 predicted + 0 quarantined, accuracy" in done.stdout
    found, expected = table(out), table(without_ray)
    columns = ("source", "label", "truth")
    assert [[row[name] for name in columns] for row in found] == [[row[name] for name in columns] for row in expected]
    assert all(abs(a["confidence"] - b["confidence"]) < 1e-5 for a, b in zip(found, expected, strict=True))
    accuracies = [json.loads((folder / "summary.json").read_text())["accuracy"] for folder in (out, without_ray)]
    assert accuracies[0] == accuracies[1]
    assert cli("verify", str(out)).returncode == 0


NAMED_ACTORS = """
import sys
from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.score_job import score

class Watching(Console):
    def progress(self, step, *args, **more):
        if step == "scoring":
            import ray
            print(*sorted(one["name"] for one in ray.util.list_named_actors(all_namespaces=True)), file=sys.stderr)

images, model, out, address = sys.argv[1:]
score(ScoreConfig(inputs=(images,), model=model, out=out, address=address, workers="1", unit_rows=100), Watching())
"""


@pytest.mark.slow
def test_only_a_cluster_that_others_use_gets_helpers_of_ray_data(
    ray_cluster: RayCluster, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    found = []
    for address in ("local", ray_cluster.address):
        args = [str(digit_folder), str(run_dir), str(tmp_path / address), address]
        command = [sys.executable, "-c", NAMED_ACTORS, *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append({word for line in done.stderr.splitlines() for word in line.split()})
    assert found[0] == set()
    assert {"ActorLocationTracker", "AutoscalingCoordinator", "datasets_stats_actor"} <= found[1]


@pytest.mark.slow
def test_a_killed_driver_and_a_killed_actor_lose_and_double_nothing(
    ray_cluster: RayCluster, without_ray: Path, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    """The driver is killed first; of the job that resumes, an actor is killed."""
    out = tmp_path / "out"
    flags = ["--model", str(run_dir), "--out", str(out), "--workers", "2", "--unit-rows", "1", "--address", ray_cluster.address]
    command = ["score", str(digit_folder), *flags]
    job = start_cli(*command)
    wait_for(lambda: parts(out) >= 20, job)
    job.kill()
    job.communicate()
    assert cli("verify", str(out)).returncode == 6
    wait_for(lambda: not ray_cluster.processes("MapWorker"))
    done = parts(out)
    job = start_cli(*command, "--resume")
    wait_for(lambda: parts(out) >= done + 20, job)
    os.kill(ray_cluster.processes("MapWorker")[0], signal.SIGKILL)
    printed, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert "units are done already" in printed
    verified = cli("verify", str(out))
    assert verified.returncode == 0, verified.stderr
    found, expected = table(out), table(without_ray)
    assert [(row["source"], row["label"]) for row in found] == [(row["source"], row["label"]) for row in expected]


@pytest.mark.slow
def test_a_damaged_model_on_the_actors_is_one_clear_error(
    ray_cluster: RayCluster, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    """The bundle passes its seal, and fails the self-test that every actor runs."""
    files, _ = seal.read(str(run_dir / "model"))
    weights = load(files["weights.safetensors"])
    weights["head.bias"] = weights["head.bias"] + 0.1
    seal.write(str(tmp_path / "model"), {**files, "weights.safetensors": save(weights)})
    flags = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--address", ray_cluster.address]
    done = cli("score", str(digit_folder), *flags)
    assert done.returncode == 4, done.stderr
    assert "its self-test differs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:gcs", "ray://127.0.0.1:1", "http://127.0.0.1:8265"])
def test_an_unreachable_cluster_is_named(address: str, digit_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    flags = ["--model", str(run_dir), "--out", str(tmp_path / "out"), "--address", address]
    done = cli("score", str(digit_folder), *flags)
    assert (done.returncode, f"no Ray cluster answers at {address}" in done.stderr) == (7, True), done.stderr
    assert not (tmp_path / "out").exists(), "a refused job left something behind"


REFUSED = "holds values of the extension type 'ray.data.arrow_pickled_object', which are never read"


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("flags", [[], ["--keep", "extra", "--image-column", "bytes"]], ids=" ".join)
def test_pickled_objects_in_a_table_are_refused_and_nothing_runs(
    flags: list[str], workers: str, ray_cluster: RayCluster, mnist5k: Splits, run_dir: Path, tmp_path: Path
) -> None:
    inputs, marker, out = tmp_path / "t.parquet", tmp_path / "it-ran", tmp_path / "out"
    digits = mnist5k.test.take(np.arange(20))
    more = {"bytes": [encode_png(image) for image in digits.images]} if flags else {}
    write_pickled_table(inputs, digits, marker, **more)
    job = ["score", str(inputs), "--model", str(run_dir), "--out", str(out), "--workers", workers]
    process = start_cli(*job, *flags, *(["--address", ray_cluster.address] if workers == "2" else []))
    _, said = process.communicate(timeout=240)
    assert not marker.exists(), "an object of the table was unpickled"
    assert (process.returncode, REFUSED in said) == (3, True), said
    assert said.count("\n") == 1
    assert not out.exists()


def test_importing_the_actors_leaves_no_extension_type_of_ray_registered() -> None:
    """While such a type is registered, reading a file may run code that the file names."""
    program = (
        "import pyarrow as pa\n"
        "known, register, unregister = set(), pa.register_extension_type, pa.unregister_extension_type\n"
        "pa.register_extension_type = lambda kind: (known.add(kind.extension_name), register(kind))\n"
        "def forget(name):\n    unregister(name)\n    known.discard(name)\n"
        "pa.unregister_extension_type = forget\n"
        "import mnist_ray.cluster.actors\n"
        "assert not known, known\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("number", "status"),
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)],
)
def test_a_stopped_job_keeps_its_finished_parts(number: int, status: int, long_job: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = start_cli(*long_job)
    wait_for(lambda: parts(out) >= 5, job)
    second = cli(*long_job, "--resume")
    assert (second.returncode, f"process {job.pid} on" in second.stderr) == (5, True), second.stderr
    job.send_signal(number)
    _, said = job.communicate(timeout=60)
    assert job.returncode == status, said
    assert "Traceback" not in said
    done = len(list((out / "predictions").iterdir()))
    assert 5 <= done < 120
    assert json.loads((out / "owner.json").read_text())["ended"]
    assert cli("verify", str(out)).returncode == 6


def _kill_in_the_middle(flags: list[str], out: Path, victim: str) -> tuple[int, str]:
    """Kill a process of a job, and wait until none of them is left. Returns the job's exit status and messages."""
    before = parts(out)
    job = start_cli(*flags)
    wait_for(lambda: parts(out) >= before + 5, job)
    family = list(descendants(job.pid))
    assert len(family) >= 2
    os.kill(job.pid if victim == "driver" else family[-1], signal.SIGKILL)
    said = "".join(job.communicate(timeout=120))
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))
    return job.returncode, said


@pytest.mark.slow
def test_kills_without_ray_leave_no_process_and_lose_nothing(long_job: list[str], tmp_path: Path) -> None:
    """The driver is killed first; of the job that resumes, a scoring process is killed, and others go on."""
    out = tmp_path / "out"
    _kill_in_the_middle(long_job, out, "driver")
    status, said = _kill_in_the_middle([*long_job, "--resume"], out, "scoring process")
    assert status == 0, said
    assert "a scoring process ended unexpectedly; its units are read again, one by one" in said
    assert "Traceback" not in said
    assert cli("verify", str(out)).returncode == 0
