"""Signals that end a job by an exception, until `owning` handles them."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 0.1
"""Seconds between two signals to a process that was asked to stop."""


def may_handle(number: int) -> bool:
    """Whether this thread may handle the signal: it is the main one, and the process was not told to ignore it, as by nohup."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(number) != signal.SIG_IGN


@contextmanager
def raising(number: int, kind: type[BaseException], asked: threading.Event | None = None) -> Iterator[None]:
    """Raise an exception of this kind inside this block after the signal, or at once if `asked` is set.

    It is not raised inside an import: Python would keep its lock for imports, and a thread that imports would wait forever.

    Python and some libraries drop exceptions inside callbacks. So this process sends itself the signal again, until the block
    ends or another handler gets it. While the exception is being handled, only a second signal of the user raises it.
    """
    if not may_handle(number):
        yield
        return
    asked, ended, resent = asked or threading.Event(), threading.Event(), threading.Event()

    def stop(_: int, frame: FrameType | None) -> None:
        asked.set()
        handled = resent.is_set() and isinstance(sys.exception(), kind)
        resent.clear()
        if not (ended.is_set() or handled or _imports(frame)):
            raise kind

    def ask_again() -> None:
        asked.wait()
        while not ended.wait(AGAIN_S):
            if ours := signal.getsignal(number) is stop:
                resent.set()
            os.kill(os.getpid(), number)
            if not ours:
                return

    before = signal.signal(number, stop)
    asking = threading.Thread(target=ask_again, daemon=True)
    asking.start()
    try:
        if asked.is_set():
            raise kind
        yield
    finally:
        ended.set()
        asked.set()
        asking.join()
        signal.signal(number, before)


def _imports(frame: FrameType | None) -> bool:
    """Whether this frame, or one that called it, is of Python's import system."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
