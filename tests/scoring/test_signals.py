"""Signals to a scoring job without Ray: it ends soon, leaves no process behind, and loses nothing."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mnist_ray.scoring.verify import verify
from tests.conftest import cli, descendants, start_cli, wait_for
from tests.scoring.conftest import parts

pytestmark = pytest.mark.slow


def start(flags: list[str]) -> tuple[subprocess.Popen[str], list[int]]:
    """A job that has written some parts, and its processes."""
    job = start_cli(*flags)
    out = Path(flags[flags.index("--out") + 1])
    wait_for(lambda: out.joinpath("predictions").exists() and len(parts(out)) > 3, job)
    return job, list(descendants(job.pid))


def check_ended(job: subprocess.Popen[str], family: list[int], status: int) -> None:
    _, said = job.communicate(timeout=15)
    assert job.returncode in (status, -signal.SIGINT if status == 130 else status), said  # the second signal may come last
    assert "Traceback" not in said
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


@pytest.mark.parametrize("pause_s", [0.3, *(pytest.param(0.1 * n, marks=pytest.mark.long) for n in range(20))])
def test_a_second_ctrl_c_ends_the_job(pause_s: float, long_job: list[str], tmp_path: Path) -> None:
    job, family = start(long_job)
    job.send_signal(signal.SIGINT)
    time.sleep(pause_s)
    job.send_signal(signal.SIGINT)
    check_ended(job, family, 130)
    done = cli(*long_job, "--resume")
    assert done.returncode == 0, done.stderr
    verify(str(tmp_path / "out"))


@pytest.mark.parametrize("after_s", [0.2, 1.0, 2.0])
def test_ctrl_c_in_a_terminal_while_a_job_starts(after_s: float, long_job: list[str]) -> None:
    job = start_cli(*long_job, new_session=True)
    assert job.stdout
    assert "starting" in job.stdout.readline()
    time.sleep(after_s)
    family = list(descendants(job.pid))
    os.killpg(job.pid, signal.SIGINT)  # a terminal sends it to all processes
    check_ended(job, family, 130)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_frozen_process_does_not_keep_a_job_from_ending(number: int, long_job: list[str]) -> None:
    job, family = start(long_job)
    os.kill(family[-1], signal.SIGSTOP)
    job.send_signal(number)
    check_ended(job, family, 143 if number == signal.SIGTERM else 130)


def test_nohup_keeps_a_job_alive(long_job: list[str], tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by the job, as from nohup
    try:
        job, _ = start(long_job)
    finally:
        signal.signal(signal.SIGHUP, before)
    job.send_signal(signal.SIGHUP)
    _, said = job.communicate(timeout=240)
    assert job.returncode == 0, said
    verify(str(tmp_path / "out"))
