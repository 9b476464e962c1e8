"""The history of a run, epoch by epoch: `history.jsonl` and TensorBoard events."""

from __future__ import annotations

import json
import os
import tempfile

from mnist_ray.data import storage
from mnist_ray.errors import StorageError

NOT_CURVES = ("epoch", "samples_seen", "train_samples")


class HistoryWriter:
    """Writes the rows of a run's history. Events lie over samples, so runs with other batch sizes compare."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._written = 0

    def write(self, rows: list[dict[str, float]]) -> None:
        """Write the whole history anew, so that a continued run never repeats a line, and the new rows' events.

        Raises StorageError.
        """
        storage.write(
            storage.join(self._run, "history.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode(), storage.PATIENT
        )
        if new := rows[self._written :]:
            try:
                self._write_events(new)
            except OSError as error:
                raise StorageError(f"{self._run}/tensorboard: cannot be written: {error}") from None
            self._written = len(rows)

    def _write_events(self, rows: list[dict[str, float]]) -> None:
        """A file of events: made in a temporary folder, since only closing a writer writes all that it was given."""
        from tensorboardX import SummaryWriter

        with tempfile.TemporaryDirectory() as folder:
            # A run that continues takes back the events after its checkpoint.
            first = int(rows[0]["samples_seen"])
            with SummaryWriter(folder, purge_step=None if self._written else first, filename_suffix=f".{first}") as writer:
                for row in rows:
                    for name in sorted(set(row) - set(NOT_CURVES)):
                        writer.add_scalar(name, row[name], int(row["samples_seen"]))
            for file in os.scandir(folder):
                with open(file.path, "rb") as stream:
                    storage.write(storage.join(self._run, "tensorboard", file.name), stream.read())
