"""The history of a run, one row per epoch: `history.jsonl` and TensorBoard events."""

import json
import tempfile
from pathlib import Path

from mnist_ray.data import storage
from mnist_ray.errors import StorageError

NOT_CURVES = ("epoch", "samples_seen", "train_samples")
"""Columns of the history that get no curve in TensorBoard."""


class HistoryWriter:
    """Writes the rows of a run's history. The x-axis of its curves is samples, so runs with different batch sizes compare."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._written = 0

    def write(self, rows: list[dict[str, float]], patience_s: float | None = None) -> None:
        """Replace `history.jsonl` by all rows, so that a continued run repeats no line, and write the events of the new rows.

        `patience_s` is that of `storage.write`. Raises StorageError.
        """
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        storage.write(storage.join(self._run, "history.jsonl"), lines.encode(), patience_s)
        if new := rows[self._written :]:
            try:
                self._write_events(new, patience_s)
            except OSError as error:
                raise StorageError(f"{self._run}/tensorboard: cannot be written: {error}") from None
            self._written = len(rows)

    def _write_events(self, rows: list[dict[str, float]], patience_s: float | None) -> None:
        """Write an event file; in a temporary folder first, because a SummaryWriter completes its file only when closed."""
        from tensorboardX import SummaryWriter

        with tempfile.TemporaryDirectory() as folder:
            # The first file of a continued run purges the events that an earlier process wrote after the checkpoint.
            first = int(rows[0]["samples_seen"])
            with SummaryWriter(folder, purge_step=None if self._written else first, filename_suffix=f".{first}") as writer:
                for row in rows:
                    for name in sorted(set(row) - set(NOT_CURVES)):
                        writer.add_scalar(name, row[name], int(row["samples_seen"]))
            for file in Path(folder).iterdir():
                storage.write(storage.join(self._run, "tensorboard", file.name), file.read_bytes(), patience_s)
