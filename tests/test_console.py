import os
import pty
import subprocess
import sys

import pytest

from mnist_ray import console

PROGRAM = """
from mnist_ray.console import Console
output = Console()
output.progress("half " + "way " * 100)
output.progress("almost")
output.line("done")
"""


def test_a_terminal_shows_one_line_that_is_updated() -> None:
    reader, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", PROGRAM], stdout=terminal, check=True, env={**os.environ, "COLUMNS": "40"})
    os.close(terminal)
    printed = os.read(reader, 4096).decode()
    os.close(reader)
    first, second, third = printed.removesuffix("\r\n").split("\r\x1b[K")[1:]
    assert first.startswith("half way")
    assert len(first) < 40
    assert (second, third) == ("almost", "done")


def test_other_output_gets_a_line_at_intervals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = console.Console()
    output.progress("too soon")
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.0)
    output.progress("half way")
    output.line("done")
    assert capsys.readouterr().out == "half way\ndone\n"
