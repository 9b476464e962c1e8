"""A training run's progress: a record that rank 0 keeps at the run's URI, and the lines that the driver makes of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.errors import MnistRayError, StorageError

_NAME = "progress.json"


class ProgressPrinter:
    """Turns the run's progress record into console lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs = 0
        self._warnings: list[str] = []

    def update(self, record: dict[str, Any]) -> None:
        """Show what is new in the record."""
        for warning in record["warnings"]:
            if warning not in self._warnings:
                self._console.line(f"warning: {warning}")
                self._warnings.append(warning)
        for row in record["history"][self._epochs :]:
            self._console.line(
                f"epoch {row['epoch']:g}/{record['epochs']:g}  loss {row['train_loss']:.4f}  "
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


def look(run: str, shown: ProgressPrinter) -> dict[str, Any] | None:
    """Show the record as it is now; one that is not there yet, or a slow storage, is no reason to stop looking."""
    with suppress(MnistRayError, FileNotFoundError, ValueError):
        record: dict[str, Any] = storage.read_json(storage.join(run, _NAME))
        shown.update(record)
        return record
    return None
