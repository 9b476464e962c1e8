"""What a job says while it runs: a live bar on a terminal, plain lines elsewhere, or JSON lines."""

import codecs
import json
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import BufferedWriter, RawIOBase, TextIOWrapper
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self, TextIO, cast

if TYPE_CHECKING:
    from rich.console import RenderableType

LogFormat = Literal["text", "json"]
PLAIN_EVERY_S = 5.0
"""Seconds between two progress lines of one step of the job if standard output is not a terminal."""
DRAW_PER_S = 4.0
"""How often a bar is drawn."""
BAR_WIDTH = 40
"""Columns of a bar, on a terminal that is wide enough."""
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""Control characters, such as those in the name of a file, and how they are printed: a terminal would obey them."""


class StandardFile(RawIOBase):
    """Standard output or standard error. What cannot be written is discarded, so that the command goes on."""

    def __init__(self, number: int) -> None:
        """`number` is the file descriptor. If it is closed, it is opened to discard everything."""
        self._number = number
        self.lost: OSError | None = None
        """Why something was discarded; None also if the reader has gone."""

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The file descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        """Write bytes, or a part of them; returns their number."""
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:
                select.select([], [self._number], [])
            except OSError as error:
                self.lost = self.lost or (None if isinstance(error, BrokenPipeError) else error)
                return len(data)


@contextmanager
def standard_streams() -> Iterator[StandardFile]:
    """Inside this block, standard output and standard error never fail, whatever they are. Yields the file of the first.

    If they are closed, no other file gets their numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened gets the lowest free number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    out = StandardFile(1)
    sys.stdout, sys.stderr = _unfailing(sys.stdout, out), _unfailing(sys.stderr, StandardFile(2))
    try:
        yield out
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _unfailing(stream: TextIO | None, file: StandardFile) -> TextIO:
    """A stream that writes to a file, with the encoding of `stream`; `stream` itself if somebody has put it in place."""
    if stream not in (None, sys.__stdout__, sys.__stderr__):
        return stream
    encoding = stream.encoding if stream else "utf-8"
    return TextIOWrapper(BufferedWriter(file), encoding, "backslashreplace", line_buffering=file.fileno() == 2 or file.isatty())


class _Output:
    """Standard output. If its reader has gone, this and all later output is discarded, so that the job goes on."""

    @property
    def encoding(self) -> str:
        """The encoding of standard output."""
        return sys.stdout.encoding or "utf-8"

    def write(self, text: str) -> int:
        """Write text; what cannot be encoded, such as a damaged file name, is escaped."""
        try:
            print(text.encode(self.encoding, "backslashreplace").decode(self.encoding), end="", flush=True)
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return sys.stdout.isatty()


class Progress:
    """How far a step of the job is: `done` of `total` things of a `unit`, at `rate` per second. No total: it only waits."""

    def __init__(
        self, step: str, done: int, total: int | None, unit: str, rate: float, detail: str, *, growing: bool = False
    ) -> None:
        self.step, self.done, self.total, self.growing = step, done, total, growing
        self.seconds_left = round((total - done) / rate) if total is not None and rate > 0 and not growing else None
        self.share = f"{100 * done // total}%" if total and not growing else ""
        counts = [] if total is None else [f"{done:,} of {total:,}{'+' * growing} {unit}"]
        self.figures = [*counts, *([f"{rate:,.0f}/s"] if rate else []), *([detail] if detail else [])]

    @property
    def left(self) -> str:
        """The time left, as text; empty if it is not known."""
        return "" if self.seconds_left is None else f"{timedelta(seconds=self.seconds_left)} left"

    def to_text(self) -> str:
        """One line."""
        return "  ".join(filter(None, (self.step, self.share, *self.figures, self.left)))


class _Bar:
    """The live bar of a terminal. Lines are printed above it. Closing removes it."""

    def __init__(self) -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        out = cast(IO[str], _Output())
        self.terminal = Terminal(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._progress = Progress("", 0, None, "", 0.0, "")
        self._began = time.monotonic()
        self._live = Live(
            get_renderable=self._render,
            console=self.terminal,
            refresh_per_second=DRAW_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
        )

    def show(self, progress: Progress) -> None:
        """Draw this progress from now on."""
        if progress.step != self._progress.step:
            self._began = time.monotonic()
        self._progress = progress
        self._live.start()

    def close(self) -> None:
        """Remove the bar."""
        self._live.stop()

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = self._progress
        width = max(5, min(BAR_WIDTH, self.terminal.width - 40))
        bar = ProgressBar(now.total, now.done, width, pulse=now.total is None)
        right = f"{time.monotonic() - self._began:.0f} s" if now.total is None else f"{now.share}  {now.left}".strip()
        row = Table.grid(padding=(0, 1))
        row.add_row(Text(now.step, no_wrap=True), bar, Text(right, no_wrap=True))
        detail = Text("  ".join(now.figures), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(row, detail) if now.figures else row


class Console:
    """Prints the lines and the progress of a job. Leaving its block removes the bar."""

    def __init__(self, log_format: LogFormat = "text", *, quiet: bool = False) -> None:
        self._json, self._quiet = log_format == "json", quiet
        self._out = _Output()
        self.on_terminal = self._out.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and not self._json
        """Whether output may be drawn instead of printed."""
        self._bar: _Bar | None = None
        self._step, self._next = "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar. The next progress shows it again."""
        if self._bar:
            self._bar.close()

    def line(self, text: str, event: str = "message", **figures: Any) -> None:
        """Print a line. `event` names the kind of line, and `figures` are its values; both are for JSON."""
        if not self._quiet:
            self._print("info", event, text, figures)

    def warning(self, text: str) -> None:
        """Print a warning."""
        if not self._quiet:
            self._print("warning", "warning", text if self._json else f"warning: {text}", {})

    def result(self, text: str, **figures: Any) -> None:
        """Print the result of the command, also with --quiet. `figures` are its values, for JSON."""
        self._print("info", "result", text, figures)

    def draw(self, drawing: "RenderableType") -> None:
        """Draw something on the terminal. Only if `on_terminal`."""
        self._bar = self._bar or _Bar()
        self._bar.terminal.print(drawing, soft_wrap=False)

    def error(self, text: str, **figures: Any) -> None:
        """Print an error to standard error, below everything else. With JSON, standard output gets it, too."""
        self.close()
        if self._json:
            self._print("error", "error", text, figures)
        print(text.translate(_CONTROLS), file=sys.stderr)

    def progress(
        self,
        step: str,
        done: int = 0,
        total: int | None = None,
        unit: str = "",
        rate: float = 0.0,
        detail: str = "",
        *,
        growing: bool = False,
        **figures: Any,
    ) -> None:
        """Show how far a step of the job is, or with `total=None` only what the job waits for.

        `unit` names what is counted, `rate` is their number per second, and `growing` says that more of them may come.
        `figures` are the values in `detail`, for JSON. Without a terminal, a new step is printed at once, and then a line every
        `PLAIN_EVERY_S`.
        """
        if self._quiet:
            return
        if not self.on_terminal and step == self._step and time.monotonic() < self._next:
            return
        self._step, self._next = step, time.monotonic() + PLAIN_EVERY_S
        now = Progress(step, done, total, unit, rate, detail, growing=growing)
        if self.on_terminal:
            self._bar = self._bar or _Bar()
            self._bar.show(now)
            return
        if total is not None:
            figures |= {"done": done, "total": total, "per_second": round(rate, 1), "seconds_left": now.seconds_left}
        self._print("info", "progress", now.to_text(), {"step": step, **figures})

    def _print(self, level: str, event: str, text: str, figures: dict[str, Any]) -> None:
        text = text.translate(_CONTROLS)
        if self._bar:
            self._bar.terminal.print(text)
            return
        if self._json:
            moment = datetime.now(UTC).isoformat(timespec="milliseconds")
            row = {"time": moment, "level": level, "event": event, "message": text, **figures}
            text = json.dumps(row, ensure_ascii=codecs.lookup(self._out.encoding).name != "utf-8")
        self._out.write(f"{text}\n")


class Quiet(Console):
    """Prints nothing, not even results. Errors are raised to the caller."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def _print(self, level: str, event: str, text: str, figures: dict[str, Any]) -> None:
        pass
