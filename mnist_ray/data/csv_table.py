"""CSV files with a column for each pixel, such as Kaggle's `label,pixel0,…,pixel783`.

The first line that is not empty holds the names of the columns. Each later one is a row, so a value has no line break. Rows
are read from any byte at which a line begins: a plan holds such bytes. Pixels are read as numbers, other columns as text.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv

from mnist_ray.data import columns, storage
from mnist_ray.data.containers import Reason, Rejection
from mnist_ray.errors import DataError, first_line

SUFFIXES = (".csv", ".tsv")
MOST_LINE_BYTES = 1 << 20
"""A longer line counts as several rows, which are then rejected."""
LINES_AT_ONCE = 1024
"""Lines that are parsed together."""


class Refused(NamedTuple):
    """So many rows that cannot be read, one after the other."""

    rejection: Rejection
    num_rows: int


@dataclass(frozen=True, slots=True)
class CsvHeader:
    """The names of the columns of a CSV file, and the byte at which its rows begin."""

    names: tuple[str, ...]
    delimiter: str
    first_byte: int

    @property
    def schema(self) -> pa.Schema:
        """The columns with the types in which they are read."""
        pixels = frozenset(columns.pixel_columns(self.names))
        return pa.schema([(name, pa.float32() if name in pixels else pa.string()) for name in self.names])


def is_csv(uri: str) -> bool:
    """Whether a file is read as CSV, by its name."""
    return uri.lower().endswith(SUFFIXES)


def delimiter(uri: str) -> str:
    """The character between the values of a CSV file, by its name."""
    return "\t" if uri.lower().endswith(".tsv") else ","


def read_header(uri: str) -> CsvHeader:
    """The header of a CSV file. Raises DataError if it has none, FileNotFoundError, or StorageError."""
    with storage.open_stream(uri) as stream:
        position, line = next(lines(stream, 0), (0, b""))
    try:
        (names,) = csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], delimiter=delimiter(uri), strict=True)
    except (UnicodeDecodeError, ValueError, csv.Error):
        raise DataError(
            f"{uri}: its first line is not the header of a CSV file: UTF-8 text with the names of columns"
        ) from None
    if len(names) > 1 and all(map(_is_number, names)) and not columns.pixel_columns(names):
        raise DataError(
            f"{uri}: its first line holds only numbers; add a line before it, such as label,pixel0,pixel1 and so on"
        )
    return CsvHeader(tuple(names), delimiter(uri), position + len(line))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def lines(stream: io.BufferedReader, first_byte: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, from a byte on, and the byte at which each begins."""
    stream.seek(first_byte)
    for line in iter(partial(stream.readline, MOST_LINE_BYTES), b""):
        if line.strip(b"\r\n"):
            yield first_byte, line
        first_byte += len(line)


def ranges(uri: str, header: CsvHeader, most_rows: int, most_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of rows (first row, number, first byte) that hold about so many rows or bytes at most. Reads the whole file.

    Raises StorageError.
    """
    first, rows, start, end = 0, 0, header.first_byte, 0
    with storage.open_stream(uri) as stream:
        for position, line in lines(stream, header.first_byte):
            if rows == 0:
                start = position
            rows, end = rows + 1, position + len(line)
            if rows >= most_rows or end - start >= most_bytes:
                yield first, rows, start
                first, rows = first + rows, 0
    if rows:
        yield first, rows, start


def read(
    stream: io.BufferedReader, header: CsvHeader, first_byte: int, num_rows: int, names: list[str]
) -> Iterator[pa.RecordBatch | Refused]:
    """The columns `names` of rows, from the one that begins at a byte. A line that cannot be parsed is one refused row.

    Raises OSError if the file has too few rows, and what the storage raises.
    """
    rows = (line for _, line in lines(stream, first_byte))
    while num_rows > 0:
        if not (found := list(islice(rows, min(num_rows, LINES_AT_ONCE)))):
            raise OSError(f"has {num_rows} rows less than when the plan was made")
        num_rows -= len(found)
        yield from _parse(found, header, names)


def read_all(stream: io.BufferedReader, header: CsvHeader, names: list[str]) -> Iterator[pa.RecordBatch | Refused]:
    """The columns `names` of all rows, as `read` yields them. Raises what the storage raises."""
    rows = (line for _, line in lines(stream, header.first_byte))
    while found := list(islice(rows, LINES_AT_ONCE)):
        yield from _parse(found, header, names)


def _parse(found: list[bytes], header: CsvHeader, names: list[str]) -> Iterator[pa.RecordBatch | Refused]:
    """Lines as a batch. If one of them cannot be parsed, they are halved until it stands alone."""
    data = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in found)
    types = {field.name: field.type for field in header.schema}
    try:
        table = pa_csv.read_csv(
            io.BytesIO(data),
            pa_csv.ReadOptions(use_threads=False, block_size=len(data), column_names=header.names),
            pa_csv.ParseOptions(delimiter=header.delimiter),
            pa_csv.ConvertOptions(include_columns=names, column_types=types),
        )
        if table.num_rows != len(found):  # a quote that is not closed joins lines
            raise pa.ArrowInvalid(f"holds {table.num_rows} rows in {len(found)} lines: a quotation mark is not closed")
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except pa.ArrowException as error:
        if len(found) == 1:
            yield Refused(_rejection(found[0], header, first_line(error)), 1)
            return
        middle = len(found) // 2
        yield from _parse(found[:middle], header, names)
        yield from _parse(found[middle:], header, names)
        return
    yield from table.combine_chunks().to_batches()


def _rejection(line: bytes, header: CsvHeader, said: str) -> Rejection:
    number, expected = line.count(header.delimiter.encode()) + 1, len(header.names)
    if number != expected and b'"' not in line:
        return Rejection(Reason.WRONG_SHAPE, f"the line has {number} values; expected {expected} as in the header")
    return Rejection(Reason.BAD_PIXELS, f"the line cannot be read: {said[:200]}")
