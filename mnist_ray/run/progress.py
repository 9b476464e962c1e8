"""The progress of a training run: a record that rank 0 writes to the run directory, and the driver's lines about it."""

import threading
from contextlib import suppress
from typing import Any, Self

from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.errors import MnistRayError

LOCAL_S, REMOTE_S = 1.0, 2.0
"""Seconds between two records: in a local run directory, and at a URI, where a write costs a request."""
JOIN_S = 10.0
"""Seconds that the end of a training waits for the last record to be written."""
_NAME = "progress.json"


class ProgressPrinter:
    """Shows progress records on the console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_epochs = -1
        """Rows of the history that were shown; -1 before the first record."""
        self._shown_warnings: list[str] = []

    def update(self, record: dict[str, Any]) -> None:
        """Show what is new in the record."""
        for warning in record["warnings"]:
            if warning not in self._shown_warnings:
                self._console.warning(warning)
                self._shown_warnings.append(warning)
        start = record["continued_from"]
        if self._shown_epochs < 0 and start:
            self._console.line(f"continuing from the checkpoint at {start:,} samples", "resumed", samples_seen=start)
        history, epochs = record["history"], f"{round(record['epochs'], 1):g}"  # an estimate for runs with --seconds
        for row in history[max(0, self._shown_epochs) :]:
            if row["samples_seen"] > start:
                self._console.line(
                    f"epoch {row['epoch']:g}/{epochs}  loss {row['train_loss']:.4f}  "
                    f"test accuracy {row['test_accuracy']:.2%}  {row['train_seconds']:.1f} s",
                    "epoch",
                    **row,
                )
        self._shown_epochs = max(self._shown_epochs, len(history))
        epoch = record["epochs"] * record["samples_seen"] / record["total"]
        detail = f"epoch {epoch:.1f}/{epochs}  loss {record['loss']:.4f}"
        figures = {"epoch": round(epoch, 2), "loss": record["loss"]}
        if history:
            detail += f"  accuracy {history[-1]['test_accuracy']:.2%}"
            figures["test_accuracy"] = history[-1]["test_accuracy"]
        rate = record["samples_per_second"]
        self._console.progress("training", record["samples_seen"], record["total"], "samples", rate, detail, **figures)


def clear(run: str) -> None:
    """Delete the record of an earlier launch."""
    storage.delete(storage.join(run, _NAME))


class Publisher:
    """Writes progress records for the driver, in a thread of its own: training does not wait for the storage.

    Leaving its block writes the last record.
    """

    def __init__(self, run: str) -> None:
        self._uri, self._pause_s = storage.join(run, _NAME), LOCAL_S if storage.is_local(run) else REMOTE_S
        self._next: bytes | None = None
        """The newest record that is not written yet."""
        self._lock, self._given, self._left = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._given.set()
        self._thread.join(JOIN_S)

    def publish(self, record: dict[str, Any]) -> None:
        """Write this record soon, unless a newer one replaces it before."""
        data = storage.to_json(record)  # now, because training changes the record's lists
        with self._lock:
            self._next = data
        self._given.set()

    def _write(self) -> None:
        while self._given.wait():
            self._given.clear()
            leaving = self._left.is_set()
            with self._lock:
                data, self._next = self._next, None
            if data:
                with suppress(MnistRayError):  # training goes on without this record
                    storage.write(self._uri, data, patience_s=0)
            if leaving:
                return
            self._left.wait(self._pause_s)


def show(run: str, printer: ProgressPrinter) -> dict[str, Any] | None:
    """Print and return the current record; None if there is no record yet, or the storage does not answer."""
    with suppress(MnistRayError, FileNotFoundError, ValueError):
        record: dict[str, Any] = storage.read_json(storage.join(run, _NAME), patience_s=0)
        printer.update(record)
        return record
    return None
