"""The output of jobs: on a real terminal, in a pipe, as JSON, and with --quiet."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from mnist_ray import console
from mnist_ray import score_job as scoring_job
from mnist_ray.config import TrainConfig
from mnist_ray.console import Console
from mnist_ray.train_job import FEW_STEPS, _warn_if_short
from tests.conftest import ROOT, cli, start_cli

BAR, ERASE, RED_BAR = "━", "\x1b[2K", re.compile(r"\x1b\[(?:\d+;)*3\d")
PROGRAM = """
import time
from mnist_ray.console import Console
with Console() as output:
    output.progress("starting Ray")
    time.sleep(0.6)
    output.progress("scoring", 25, 100, "images", 5.0, "1 quarantined")
    time.sleep(0.6)
    output.line("a line " + "of text " * 20 + "\\udcff [red]")
    output.progress("scoring", 50, 100, "images", 5.0, "2 quarantined", growing=True)
    time.sleep(0.6)
"""


class Terminal:
    """A program on a real pseudo-terminal."""

    def __init__(self, *command: str, **variables: str) -> None:
        self._reader, terminal = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", **variables}
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=env, cwd=ROOT, start_new_session=True
        )
        os.close(terminal)
        self.text = ""

    def read(self, until: Callable[[str], bool]) -> str:
        """Read until the text fulfils a condition or the program ends. Fails after two minutes."""
        deadline = time.monotonic() + 120
        while not until(self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._reader], [], [], 1)[0]:
                try:
                    data = os.read(self._reader, 65536)
                except OSError:  # the program has closed the terminal
                    break
                self.text += data.decode(errors="replace")
        return self.text

    def close(self) -> str:
        """Read to the end of the program; returns all its text."""
        self.read(lambda _: False)
        os.close(self._reader)
        self.process.wait(60)
        return self.text


@contextmanager
def on_terminal(*command: str, **variables: str) -> Iterator[Terminal]:
    terminal = Terminal(*command, **variables)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()


def plain(text: str) -> str:
    """The text without the control sequences of the terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_a_bar_that_is_redrawn() -> None:
    with on_terminal(sys.executable, "-c", PROGRAM) as terminal:
        text = terminal.close()
    assert terminal.process.returncode == 0, text
    assert text.count(BAR) > 80, "the bar is drawn again and again"
    assert ERASE in text
    assert RED_BAR.search(text), "there are colours"
    shown = plain(text)
    assert f"starting Ray {BAR}" in shown
    assert "25%  0:00:15 left" in shown
    assert "25 of 100 images  5/s  1 quarantined" in shown
    assert "50 of 100+ images  5/s  2 quarantined" in shown
    assert re.search(r"a line (of text ){20}\\udcff \[red\]\r\n", shown), "lines are not cut, and are not markup"
    assert text.index("\x1b[?25h") > text.rindex(BAR), "the cursor is visible again"
    assert not plain(text[text.rindex(ERASE) :]).strip(), "the bar is removed"


def test_a_terminal_without_colour_shows_the_bar_without_colour() -> None:
    with on_terminal(sys.executable, "-c", PROGRAM, NO_COLOR="1") as terminal:
        text = terminal.close()
    assert BAR in text
    assert not RED_BAR.search(text)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    with on_terminal(sys.executable, "-c", PROGRAM, TERM="dumb") as terminal:
        text = terminal.close()
    assert "\x1b" not in text
    assert text.splitlines()[:2] == ["starting Ray", "scoring  25%  25 of 100 images  5/s  1 quarantined  0:00:15 left"]


def test_a_terminal_that_disappears_does_not_end_the_job() -> None:
    program = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{PROGRAM}"
    reader, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    os.read(reader, 10)
    os.close(reader)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_other_output_gets_a_line_for_each_step_and_then_at_intervals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Console()
    output.progress("starting Ray")
    output.progress("scoring", 1, 3, "images")
    output.progress("scoring", 2, 3, "images")
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.0)
    output._next = 0.0
    output.progress("scoring", 3, 3, "images")
    output.line("done")
    assert capsys.readouterr().out.splitlines() == [
        "starting Ray",
        "scoring  33%  1 of 3 images",
        "scoring  100%  3 of 3 images",
        "done",
    ]


def test_a_pipe_is_not_drawn_on_and_does_not_import_rich() -> None:
    program = f"{PROGRAM}\nimport sys\nassert 'rich' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "starting Ray"
    assert "\x1b" not in done.stdout


def test_json_is_one_object_per_line(run_dir: Path, digit_folder: Path, tmp_path: Path) -> None:
    args = ["score", str(digit_folder), "--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0"]
    done = cli(*args, "--log-format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(row.keys() >= {"time", "level", "event", "message"} for row in rows)
    assert all(datetime.fromisoformat(row["time"]).tzinfo for row in rows)
    progress = next(row for row in rows if row.get("step") == "scoring")
    assert (progress["event"], progress["total"], progress["quarantined"]) == ("progress", 300, 0)
    assert (rows[-1]["event"], rows[-1]["inputs"], rows[-1]["out"]) == ("result", 300, str(tmp_path / "out"))
    refused = cli(*args, "--log-format", "json")
    last = json.loads(refused.stdout.splitlines()[-1])
    assert (refused.returncode, last["level"], last["exit_status"]) == (5, "error", 5)
    assert refused.stderr == f"{last['message']}\n"


def test_quiet_prints_the_result_alone(small_idx: Path, run_dir: Path, digit_folder: Path, tmp_path: Path) -> None:
    train = ["train", "--data", str(small_idx), "--epochs", "1", "--workers", "0", "--out", str(tmp_path / "run"), "--quiet"]
    trained = cli(*train)
    assert (trained.returncode, trained.stderr) == (0, "")
    assert [line.split()[0] for line in trained.stdout.splitlines()] == ["test", "trained", "run", "report:"]
    scored = cli("score", str(digit_folder), "--model", str(run_dir), "--out", str(tmp_path / "t"), "--workers", "0", "--quiet")
    counts, unlike, speed, place = scored.stdout.splitlines()
    assert unlike.startswith("  not like a digit: ")
    assert (counts.split()[:2], speed.split()[1], place.split()[0]) == (["300", "inputs"], "images/s", "predictions:")
    assert cli(*train, "--seed", "1").stderr.startswith("error: ")


@pytest.mark.slow
def test_ctrl_c_is_below_the_bar_and_says_how_to_go_on(small_idx: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    command = [
        "train",
        "--data",
        str(small_idx),
        "--epochs",
        "3000",
        "--workers",
        "0",
        "--out",
        run,
        "--checkpoint-every",
        "1steps",
    ]
    with on_terminal(sys.executable, "-m", "mnist_ray", *command) as terminal:
        terminal.read(lambda text: "loss" in text)
        os.killpg(terminal.process.pid, signal.SIGINT)
        text = terminal.close()
    assert terminal.process.returncode == 130
    last = plain(text[text.rindex(ERASE) :]).strip()
    assert last == "interrupted; run the same command again to continue from its newest checkpoint"
    again = start_cli(*command, "--log-format", "json")
    assert again.stdout
    rows = iter(map(json.loads, again.stdout))
    resumed = next(row for row in rows if row["event"] == "resumed")
    assert resumed["samples_seen"] > 0
    assert resumed["message"] == f"continuing from the checkpoint at {resumed['samples_seen']:,} samples"
    again.send_signal(signal.SIGINT)
    _, err = again.communicate(timeout=120)
    assert (again.returncode, err) == (130, f"{last}\n")


def test_ctrl_c_in_a_scoring_job_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring_job, "score", interrupted)
    done = cli("score", "x", "--model", "m", "--out", "o")
    assert (done.returncode, done.stderr) == (130, "interrupted; run again with --resume to score the rest\n")


def test_a_resumed_scoring_job_says_what_is_done(run_dir: Path, digit_folder: Path, tmp_path: Path) -> None:
    args = ["score", str(digit_folder), "--model", str(run_dir), "--out", str(tmp_path / "t"), "--workers", "0"]
    assert cli(*args, "--unit-rows", "50").returncode == 0
    assert "continuing: 6 units are done already, with 300 inputs\n" in cli(*args, "--unit-rows", "50", "--resume").stdout


@pytest.mark.slow
def test_evaluate_draws_a_table_on_a_terminal(run_dir: Path, small_idx: Path, tmp_path: Path) -> None:
    args = ["evaluate", "--model", str(run_dir), "--data", str(small_idx), "--out", str(tmp_path / "e.json")]
    with on_terminal(sys.executable, "-m", "mnist_ray", *args) as terminal:
        text = terminal.close()
    assert terminal.process.returncode == 0
    assert "digit images precision" in plain(text)
    assert "as 9" in plain(text)
    assert "[red]" not in text
    assert "…" not in text
    assert "accuracy" in plain(text)
    piped = cli(*args)
    assert "predicted as 0" in piped.stdout
    assert "\x1b" not in piped.stdout


@pytest.mark.parametrize(
    ("flags", "digits", "advice"),
    [
        ({"recipe": "fast"}, 600, "give --recipe best, or --epochs 9 or more"),
        ({"recipe": "fast", "epochs": 2}, 600, "give --epochs 9 or more"),
        ({"recipe": "standard"}, 600, "give --recipe best, or --epochs 9 or more"),
        ({"recipe": "best"}, 600, ""),
        ({"recipe": "fast"}, 60_000, ""),
        ({"recipe": "fast", "seconds": 5.0}, 600, ""),
    ],
)
def test_a_run_that_is_too_short_is_warned_of(
    flags: dict[str, object], digits: int, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _warn_if_short(TrainConfig(**flags), digits, Console())  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert bool(printed) == bool(advice)
    assert advice in printed
    assert not printed or f"at least {FEW_STEPS}" in printed
    assert len(printed.splitlines()) <= 1


@pytest.mark.slow
def test_jobs_on_ray_leave_standard_error_empty(small_idx: Path, digit_folder: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    train = start_cli("train", "--data", str(small_idx), "--epochs", "1", "--workers", "2", "--out", run)
    out, err = train.communicate(timeout=600)
    assert (train.returncode, err) == (0, "")
    assert [line for line in out.splitlines() if line in ("starting Ray", "starting the workers")], out
    score = start_cli("score", str(digit_folder), "--model", run, "--out", str(tmp_path / "t"), "--workers", "2")
    out, err = score.communicate(timeout=600)
    assert (score.returncode, err) == (0, "")
    assert "starting Ray\n" in out
    assert "starting the actors\n" in out
