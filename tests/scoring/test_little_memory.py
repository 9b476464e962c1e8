"""Jobs on a machine with too little memory, or with too little shared memory."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mnist_ray import cli as command_line
from mnist_ray.config import VerifyConfig
from mnist_ray.data.digits import Splits
from mnist_ray.scoring.verify import verify
from tests.cluster.test_doctor import require_namespaces
from tests.conftest import ROOT, cli
from tests.scoring.conftest import Run
from tests.scoring.test_csv import pixel_table

LIMIT_KB = 1_500_000
"""Enough to start a job, and not enough to load PyTorch."""


def run_within(shell: str, *args: str, inside: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command line in a shell that limits it first."""
    command = [*inside, "bash", "-c", f'{shell} && exec "$0" "$@"', sys.executable, "-m", "mnist_ray", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space of a process")
def test_too_little_memory_for_pytorch_is_one_clear_error(
    digit_folder: Path, run_dir: Path, small_idx: Path, tmp_path: Path
) -> None:
    score = ["score", str(digit_folder), "--model", str(run_dir), "--workers", "0", "--processes", "1"]
    train = ["train", "--data", str(small_idx), "--workers", "0", "--epochs", "9"]
    for args, message in (
        (score, "a scoring process cannot load PyTorch: memory is short"),
        (train, "memory ran out: libtorch"),
    ):
        done = run_within(f"ulimit -v {LIMIT_KB}", *args, "--out", str(tmp_path / args[0]))
        assert done.returncode == 7, done.stderr
        assert done.stderr.startswith(f"error: {message}")
        assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), 7),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"), 7),
        (RuntimeError("a defect"), None),
        (ImportError("cannot import name"), None),
    ],
    ids=str,
)
def test_memory_that_runs_out_is_one_line_and_a_defect_is_not_taken_for_it(
    error: Exception, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    fail.__name__ = "verify"
    monkeypatch.setitem(command_line._COMMANDS, VerifyConfig, fail)
    if status is None:
        with pytest.raises(type(error)):
            cli("verify", "x")
    else:
        done = cli("verify", "x")
        assert (done.returncode, done.stderr.startswith("error: memory ran out: ")) == (status, True)


def test_memory_that_pyarrow_lacks_is_not_taken_for_damage(
    monkeypatch: pytest.MonkeyPatch, run: Run, run_dir: Path, digit_folder: Path, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    pq.write_table(pa.table({"path": [str(next(digit_folder.rglob("*.png")))]}), tmp_path / "list.parquet")
    pa_csv.write_csv(pixel_table(mnist5k, 10), tmp_path / "train.csv")
    inputs = [str(tmp_path / name) for name in ("list.parquet", "train.csv")]

    def fail(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    run(*inputs, out=out)
    for reader, flag in (
        ("parquet.ParquetFile", "--extend"),
        ("parquet.ParquetFile", "--overwrite"),
        ("parquet.read_schema", "--overwrite"),
        ("csv.read_csv", "--overwrite"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"pyarrow.{reader}", fail)
            done = cli("score", *inputs, "--model", str(run_dir), "--out", str(out), "--workers", "0", flag)
        assert (done.returncode, "memory ran out" in done.stderr) == (7, True), (reader, flag, done.stderr)


@pytest.mark.slow
def test_little_shared_memory_does_not_matter_and_none_is_one_clear_error(
    digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    unshare = require_namespaces("--mount", "--propagation", "private")
    little = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    flags = ["score", str(digit_folder), "--model", str(run_dir), "--workers"]
    for workers in "01":
        out = str(tmp_path / workers)
        done = run_within(little, *flags, workers, "--out", out, inside=unshare)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert verify(out).predicted == 300
    done = run_within(
        f"{little}; ! cat /dev/zero 2>&- >/dev/shm/full", *flags, "0", "--out", str(tmp_path / "x"), inside=unshare
    )
    message = "error: scoring processes cannot be started: No space left on device; free some space in /dev/shm\n"
    assert (done.returncode, done.stderr) == (7, message)
