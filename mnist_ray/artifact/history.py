"""The history of a run, epoch by epoch: `history.jsonl` and TensorBoard events."""

from __future__ import annotations

import json
import os
import tempfile
from typing import TYPE_CHECKING

from mnist_ray.data import storage

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

NOT_CURVES = ("epoch", "samples_seen")


class History:
    """Writes the rows of a run's history. Events lie over samples, so runs with other batch sizes compare."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._events = storage.join(run, "tensorboard")
        self._writer: SummaryWriter | None = None
        self._written = 0

    def write(self, rows: list[dict[str, float]]) -> None:
        """Write the whole history anew, so that a continued run never repeats a line, and the new rows' events."""
        storage.write(storage.join(self._run, "history.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._write_events(rows[self._written :])
        self._written = len(rows)

    def _write_events(self, rows: list[dict[str, float]]) -> None:
        if not rows:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            folder = self._events if storage.is_local(self._events) else tempfile.mkdtemp()
            # A run that continues takes back the events after its checkpoint.
            self._writer = SummaryWriter(folder, purge_step=int(rows[0]["samples_seen"]))
        for row in rows:
            for name in sorted(set(row) - set(NOT_CURVES)):
                self._writer.add_scalar(name, row[name], int(row["samples_seen"]))
        self._writer.flush()
        if not storage.is_local(self._events):
            for file in os.scandir(self._writer.logdir):
                with open(file.path, "rb") as stream:
                    storage.write(storage.join(self._events, file.name), stream.read())
