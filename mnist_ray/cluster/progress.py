"""A training run's progress: a record that rank 0 keeps at the run's URI, and the lines that the driver makes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.errors import MnistRayError, StorageError

POLL_S = 0.5
_NAME = "progress.json"


class Shown:
    """Turns the run's progress record into console lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs = 0
        self._warnings = 0

    def update(self, record: dict[str, Any]) -> None:
        """Show what is new in the record."""
        for warning in record["warnings"][self._warnings :]:
            self._console.line(f"warning: {warning}")
        self._warnings = max(self._warnings, len(record["warnings"]))
        for row in record["history"][self._epochs :]:
            self._console.line(
                f"epoch {row['epoch']}/{record['epochs']}  loss {row['train_loss']:.4f}  "
                f"test accuracy {row['test_accuracy']:.2%}  {row['train_seconds']:.1f} s"
            )
        self._epochs = max(self._epochs, len(record["history"]))
        share = record["samples_seen"] / record["total"]
        self._console.progress(
            f"training {share:4.0%}  {record['samples_seen']:,} of {record['total']:,} samples  "
            f"loss {record['loss']:.4f}  {record['samples_per_second']:,.0f} samples/s"
        )


def clear(run: str) -> None:
    """Forget the record of an earlier launch."""
    storage.delete(storage.join(run, _NAME))


def publish(run: str, record: dict[str, Any]) -> None:
    """Leave the record where the driver looks for it."""
    with suppress(StorageError):  # one line less is no reason to stop training
        storage.write_json(storage.join(run, _NAME), record)


@contextmanager
def following(run: str, console: Console) -> Iterator[None]:
    """Show the progress record that rank 0 keeps at the run's URI, which driver and workers share."""
    shown, ended = Shown(console), threading.Event()

    def look() -> None:
        # A record that is not there yet, or a storage that is slow, is no reason to stop looking.
        with suppress(MnistRayError, FileNotFoundError, ValueError):
            shown.update(storage.read_json(storage.join(run, _NAME)))

    def follow() -> None:
        while not ended.wait(POLL_S):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
