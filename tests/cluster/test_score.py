"""Scoring on Ray: the same table as in one process, whatever is killed."""

from __future__ import annotations

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
from mnist_ray.cli import main
from mnist_ray.cluster import runtime
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from tests.conftest import ROOT, RayCluster, cli, wait_for, write_pickled_table


def table(out: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(out / "predictions").to_pylist(), key=lambda row: str(row["source"]))


@pytest.fixture(scope="module")
def inline(digit_folder: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table that one process writes."""
    out = tmp_path_factory.mktemp("inline") / "out"
    assert main(["score", str(digit_folder), "--model", str(run_dir), "--out", str(out), "--workers", "0"]) == 0
    return out


def test_actors_write_the_table_that_one_process_writes(
    ray_cluster: RayCluster, inline: Path, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = [
        "--model",
        str(run_dir),
        "--out",
        str(out),
        "--workers",
        "2",
        "--unit-rows",
        "40",
        "--address",
        ray_cluster.address,
    ]
    done = cli("score", str(digit_folder), *flags)
    assert done.returncode == 0, done.stderr
    assert "300 inputs = 300 predicted + 0 quarantined, accuracy" in done.stdout
    ours, theirs = table(out), table(inline)
    assert [(row["source"], row["label"], row["truth"]) for row in ours] == [
        (r["source"], r["label"], r["truth"]) for r in theirs
    ]
    assert all(abs(a["confidence"] - b["confidence"]) < 1e-5 for a, b in zip(ours, theirs, strict=True))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy"] == json.loads((inline / "summary.json").read_text())["accuracy"]
    assert cli("verify", str(out)).returncode == 0


@pytest.mark.parametrize("victim", ["driver", "actor"])
def test_a_kill_in_the_middle_loses_and_doubles_nothing(
    victim: str, ray_cluster: RayCluster, inline: Path, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ["--model", str(run_dir), "--out", str(out), "--workers", "2", "--unit-rows", "1", "--address", ray_cluster.address]
    command = [sys.executable, "-m", "mnist_ray", "score", str(digit_folder), *flags]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(list((out / "predictions").glob("part-*"))) >= 20 if out.exists() else False)
    os.kill(job.pid if victim == "driver" else _actor_pids()[0], signal.SIGKILL)
    job.wait(120)
    if victim == "driver":
        assert cli("verify", str(out)).returncode == 6
        resumed = cli("score", str(digit_folder), *flags, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert "units are done already" in resumed.stdout
    else:
        assert job.returncode == 0
    verified = cli("verify", str(out))
    assert verified.returncode == 0, verified.stderr
    assert [(row["source"], row["label"]) for row in table(out)] == [(row["source"], row["label"]) for row in table(inline)]


def _actor_pids() -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "ray::MapWorker" in line]


def test_a_broken_model_on_the_actors_is_one_clear_error(
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


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "http://127.0.0.1:8265"])
def test_an_unreachable_cluster_is_named(
    address: str,
    digit_folder: Path,
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runtime, "ANSWER_S", 1.0)
    flags = ["--model", str(run_dir), "--out", str(tmp_path / "out"), "--address", address]
    assert main(["score", str(digit_folder), *flags]) == 7
    assert f"no Ray cluster answers at {address}" in capfd.readouterr().err
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
    done = cli(*job, *flags, *(["--address", ray_cluster.address] if workers == "2" else []))
    assert not marker.exists(), "an object of the table was unpickled"
    assert (done.returncode, REFUSED in done.stderr) == (3, True), done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_processes_that_use_ray_data_know_none_of_its_extension_types() -> None:
    """Where one is registered, reading a file may run code that the file names."""
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


@pytest.fixture
def long_job(digit_folder: Path, run_dir: Path, tmp_path: Path) -> list[str]:
    """A job of many seconds: a manifest of 120,000 lines, in small units."""
    lines = [str(path) for path in sorted(digit_folder.rglob("*.png"))]
    (tmp_path / "list.txt").write_text("\n".join(lines * 400))
    out = str(tmp_path / "out")
    return ["score", str(tmp_path / "list.txt"), "--model", str(run_dir), "--out", out, "--workers", "0", "--unit-rows", "1000"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_that_is_asked_to_stop_keeps_what_it_has(number: int, status: int, long_job: list[str], tmp_path: Path) -> None:
    parts = tmp_path / "out" / "predictions"
    job = subprocess.Popen([sys.executable, "-m", "mnist_ray", *long_job], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: parts.exists() and len(list(parts.glob("part-*"))) >= 5)
    second = cli(*long_job, "--resume")
    assert (second.returncode, f"process {job.pid} on" in second.stderr) == (5, True), second.stderr
    os.kill(job.pid, number)
    _, said = job.communicate(timeout=60)
    assert job.returncode == status, said
    assert "Traceback" not in said
    done = len(list(parts.iterdir()))
    assert 5 <= done < 120
    assert not (tmp_path / "out" / "owner.json").exists()
    assert cli("verify", str(tmp_path / "out")).returncode == 6


def _children(pid: int) -> list[int]:
    """Processes below this one, at any depth."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [below for child in map(int, found) for below in (child, *_children(child))]


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_kill_without_ray_leaves_nothing_running_and_loses_nothing(victim: str, long_job: list[str], tmp_path: Path) -> None:
    parts = tmp_path / "out" / "predictions"
    job = subprocess.Popen([sys.executable, "-m", "mnist_ray", *long_job], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: parts.exists() and len(list(parts.glob("part-*"))) >= 5)
    family = _children(job.pid)
    assert len(family) >= 2
    os.kill(job.pid if victim == "driver" else family[-1], signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    if victim == "worker":
        assert job.returncode == 7, said
        assert "a scoring process was killed, or ran out of memory; run again with --resume" in said
        assert "Traceback" not in said
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 20)
    resumed = cli(*long_job, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert cli("verify", str(tmp_path / "out")).returncode == 0
