"""Progress output of a job: one line that is updated in place on a terminal, occasional plain lines elsewhere."""

import os
import shutil
import sys
import time

PLAIN_EVERY_S = 10.0
"""Seconds between two progress lines if standard output is not a terminal."""


class Console:
    """Prints permanent lines, and a progress line that the next line replaces."""

    def __init__(self) -> None:
        self._erase = "\r\x1b[K" if sys.stdout.isatty() else ""
        """What removes the progress line of a terminal."""
        self._plain_at = time.monotonic()

    def _print(self, text: str, end: str = "\n") -> None:
        """Print. If the reader of standard output has gone, discard this and all later output."""
        try:
            print(text.encode("utf-8", "backslashreplace").decode(), end=end, flush=True)
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def line(self, text: str) -> None:
        """Print a permanent line."""
        self._print(self._erase + text)

    def progress(self, text: str) -> None:
        """Show a line until the next one."""
        if self._erase:
            self._print(self._erase + text[: shutil.get_terminal_size().columns - 1], end="")
        elif time.monotonic() - self._plain_at >= PLAIN_EVERY_S:
            self._plain_at = time.monotonic()
            self._print(text)


class Quiet(Console):
    """Prints nothing."""

    def _print(self, text: str, end: str = "\n") -> None:
        pass
