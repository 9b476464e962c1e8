"""What the reports read: rows of the tables, and the pictures of inputs."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.data import csv_table, storage
from mnist_ray.data.bulk import read_many
from mnist_ray.data.cells import decode_rows
from mnist_ray.data.columns import column_chunks, image_columns, read_rows
from mnist_ray.data.containers import MAX_BYTES, Reason, Rejection, check
from mnist_ray.data.images import Grey, to_digits
from mnist_ray.data.listing import REMOTE_READERS
from mnist_ray.errors import DataError, MnistRayError, first_line
from mnist_ray.report.page import picture
from mnist_ray.scoring.parts import part_name
from mnist_ray.scoring.read import CHUNK_ROWS, to_grey

BATCH_ROWS = 1 << 16
MOST_TABLE_BYTES = 256 << 20
"""Compressed bytes of image columns that are read for pictures. A picture needs its whole row group."""
PREVIEW_SIDE = 56
"""Pixels of the longer side of the picture of a rejected file."""

Key = tuple[str, int | None]
"""An input: its source, and its row in a table."""


class Shown(NamedTuple):
    """The picture of an input as a data URI; or if there is none, why."""

    picture: str = ""
    note: str = ""


def rows(out: str, table: str, unit: str, columns: list[str]) -> Iterator[pa.Table]:
    """Columns of a unit's part, in batches of at most `BATCH_ROWS` rows. Raises StorageError, or OSError for a damaged part."""
    with storage.open_file(storage.join(out, table, part_name(unit))) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def pictures(inputs: Collection[Key], column: str) -> dict[Key, Shown]:
    """The digit of each input as the network sees it, or why it cannot be shown. A source that is gone is no error.

    The inputs are read as they are now. `column` is the job's `--image-column`. After `MOST_TABLE_BYTES` of tables, the other
    rows are not read.
    """
    contents = _read([source for source, row in inputs if row is None])
    found: dict[Key, Shown] = {(source, None): _digit(to_grey(source, data)) for source, data in contents.items()}
    tables: dict[str, list[int]] = {}
    for source, row in inputs:
        if row is not None:
            tables.setdefault(source, []).append(row)
    budget = _Budget(MOST_TABLE_BYTES)
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        parts = pool.map(lambda source: _cells(source, tables[source], column, budget), tables)
        for source, cells in zip(tables, parts, strict=True):
            found |= {(source, row): shown for row, shown in cells.items()}
    return found


def previews(sources: Collection[str]) -> dict[str, Shown]:
    """A small picture of each rejected image file as it is now, not converted to a digit; or why there is none."""
    return {source: _preview(data) for source, data in _read(list(sources)).items()}


def _read(sources: list[str]) -> Mapping[str, bytes | OSError]:
    """The content of files. Of a storage that fails, every file is an error."""
    uris = [storage.from_text(source) for source in sources]
    try:
        return dict(zip(sources, read_many(uris, MAX_BYTES), strict=True))
    except MnistRayError as error:
        return dict.fromkeys(sources, PermissionError(0, first_line(error)))


def _digit(grey: Grey | Rejection) -> Shown:
    if isinstance(grey, Rejection):
        return Shown(note="the source is gone" if grey.reason == Reason.MISSING else grey.detail)
    return Shown(picture(to_digits([grey])[0]))


def _preview(data: bytes | OSError) -> Shown:
    if isinstance(data, OSError) or check(data) is not None:  # the decoder prints messages for files that fail the check
        return Shown()
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    return Shown() if pixels is None or not pixels.size else Shown(picture(_small(pixels)))


def _small(pixels: NDArray[Any]) -> Grey:
    """Pixels of any type, [H, W] or [H, W, C], as grey levels of at most `PREVIEW_SIDE` pixels a side."""
    levels = np.nan_to_num(pixels.astype(np.float64), posinf=0, neginf=0)
    levels = levels if levels.ndim == 2 else levels[..., :3].mean(axis=2)
    levels = (levels - levels.min()) * (255 / max(float(np.ptp(levels)), 1e-9))
    scale = PREVIEW_SIDE / max(levels.shape)
    size = tuple(max(1, round(side * scale)) for side in reversed(levels.shape))
    return np.asarray(cv2.resize(levels.astype(np.uint8), size, interpolation=cv2.INTER_AREA), np.uint8)


@dataclass
class _Budget:
    """Bytes that may still be read. Threads share it, so it may be exceeded a little."""

    left: int

    def require(self, number: int) -> None:
        """Take bytes. Raises DataError if there are not so many."""
        self.left -= number
        if self.left < 0:
            raise DataError("not read: the tables, or the row groups of the Parquet files, are large")


def _cells(source: str, wanted: list[int], column: str, budget: _Budget) -> dict[int, Shown]:
    """The pictures of rows of one table."""
    found: dict[int, Shown] = {}
    note = "the file has no such row now"
    uri = storage.from_text(source)
    try:
        for cells in _csv_cells(uri, wanted, budget) if csv_table.is_csv(uri) else _parquet_cells(uri, wanted, column, budget):
            found |= cells
    except FileNotFoundError:
        note = "the source is gone"
    except (MnistRayError, OSError, pa.ArrowException) as error:
        note = first_line(error)
    return {row: found.get(row, Shown(note=note)) for row in wanted}


def _csv_cells(uri: str, wanted: list[int], budget: _Budget) -> Iterator[dict[int, Shown]]:
    """The pictures of rows of a CSV file. It is read up to the last of these rows."""
    header = csv_table.read_header(uri)
    names = list(image_columns(header.schema, "", uri))
    places: dict[int, int] = {}
    with storage.open_lines(uri) as stream:
        for row, (position, line) in enumerate(csv_table.lines(stream, header.first_byte)):
            budget.require(len(line))
            if row in wanted:
                places[row] = position
                if len(places) == len(wanted):
                    break
        for row, position in places.items():
            (rows,) = csv_table.read(stream, header, position, 1, names)
            (cell,) = [rows.rejection] if isinstance(rows, csv_table.Refused) else decode_rows(rows, names)
            yield {row: _digit(cell)}


def _parquet_cells(uri: str, wanted: list[int], column: str, budget: _Budget) -> Iterator[dict[int, Shown]]:
    """The pictures of rows of a Parquet file, those of one row group after the other."""
    with storage.open_input(uri) as stream:
        parquet = pq.ParquetFile(stream)
        names = image_columns(parquet.schema_arrow, column, uri)
        for group, first, rows_inside in _row_groups(parquet.metadata, wanted):
            budget.require(
                sum(chunk.total_compressed_size for chunk in column_chunks(parquet.metadata.row_group(group), names))
            )
            batches = read_rows(stream, parquet.metadata, [group], names, CHUNK_ROWS)
            yield _group_cells(batches, first, rows_inside, names)


def _row_groups(metadata: pq.FileMetaData, wanted: list[int]) -> Iterator[tuple[int, int, list[int]]]:
    """The row groups that hold these rows: number, first row, and the rows inside."""
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    places = np.searchsorted(ends, wanted, side="right")
    for group in np.unique(places[places < len(ends)]).tolist():
        first = int(ends[group]) - metadata.row_group(group).num_rows
        yield group, first, [row for row, place in zip(wanted, places, strict=True) if place == group]


def _group_cells(batches: Iterable[pa.RecordBatch], first: int, wanted: list[int], names: Sequence[str]) -> dict[int, Shown]:
    """The pictures of rows of one row group, which starts at the row `first` of the file."""
    found: dict[int, Shown] = {}
    for batch in batches:
        inside = [row for row in wanted if first <= row < first + batch.num_rows]
        if inside:
            cells = decode_rows(batch.take(pa.array([row - first for row in inside])), names)
            found |= {row: _digit(cell) for row, cell in zip(inside, cells, strict=True)}
        first += batch.num_rows
    return found
