"""Parquet and CSV inputs in the plan: their row ranges and the columns that are passed through."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.config import ScoreConfig
from mnist_ray.data import columns, csv_table, storage
from mnist_ray.data.csv_table import CsvHeader
from mnist_ray.data.digits import CLASSES
from mnist_ray.data.listing import REMOTE_READERS, FileEntry, batches
from mnist_ray.errors import DataError, StorageError, UsageError
from mnist_ray.scoring import schema
from mnist_ray.scoring.plan import PLAN

SAMPLE_RUN = 256
"""Rows of a table that are drawn together for a sample. To read a single row costs as much as to read its page."""
MAX_UNIT_ROWS = 1 << 15
"""Rows of the largest row group that one unit reads whole. A larger one is cut into pieces."""
MAX_PIECES = 8
"""Most pieces of a row group. To read a piece, a unit must decode all rows of the group before it."""
UNIT_ROWS = 1 << 13
"""Rows up to which small row groups are joined in one unit."""
UNIT_BYTES = 16 << 20
"""Bytes of a CSV file at which a unit ends, whatever its rows."""
DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What pyarrow raises for a damaged file, besides an answer of the storage. Names of columns may not be UTF-8."""
_PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
"""Types in which kept columns of other types are written. Few readers know view types."""


@dataclass(frozen=True, slots=True)
class TableRange:
    """Rows `first_row` up to `first_row + num_rows` of a table. A damaged Parquet file is one input, without rows."""

    entry: FileEntry
    first_row: int | None
    num_rows: int
    first_byte: int | None = None
    """Where the first row begins in a CSV file."""


class Kept:
    """The columns that `--keep` names. All tables and manifests must have them, with the same types."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        """Raises UsageError for a column that the prediction table has itself."""
        self.names = names
        self.schema: pa.Schema | None = None
        """The columns as they are written; None before `add`."""
        lists = (schema.predictions(schema.NOTHING, probabilities, review=True) for probabilities in (1, len(CLASSES)))
        own = {name for table in (*lists, schema.QUARANTINE) for name in table.names}
        if taken := [name for name in self.names if name in own]:
            raise UsageError(f"--keep {','.join(taken)}: the tables have a column of this name; rename it in the input")

    def add(self, found: pa.Schema, source: str) -> None:
        """Note the columns of a file. Raises DataError if it lacks one, or if a file before it has another type."""
        if missing := [name for name in self.names if name not in found.names]:
            raise DataError(f"{source}: has no column {missing[0]!r} for --keep; its columns: {columns.describe(found)}")
        for name in self.names:
            columns.require_known_types(found.field(name), source)
        own = pa.schema([(name, _PLAIN.get(found.field(name).type, found.field(name).type)) for name in self.names])
        if self.schema is not None and not self.schema.equals(own):
            raise DataError(
                f"{source}: its columns for --keep are {columns.describe(own)}; "
                f"the files before it have {columns.describe(self.schema)}"
            )
        self.schema = own


def table_ranges(tables: list[FileEntry], config: ScoreConfig, truths: set[str], kept: Kept) -> list[TableRange]:
    """The row ranges that become units. Ranges follow the row groups. Adds to `kept`, and to `truths` where truth is.

    Raises DataError if the columns of a file do not fit.
    """
    ranges: list[TableRange] = []
    unit_rows = config.unit_rows or UNIT_ROWS
    for entry, about in _headers(tables):
        if about is None:  # the unit will quarantine the file with the reason
            ranges.append(TableRange(entry, None, 1))
            continue
        found = about.schema if isinstance(about, CsvHeader) else about.schema.to_arrow_schema()
        try:
            columns.image_columns(found, config.image_column, entry.uri)
        except DataError:
            _require_no_output(entry.uri)
            raise
        if column := columns.truth_column(found, config.truth, entry.uri):
            truths.add(f"column {column}")
        kept.add(found, entry.uri)
        if isinstance(about, CsvHeader):  # a sample of it is drawn from whole ranges
            most = min(unit_rows, SAMPLE_RUN) if config.sample else unit_rows
            ranges += [TableRange(entry, *part) for part in csv_table.ranges(entry.uri, about, most, UNIT_BYTES)]
        else:
            sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
            ranges += [TableRange(entry, first, rows) for first, rows in row_ranges(sizes, unit_rows)]
    return ranges


def _require_no_output(uri: str) -> None:
    """Raise DataError if a file belongs to the prediction table of another job."""
    folder = uri.rpartition("/")[0]
    for place in (folder, folder.rpartition("/")[0]):
        if storage.is_file(storage.join(place, PLAN)):
            raise DataError(f"{place}: holds a prediction table, and is below an input; move it away, or name other inputs")


def _headers(tables: list[FileEntry]) -> Iterator[tuple[FileEntry, pq.FileMetaData | CsvHeader | None]]:
    """The files with their footers or headers, in order. Several are read at once: in a bucket, each takes two requests."""
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        for batch in batches(tables, 256):
            yield from zip(batch, pool.map(read_header, batch), strict=True)


def read_header(entry: FileEntry) -> pq.FileMetaData | CsvHeader | None:
    """The footer of a Parquet file, or None if the file is damaged or access is denied; the header of a CSV file.

    Raises StorageError, and DataError for a CSV file without a header.
    """
    try:
        if csv_table.is_csv(entry.uri):
            return csv_table.read_header(entry.uri)
        with storage.open_input(entry.uri) as stream:
            return pq.read_metadata(stream)
    except FileNotFoundError:
        raise StorageError(f"{entry.uri}: was listed, and is not there any more") from None
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except DAMAGE:
        return None


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
