"""The owner of a run directory: the one job that may write to it.

The job keeps a record `owner.json` there, which changes every second while the job lives (docs/decisions/0012). The record
also carries a request to stop from the driver to the workers.
"""

import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mnist_ray.data import storage
from mnist_ray.errors import OutputError, StoppedError, StorageError

BEAT_S = 1.0
"""Seconds between two updates of the record."""
SILENT_S = 10.0
"""Seconds without an update after which a job counts as dead."""
_NAME = "owner.json"


def _place() -> str:
    """A name for this machine, its current boot and its PID namespace: the place where this process's PID is valid."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as boot:
        return f"{platform.node()} {boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def read(run: str, patience_s: float | None = None) -> dict[str, Any]:
    """The record of the job that owns the run directory; empty if there is no valid record. Raises StorageError."""
    with suppress(FileNotFoundError, ValueError):
        record = storage.read_json(storage.join(run, _NAME), patience_s)
        return record if isinstance(record, dict) and "token" in record else {}
    return {}


def _alive(run: str, record: dict[str, Any]) -> bool:
    """Whether the job of this record lives: its process has not ended, as far as can be seen, and it updates its record."""
    if record["place"] == _place():
        try:
            os.kill(record["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    until = time.monotonic() + SILENT_S
    while time.monotonic() < until:
        time.sleep(BEAT_S / 2)
        if (now := read(run)) != record:
            return bool(now)
    return False


def require_free(run: str) -> None:
    """Raise OutputError if a living job owns the run directory. Writes nothing."""
    if (record := read(run)) and _alive(run, record):
        raise _refused(run, record)


def _refused(run: str, record: dict[str, Any]) -> OutputError:
    return OutputError(f"{run}: {_describe(record)}, is writing here; wait for it, stop it, or give another --out")


def require_ownership(run: str, token: str) -> None:
    """Read the record, and raise OutputError if it names another job than the one with this token."""
    record: dict[str, Any] = {}
    with suppress(StorageError):  # ignore transient storage errors here; the next write reports them
        record = read(run, patience_s=0)
    if record.get("token", token) != token:
        raise _replaced(run, _describe(record))


def _replaced(run: str, by: str) -> OutputError:
    return OutputError(f"{run}: was taken over by {by}; this job has stopped and writes nothing more")


def _describe(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['place'].split()[0]}, started at {record['began']}"


class Owner:
    """This job's ownership of a run directory."""

    def __init__(self, run: str) -> None:
        self.run, self.token = run, uuid.uuid4().hex
        self.signal: int | None = None
        """The signal that asked this job to stop."""
        self.replaced_by = ""
        """Description of the job that has taken the directory over."""
        began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._record: dict[str, Any] = {"token": self.token, "pid": os.getpid(), "place": _place(), "began": began, "beats": 0}
        self.released = False
        """Set to end the updates of the record."""
        self._reachable = True
        """Whether the last update succeeded."""

    def require(self) -> None:
        """Raise OutputError if another job is known to have taken the directory over."""
        if self.replaced_by:
            raise _replaced(self.run, self.replaced_by)

    def raise_if_stopped(self, advice: str) -> None:
        """Raise KeyboardInterrupt after SIGINT, and StoppedError with advice how to continue after another signal."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise StoppedError(f"{self.run}: stopped as asked; {advice}")

    def _next_record(self) -> bytes:
        self._record["beats"] += 1
        return storage.to_json({**self._record, "stop": self.signal is not None})

    def claim(self) -> None:
        """Become the owner. Raises OutputError if a living job owns the directory."""
        uri, record = storage.join(self.run, _NAME), read(self.run)
        if not record:
            if storage.create(uri, self._next_record()):
                return
            record = read(self.run)  # of a job that started at the same moment, or of this one if the storage's answer was lost
            if record.get("token") == self.token:
                return
        if record and _alive(self.run, record):
            raise _refused(self.run, record)
        storage.write(uri, self._next_record())
        if record:  # another job may take over from the same dead one: the last to write is the owner
            time.sleep(BEAT_S / 2)
            if (record := read(self.run)) and record["token"] != self.token:
                raise _refused(self.run, record)

    def beat(self) -> None:
        """Update the record every `BEAT_S`, and at once after a signal, until released or replaced."""
        while not self.released and not self.replaced_by:
            asked, until = self.signal, time.monotonic() + BEAT_S
            while time.monotonic() < until and self.signal == asked and not self.released:
                time.sleep(0.1)
            self._reachable = False
            with suppress(Exception):  # ignore transient storage errors here; the next write of results reports them
                record = read(self.run, patience_s=0)
                if record and record["token"] != self.token:
                    self.replaced_by = _describe(record)
                elif not self.released:
                    storage.write(storage.join(self.run, _NAME), self._next_record(), patience_s=0)
                self._reachable = True

    def release(self) -> None:
        """Delete the record if it is still this job's."""
        if self._reachable:
            with suppress(StorageError):
                if read(self.run, patience_s=0).get("token") == self.token:
                    storage.delete(storage.join(self.run, _NAME), patience_s=0)


@contextmanager
def owning(run: str) -> Iterator[Owner]:
    """Own the run directory inside this block. Raises OutputError if a living job owns it.

    SIGTERM, SIGHUP and SIGINT then set `Owner.signal`, a request to stop. A second SIGINT raises KeyboardInterrupt.
    """
    owner = Owner(run)
    owner.claim()
    beating = threading.Thread(target=owner.beat, daemon=True)
    beating.start()

    def on_signal(number: int, _frame: object) -> None:
        if owner.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        owner.signal = number  # takes no lock, because a second signal may interrupt this handler

    in_main = threading.current_thread() is threading.main_thread()  # only the main thread may handle signals
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if in_main else ()
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield owner
    finally:
        owner.released = True
        beating.join()
        owner.release()
        for number, handler in before.items():
            signal.signal(number, handler)
