"""The process that scoring processes are forked from. It imports PyTorch once, while the job lists its inputs."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any

_server: Any = forkserver.ensure_running.__self__  # type: ignore[attr-defined]
_started: set[int] = set()
_lock, _num_users = threading.Lock(), 0


def start() -> ForkServerContext:
    """Start the process, if it does not run yet. Raises OSError."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mnist_ray.run.forked"])
    resource_tracker.ensure_running()  # before the signal is blocked, because its start unblocks it
    held = _server._forkserver_pid
    # Ctrl-C reaches all processes. While this one imports modules, it would print a stack trace.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if _server._forkserver_pid != held:
        _started.add(_server._forkserver_pid)
    return context


@contextmanager
def used() -> Iterator[None]:
    """Inside this block, the process may fork others. It ends with the last such block of this program."""
    global _num_users
    with _lock:
        _num_users += 1
    try:
        yield
    finally:
        with _lock:
            _num_users -= 1
            if not _num_users:
                kill()


def kill() -> None:
    """End the process at once, if `start` has started it.

    Otherwise it forks every process that it was asked for, even after the job has ended, and those that the user's own program
    asks for later.
    """
    if (pid := _server._forkserver_pid) in _started:
        _started.remove(pid)
        os.kill(pid, signal.SIGKILL)
        _server._stop()  # waits until it has ended, so that the next `start` does not take it for a living one
        multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__"])  # Python's default
