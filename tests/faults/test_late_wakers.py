"""A driver that is suspended while another job replaces its table, and then goes on."""

import random
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mnist_ray.scoring.plan import load_plan
from mnist_ray.scoring.verify import verify
from tests.conftest import cli, start_cli

INPUTS = 30_000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory, small_idx: Path) -> Path:
    """A second model."""
    run = tmp_path_factory.mktemp("other") / "run"
    done = cli("train", "--data", str(small_idx), "--workers", "0", "--epochs", "1", "--seed", "9", "--out", str(run))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_a_driver_that_wakes_late_changes_nothing(
    seed: int, run_dir: Path, other_run: Path, digit_folder: Path, tmp_path: Path
) -> None:
    """It sleeps from a random moment on, and wakes at a random moment during the second job, or after it."""
    when = random.Random(seed)
    out, inputs = tmp_path / "out", tmp_path / "list.txt"
    paths = [str(path) for path in sorted(digit_folder.rglob("*.png"))]
    inputs.write_text("\n".join((paths * (INPUTS // len(paths) + 1))[:INPUTS]))
    flags = ["score", str(inputs), "--out", str(out), "--workers", "0", "--probabilities", "top1"]
    first = start_cli(*flags, "--model", str(run_dir), "--unit-rows", "750")
    time.sleep(when.uniform(1.5, 6))
    first.send_signal(signal.SIGSTOP)
    second = start_cli(*flags, "--model", str(other_run), "--unit-rows", "1000", "--overwrite")
    time.sleep(when.uniform(5, 25))
    first.send_signal(signal.SIGCONT)
    _, said_second = second.communicate(timeout=240)
    _, said_first = first.communicate(timeout=240)
    assert "Traceback" not in said_first + said_second
    # The second job may find a folder without a job, or the first job awake again.
    assert first.returncode in (0, 5), said_first
    assert second.returncode in (0, 5), said_second
    assert 0 in (first.returncode, second.returncode), said_first + said_second
    winner = other_run if second.returncode == 0 else run_dir
    assert verify(str(out)).inputs == INPUTS
    plan = load_plan(str(out))
    assert plan.request["unit_rows"] == (1000 if winner == other_run else 750)
    assert pq.read_table(out / "predictions", columns=["source"]).num_rows == INPUTS
    assert not [path for path in out.rglob(".*.tmp") if path.is_file()]
    shutil.rmtree(out)
