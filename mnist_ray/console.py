"""What a user sees while a job runs: one line that is renewed on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

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

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        print(text, flush=True)

    def progress(self, text: str) -> None:
        """Show a line until the next one."""
        if self._terminal:
            self._clear()
            text = text[: shutil.get_terminal_size().columns - 1]
            print(text, end="", flush=True)
            self._shown = len(text)
        elif time.monotonic() - self._plain_at >= PLAIN_EVERY_S:
            self._plain_at = time.monotonic()
            print(text, flush=True)

    def _clear(self) -> None:
        if self._shown:
            print("\r" + " " * self._shown + "\r", end="")
            self._shown = 0
