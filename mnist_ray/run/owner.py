"""The owner of a run directory or table: the one job that may write to it.

The job keeps a record `owner.json` there, which changes every second while the job lives (docs/decisions/0012). The record
stays after the end of the job. So a process that was suspended for long sees that another job has taken over, and writes
nothing more. The record also carries a request to stop from the driver to the workers.
"""

import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

from mnist_ray.data import storage
from mnist_ray.errors import ClusterError, OutputError, StoppedError, StorageError
from mnist_ray.run.signals import may_handle

BEAT_S = 1.0
"""Seconds between two updates of the record."""
SILENT_S = 10.0
"""Seconds without an update after which a job counts as dead."""
VISIBLE_S = 5.0
"""Seconds until a new record must be visible on all nodes."""
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
        return record if isinstance(record, dict) and _is_whole(record) else {}
    return {}


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a record has what this module reads, so that a damaged one, or that of another program, counts as none."""
    return isinstance(record.get("pid"), int) and all(isinstance(record.get(name), str) for name in ("token", "place", "began"))


def _alive(run: str, record: dict[str, Any]) -> bool:
    """Whether the job of this record lives: its process has not ended, as far as can be seen, and it updates its record."""
    if record.get("ended"):
        return False
    if record["place"] == _place():
        try:
            os.kill(record["pid"], 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
    until = time.monotonic() + SILENT_S
    while time.monotonic() < until:
        time.sleep(BEAT_S / 2)
        if (now := read(run)) != record:
            return bool(now) and not now.get("ended")
    return False


def require_free(run: str) -> None:
    """Raise OutputError if a living job owns the run directory. Writes nothing."""
    if (record := read(run)) and _alive(run, record):
        raise _refused(run, record)


def _refused(run: str, record: dict[str, Any]) -> OutputError:
    return OutputError(f"{run}: {_describe(record)}, is writing here; wait for it, stop it, or give another --out")


def require_ownership(run: str, token: str) -> None:
    """Read the record, and raise OutputError if it is gone or names another job than the one with this token.

    Raises OSError if the storage does not answer, so that a write that waits for this check is tried again.
    """
    try:
        record = read(run, patience_s=0)
    except StorageError as error:
        raise OSError(str(error)) from None
    if record.get("token") != token:
        by = f"was taken over by {_describe(record)}" if record else f"has no {_NAME} any more: somebody has deleted it"
        raise OutputError(f"{run}: {by}; this job has stopped and writes nothing more")


def require_visible(run: str, token: str) -> None:
    """Raise ClusterError if this machine does not see the record of the job with this token in the run directory.

    The record may appear up to `VISIBLE_S` late, as on some network file systems.
    """
    until = time.monotonic() + VISIBLE_S
    while read(run).get("token") != token:
        if time.monotonic() > until:
            raise ClusterError(
                f"{run}: the node {platform.node()} does not see the folder of this job; give an --out that all nodes share, "
                "such as a bucket or a network file system"
            )
        time.sleep(BEAT_S / 2)


def fenced(run: str, token: str) -> AbstractContextManager[None]:
    """Inside this block, this process changes files of the run directory only while the job with this token owns it."""
    return storage.fenced(run, partial(require_ownership, run, token))


def _describe(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['place'].partition(' ')[0]}, started at {record['began']}"


class Owner:
    """This job's ownership of a run directory."""

    def __init__(self, run: str) -> None:
        self.run, self.token = run, uuid.uuid4().hex
        self.signal: int | None = None
        """The signal that asked this job to stop."""
        self.lost: OutputError | None = None
        """Set when another job has taken the directory over."""
        began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._record: dict[str, Any] = {"token": self.token, "pid": os.getpid(), "place": _place(), "began": began, "beats": 0}
        self.released = False
        """Set to end the updates of the record."""
        self._reachable = True
        """Whether the last update succeeded."""

    def require(self) -> None:
        """Raise OutputError if another job is known to have taken the directory over."""
        if self.lost:
            raise self.lost

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
        while not self.released and not self.lost:
            asked, until = self.signal, time.monotonic() + BEAT_S
            while time.monotonic() < until and self.signal == asked and not self.released:
                time.sleep(0.1)
            if not self.released:
                self._update()

    def release(self) -> None:
        """Note in the record that the job has ended, if the last update succeeded."""
        if self._reachable and not self.lost:
            self._record["ended"] = True
            self._update()

    def _update(self) -> None:
        self._reachable = False
        with suppress(Exception):  # ignore transient storage errors here; the next write of results reports them
            try:
                storage.write(storage.join(self.run, _NAME), self._next_record(), patience_s=0)
            except OutputError as error:
                self.lost = error
            self._reachable = True


@contextmanager
def owning(owner: Owner) -> Iterator[Owner]:
    """Own the run directory inside this block. Raises OutputError if a living job owns it.

    This process then changes files of the directory only while it owns it. It first deletes what killed processes have left
    there. SIGTERM, SIGHUP and SIGINT set `Owner.signal`, a request to stop. A second SIGINT raises KeyboardInterrupt.
    """
    owner.claim()
    beating = threading.Thread(target=owner.beat, daemon=True)

    def on_signal(number: int, _frame: object) -> None:
        if owner.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        owner.signal = number  # takes no lock, because a second signal may interrupt this handler

    wanted = filter(may_handle, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    before = {number: signal.signal(number, on_signal) for number in wanted}
    try:
        with fenced(owner.run, owner.token):
            try:
                beating.start()
                storage.delete_scratch(owner.run, _NAME)
                yield owner
            finally:
                owner.released = True
                beating.join()
                owner.release()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
