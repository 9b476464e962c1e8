"""What a user sees while a job runs: one line that is renewed on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time

PLAIN_EVERY_S = 10.0
"""Seconds between two progress lines where there is no terminal."""


class Console:
    """Prints lines for good, and a progress line that the next one replaces."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown = 0
        self._plain_at = time.monotonic()

    def _print(self, text: str, end: str = "\n") -> None:
        """Print; when the reader of our output has left, go on without it."""
        try:
            print(text.encode("utf-8", "backslashreplace").decode(), end=end, flush=True)
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        self._print(text)

    def progress(self, text: str) -> None:
        """Show a line until the next one."""
        if self._terminal:
            self._clear()
            text = text[: shutil.get_terminal_size().columns - 1]
            self._print(text, end="")
            self._shown = len(text)
        elif time.monotonic() - self._plain_at >= PLAIN_EVERY_S:
            self._plain_at = time.monotonic()
            self._print(text)

    def _clear(self) -> None:
        if self._shown:
            self._print("\r" + " " * self._shown + "\r", end="")
            self._shown = 0
