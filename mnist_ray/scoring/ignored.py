"""The files of input folders that are not scored, with the reason: `ignored.parquet` in the output folder."""

import io
from enum import StrEnum

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.data.listing import FileEntry
from mnist_ray.scoring import schema

IGNORED = "ignored.parquet"
_ROWS = 1 << 14
"""Rows that are compressed together."""


class Why(StrEnum):
    """Why a file of an input folder is not scored. This list is complete."""

    HIDDEN = "hidden"
    """Its name, or that of a folder below the input, begins with a dot."""
    OTHER_SUFFIX = "other_suffix"
    """Its suffix is that of no image and no Parquet file. To score it, name the file itself as an INPUT."""
    NO_IMAGE = "no_image"
    """Its name has no suffix, and its content is no image."""


class Ignored:
    """The ignored files of a listing. Their names are compressed as they come: about 20 bytes of memory for each."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[tuple[str, int, str]] = []
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(self._sink, schema.IGNORED, compression="zstd")

    def add(self, entry: FileEntry, why: Why) -> None:
        """Note a file."""
        self.count += 1
        self._rows.append((storage.to_text(entry.uri), entry.size, str(why)))
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.table(list(map(list, zip(*self._rows, strict=True))), schema=schema.IGNORED))
        self._rows = []

    def to_parquet(self) -> bytes:
        """All ignored files as a Parquet file. Nothing can be added afterwards."""
        self._flush()
        self._writer.close()
        return self._sink.getvalue()
