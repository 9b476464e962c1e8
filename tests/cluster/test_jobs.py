"""`ray job submit`: both jobs, their exit statuses and their logs."""

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import BIN, ROOT, RayCluster


def submit(cluster: RayCluster, *command: str) -> subprocess.CompletedProcess[str]:
    flags = [f"--address={cluster.jobs_address}", "--working-dir", "."]
    return subprocess.run(
        [str(BIN / "ray"), "job", "submit", *flags, "--", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
        env=os.environ,
    )


@pytest.mark.slow
def test_both_jobs_succeed(ray_cluster: RayCluster, digit_folder: Path, tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    training = ["--data", "mnist5k", "--epochs", "1", "--workers", "2", "--out", run]
    trained = submit(ray_cluster, "python", "jobs/train.py", *training)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "epoch 1/1" in trained.stdout
    assert "succeeded" in trained.stdout
    scored = submit(ray_cluster, "python", "jobs/score.py", str(digit_folder), "--model", run, "--out", out, "--workers", "1")
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert "300 inputs = 300 predicted + 0 quarantined" in scored.stdout


@pytest.mark.slow
def test_a_relative_out_is_kept_below_the_home_of_the_machine_that_runs_the_job(
    ray_cluster: RayCluster, small_idx: Path, tmp_path: Path
) -> None:
    flags = f"python jobs/train.py --data {small_idx} --workers 0 --epochs 1"
    done = submit(ray_cluster, "env", f"HOME={tmp_path}", "bash", "-c", f"{flags} && {flags} --out kept/run")
    assert done.returncode == 0, done.stdout + done.stderr
    for run in [*(tmp_path / "mnist_ray" / "runs").iterdir(), tmp_path / "mnist_ray" / "kept" / "run"]:
        assert (run / "metrics.json").exists()
        assert f"run directory: {run}, model bundle: {run}/model" in done.stdout


@pytest.mark.slow
def test_a_wrong_flag_fails_with_the_message_of_the_program(ray_cluster: RayCluster) -> None:
    """Two wrong command lines in one submission, because each submission takes seconds to start."""
    failed = submit(ray_cluster, "bash", "-c", "python jobs/train.py --data nowhere; exec python jobs/train.py --epochs 0")
    assert "nowhere: there is no such file or folder" in failed.stdout
    assert failed.returncode == 1
    assert "error: --epochs 0.0: expected passes above 0" in failed.stdout
    assert "failed" in (failed.stdout + failed.stderr).lower()


def test_the_upload_is_small(tmp_path: Path) -> None:
    """Ray packs the working directory; `.rayignore` keeps large files out."""
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "upload.zip", include_gitignore=True)
    assert (tmp_path / "upload.zip").stat().st_size < 1_000_000
    with zipfile.ZipFile(tmp_path / "upload.zip") as upload:
        names = upload.namelist()
    assert "jobs/train.py" in names
    assert not [name for name in names if name.startswith((".git/", ".venv/"))]
