"""Parquet inputs in the plan: their row ranges and the columns that are passed through."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.config import ScoreConfig
from mnist_ray.data import columns, storage
from mnist_ray.data.digits import CLASSES
from mnist_ray.data.listing import REMOTE_READERS, FileEntry, batches
from mnist_ray.errors import DataError, UsageError
from mnist_ray.scoring import schema

MAX_UNIT_ROWS = 1 << 15
"""Rows of the largest row group that one unit reads whole. A larger one is cut into pieces."""
MAX_PIECES = 8
"""Most pieces of a row group. To read a piece, a unit must decode all rows of the group before it."""
UNIT_ROWS = 1 << 13
"""Rows up to which small row groups are joined in one unit."""
_PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
"""Types in which kept columns of other types are written. Few readers know view types."""


@dataclass(frozen=True, slots=True)
class TableRange:
    """Rows `first_row` up to `first_row + num_rows` of a Parquet file. A damaged file is one input, without rows."""

    entry: FileEntry
    first_row: int | None
    num_rows: int


def table_ranges(tables: list[FileEntry], config: ScoreConfig, truths: set[str]) -> tuple[pa.Schema, list[TableRange]]:
    """The kept columns, and the row ranges that become units. Ranges follow the row groups. Adds to `truths` where truth is.

    Raises DataError if the columns of a file do not fit, and UsageError for `--keep` without Parquet inputs.
    """
    names = config.kept_columns()
    lists = (schema.predictions(schema.NOTHING, probabilities, review=True) for probabilities in (1, len(CLASSES)))
    own = {name for table in (*lists, schema.QUARANTINE) for name in table.names}
    if taken := [name for name in names if name in own]:
        raise UsageError(f"--keep {','.join(taken)}: the tables have a column of this name; rename it in the input")
    if names and not tables:
        raise UsageError(f"--keep {config.keep}: passes columns of Parquet inputs through, and there is no Parquet input")
    kept: pa.Schema | None = None
    ranges: list[TableRange] = []
    for entry, metadata in _footers(tables):
        if metadata is None:  # the unit will quarantine the file with the reason
            ranges.append(TableRange(entry, None, 1))
            continue
        found = metadata.schema.to_arrow_schema()
        columns.image_column(found, config.image_column, entry.uri)
        if column := columns.truth_column(found, config.truth, entry.uri):
            truths.add(f"column {column}")
        kept = _same_kept(kept, found, names, entry.uri)
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        ranges += [TableRange(entry, first, rows) for first, rows in row_ranges(sizes, config.unit_rows or UNIT_ROWS)]
    return kept or schema.NOTHING, ranges


def _footers(tables: list[FileEntry]) -> Iterator[tuple[FileEntry, pq.FileMetaData | None]]:
    """The files with their footers, in order. Several are read at once: in a bucket, each takes two requests."""
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        for batch in batches(tables, 256):
            yield from zip(batch, pool.map(_footer, batch), strict=True)


def _footer(entry: FileEntry) -> pq.FileMetaData | None:
    """The footer of a Parquet file, or None if the file is damaged or not accessible. Raises StorageError."""
    with suppress(OSError, pa.ArrowException), storage.open_input(entry.uri) as stream:
        return pq.read_metadata(stream)
    return None


def _same_kept(kept: pa.Schema | None, found: pa.Schema, names: tuple[str, ...], source: str) -> pa.Schema:
    if missing := [name for name in names if name not in found.names]:
        raise DataError(f"{source}: has no column {missing[0]!r} for --keep; its columns: {columns.describe(found)}")
    for name in names:
        columns.require_known_types(found.field(name), source)
    own = pa.schema([(name, _PLAIN.get(found.field(name).type, found.field(name).type)) for name in names])
    if kept is not None and not kept.equals(own):
        raise DataError(
            f"{source}: its columns for --keep are {columns.describe(own)}; the files before it have {columns.describe(kept)}"
        )
    return own


def row_ranges(group_sizes: list[int], unit_rows: int) -> Iterator[tuple[int, int]]:
    """Row ranges (first, number). Small row groups are joined up to `unit_rows` rows; a huge row group is cut into pieces."""
    first = rows = 0
    for size in group_sizes:
        if rows and rows + size > unit_rows:
            yield first, rows
            first, rows = first + rows, 0
        rows += size
        if rows > (most := max(unit_rows, MAX_UNIT_ROWS)):
            piece = max(most, -(-rows // MAX_PIECES))
            while rows:
                yield first, min(piece, rows)
                first, rows = first + min(piece, rows), rows - min(piece, rows)
    if rows:
        yield first, rows
