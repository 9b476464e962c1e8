"""Who may write to a run directory: one job at a time, which leaves a sign of life there and passes on a request to stop."""

from __future__ import annotations

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
from mnist_ray.errors import OutputError, StorageError

BEAT_S = 1.0
"""Seconds between two signs of life."""
SILENT_S = 10.0
"""Seconds without one after which a job counts as dead."""
WATCH_S = 0.5
_NAME = "owner.json"


def _place() -> str:
    """This machine since it started, and the process numbers that hold in it."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as boot:
        return f"{platform.node()} {boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def read(run: str) -> dict[str, Any]:
    """The record of the job that owns the run directory; empty if there is none to be read."""
    with suppress(FileNotFoundError, ValueError):
        record = storage.read_json(storage.join(run, _NAME))
        return record if isinstance(record, dict) and "token" in record else {}
    return {}


def _alive(run: str, record: dict[str, Any]) -> bool:
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


def require(run: str, token: str) -> None:
    """Raise OutputError if the run directory belongs to another job than the one of this token, as its record says now."""
    record: dict[str, Any] = {}
    with suppress(StorageError):  # a storage that is away for a while is met where it matters
        record = read(run)
    if record.get("token", token) != token:
        raise _taken(run, _named(record))


def _taken(run: str, by: str) -> OutputError:
    return OutputError(f"{run}: was taken over by {by}; this job has stopped and changes nothing more")


def _named(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['place'].split()[0]}, which began at {record['began']}"


class Owner:
    """This job's hold on a run directory."""

    def __init__(self, run: str) -> None:
        self.run, self.token = run, uuid.uuid4().hex
        self.signal: int | None = None
        """The signal that asked this job to stop."""
        self.replaced_by = ""
        """Names the job that has taken the directory over."""
        began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._record: dict[str, Any] = {"token": self.token, "pid": os.getpid(), "place": _place(), "began": began, "beats": 0}
        self._over = False

    def stop(self, number: int) -> None:
        """Pass on that a signal asks for a checkpoint and the end."""
        self.signal = number  # nothing that locks: a second signal may come meanwhile

    def require(self) -> None:
        """Raise OutputError if another job has taken the directory over."""
        if self.replaced_by:
            raise _taken(self.run, self.replaced_by)

    def _write(self) -> None:
        self._record["beats"] += 1
        storage.write_json(storage.join(self.run, _NAME), {**self._record, "stop": self.signal is not None})

    def claim(self) -> None:
        """Take the directory, or raise OutputError naming the living job that has it."""
        if (record := read(self.run)) and _alive(self.run, record):
            raise OutputError(f"{self.run}: {_named(record)}, is writing here; wait for it, stop it, or give another --out")
        self._write()

    def beat(self) -> None:
        """Leave signs of life until released."""
        while not self._over and not self.replaced_by:
            asked, until = self.signal, time.monotonic() + BEAT_S
            while time.monotonic() < until and self.signal == asked and not self._over:
                time.sleep(0.1)
            with suppress(Exception):  # a storage that is away for a while is met where it matters
                record = read(self.run)
                if record and record["token"] != self.token:
                    self.replaced_by = _named(record)
                elif not self._over:
                    self._write()

    def release(self) -> None:
        """Leave the directory to others."""
        self._over = True


@contextmanager
def owning(run: str) -> Iterator[Owner]:
    """Own the run directory meanwhile; SIGTERM, SIGHUP and SIGINT become requests to stop, a second SIGINT an interrupt."""
    owner = Owner(run)
    owner.claim()
    beating = threading.Thread(target=owner.beat, daemon=True)
    beating.start()

    def on_signal(number: int, _frame: object) -> None:
        if owner.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        owner.stop(number)

    main = threading.current_thread() is threading.main_thread()
    before = (
        {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)} if main else {}
    )
    try:
        yield owner
    finally:
        owner.release()
        beating.join()
        with suppress(StorageError):
            if read(run).get("token") == owner.token:
                storage.delete(storage.join(run, _NAME))
        for number, handler in before.items():
            signal.signal(number, handler)


class OwnerMonitor:
    """What a worker sees of the job that owns its run: `stop`, and `lost` once that is another job."""

    def __init__(self, run: str, token: str, *, looking: bool) -> None:
        self.stop = self.lost = False
        self._run, self._token = run, token
        if looking:
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self.lost:
            with suppress(Exception):
                record = read(self._run)
                self.lost = record.get("token", self._token) != self._token
                self.stop = self.stop or bool(record.get("stop"))
            time.sleep(WATCH_S)
