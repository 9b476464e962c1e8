"""The progress of a training run: a record that rank 0 writes to the run directory, and the driver's lines about it."""

from contextlib import suppress
from typing import Any

from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.errors import MnistRayError, StorageError

_NAME = "progress.json"


class ProgressPrinter:
    """Prints progress records as console lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_epochs = 0
        self._shown_warnings: list[str] = []

    def update(self, record: dict[str, Any]) -> None:
        """Print what is new in the record."""
        for warning in record["warnings"]:
            if warning not in self._shown_warnings:
                self._console.line(f"warning: {warning}")
                self._shown_warnings.append(warning)
        for row in record["history"][self._shown_epochs :]:
            self._console.line(
                f"epoch {row['epoch']:g}/{record['epochs']:g}  loss {row['train_loss']:.4f}  "
                f"test accuracy {row['test_accuracy']:.2%}  {row['train_seconds']:.1f} s"
            )
        self._shown_epochs = max(self._shown_epochs, len(record["history"]))
        share = record["samples_seen"] / record["total"]
        self._console.progress(
            f"training {share:4.0%}  {record['samples_seen']:,} of {record['total']:,} samples  "
            f"loss {record['loss']:.4f}  {record['samples_per_second']:,.0f} samples/s"
        )


def clear(run: str) -> None:
    """Delete the record of an earlier launch."""
    storage.delete(storage.join(run, _NAME))


def publish(run: str, record: dict[str, Any]) -> None:
    """Write the record for the driver."""
    with suppress(StorageError):  # training goes on without this line
        storage.write_json(storage.join(run, _NAME), record, patience_s=0)


def show(run: str, printer: ProgressPrinter) -> dict[str, Any] | None:
    """Print and return the current record; None if there is no record yet, or the storage does not answer."""
    with suppress(MnistRayError, FileNotFoundError, ValueError):
        record: dict[str, Any] = storage.read_json(storage.join(run, _NAME), patience_s=0)
        printer.update(record)
        return record
    return None
