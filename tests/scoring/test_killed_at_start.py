"""Processes that are killed while the scoring processes of a job start."""

import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.scoring.verify import verify
from tests.conftest import ROOT

KILL_FORK_SERVER = """
import os, signal, sys
from multiprocessing import forkserver
from mnist_ray.cli import main
connect, starts = forkserver.connect_to_new_process, []
def connect_and_kill(fds):
    starts.append(fds)
    if str(len(starts)) not in sys.argv[1].split():
        return connect(fds)
    forkserver.ensure_running()
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGSTOP)
    connection = connect(fds)
    os.kill(server, signal.SIGKILL)
    return connection
forkserver.connect_to_new_process = connect_and_kill
sys.exit(main(sys.argv[2:]))
"""
"""Scores, but kills the process that has PyTorch when it is asked for certain scoring processes."""


def score(program: str, *args: str, inputs: Path, run: Path, out: Path) -> tuple[int, str]:
    flags = ["score", str(inputs), "--model", str(run), "--out", str(out), "--workers", "0", "--processes", "2"]
    command = [sys.executable, "-c", program, *args, *flags, "--unit-rows", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
    return done.returncode, done.stdout + done.stderr


def test_a_fork_server_that_is_killed_at_the_start_is_one_clear_error(digit_folder: Path, run_dir: Path, out: Path) -> None:
    status, said = score(KILL_FORK_SERVER, "1", inputs=digit_folder, run=run_dir, out=out)
    assert status == 7, said
    assert said.splitlines()[-1].startswith("error: the first scoring process ended while it started")
    assert "Traceback" not in said
    assert not out.exists(), "a job that has not started left something behind"


@pytest.mark.slow
def test_a_fork_server_that_is_killed_later_does_not_end_the_job(digit_folder: Path, run_dir: Path, out: Path) -> None:
    """It is killed again while new processes start."""
    status, said = score(KILL_FORK_SERVER, "2 3", inputs=digit_folder, run=run_dir, out=out)
    assert status == 0, said
    assert "a scoring process ended unexpectedly; its units are read again, one by one" in said
    assert "Traceback" not in said
    assert verify(str(out)).predicted == 300
