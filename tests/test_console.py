from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from mnist_ray import console

PROGRAM = """
from mnist_ray.console import Console
shown = Console()
shown.progress("half " + "way " * 100)
shown.progress("almost")
shown.line("done")
"""


def test_on_a_terminal_one_line_is_renewed() -> None:
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", PROGRAM], stdout=theirs, check=True, env={**os.environ, "COLUMNS": "40"})
    os.close(theirs)
    printed = os.read(ours, 4096).decode()
    os.close(ours)
    first, second, third = (line.strip() for line in printed.replace("\r\n", "").split("\r")[::2])
    assert first.startswith("half way")
    assert len(first) < 40
    assert (second, third) == ("almost", "done")


def test_elsewhere_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = console.Console()
    shown.progress("too soon")
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.0)
    shown.progress("half way")
    shown.line("done")
    assert capsys.readouterr().out == "half way\ndone\n"
