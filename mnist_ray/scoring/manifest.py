"""Manifests: files that list the paths of images. They are read as a stream.

A CSV or Parquet file is a manifest if it holds no images and has a column of paths. Its columns decide.
"""

import io
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.data import columns, csv_table, storage
from mnist_ray.data.images import digit_of
from mnist_ray.data.listing import FileEntry, ImageFile, batches, stat_files
from mnist_ray.errors import DataError
from mnist_ray.scoring.tables import DAMAGE, Kept

_BATCH = 1 << 14
_STATS_AT_ONCE = 1024


def lines(item: str, truth: str, truths: set[str], kept: Kept, image_column: str) -> Iterator[ImageFile] | None:
    """The image files that a manifest lists; None if the file is not a manifest.

    Adds to `truths` where truth is, and its columns to `kept`. A path without a file is an input, too: scoring quarantines it.
    Raises DataError.
    """
    name = item.lower()
    if name.endswith((".txt", ".lst")):
        return _images(item, truth, ((batch, None, None) for batch in batches(_text(item), _BATCH)), truths)
    if csv_table.is_csv(name) and not columns.pixel_columns((header := csv_table.read_header(item)).names):
        return _images(item, truth, _table(item, _csv(item, header, truth, kept), truth, truths, kept), truths)
    if name.endswith(".parquet") and _lists_paths(item, image_column):
        return _images(item, truth, _table(item, _parquet(item, truth, kept), truth, truths, kept), truths)
    return None


def _text(item: str) -> Iterator[str]:
    with io.TextIOWrapper(storage.open_stream(item), "utf-8-sig", "surrogateescape", newline="\n") as text:
        for line in text:
            if path := line.removesuffix("\n").removesuffix("\r"):
                yield path


Batch = tuple[list[str], list[int | None] | None, list[tuple[Any, ...]] | None]
"""Paths, their true digits if the manifest has such a column, and the values of the kept columns."""


def _table(item: str, found: Iterator[pa.RecordBatch], truth: str, truths: set[str], kept: Kept) -> Iterator[Batch]:
    row = 0
    for batch in found:
        name = columns.path_column(batch.schema)
        if column := columns.truth_column(batch.schema, truth, item):
            truths.add(f"column {column}")
        paths = batch.column(name).cast(pa.string()).to_pylist()
        if not all(paths):
            empty = row + next(place for place, path in enumerate(paths) if not path)
            raise DataError(f"{item}: row {empty} of column {name!r} is empty or null; expected a path in every row")
        labels = columns.truths(batch.column(column)).to_pylist() if column else None
        values = (_values(batch.column(name)) for name in kept.names)
        yield paths, labels, list(zip(*values, strict=True)) if kept.names else None
        row += batch.num_rows


def _values(column: pa.Array) -> list[Any]:
    """The values of a kept column, as the plan holds them."""
    plain: list[Any] = column.cast(columns.plain_type(column.type)).to_pylist()
    return plain


def _wanted(found: pa.Schema, item: str, truth: str, kept: Kept) -> list[str]:
    """The columns that are read: paths, true digits, and those that are added to `kept`. Raises DataError."""
    columns.require_unique(found, item)
    path = columns.path_column(found)
    if path is None:
        raise DataError(
            f"{item}: holds neither images nor paths; expected a text column named {', '.join(columns.PATH_NAMES)}, "
            f"or {columns.NUM_PIXELS} columns of pixels such as pixel0 to pixel{columns.NUM_PIXELS - 1}; "
            f"its columns: {columns.describe(found)}"
        )
    kept.add(found, item)
    wanted = {path, columns.truth_column(found, truth, item), *kept.names}
    return [name for name in found.names if name in wanted]


def _csv(item: str, header: csv_table.CsvHeader, truth: str, kept: Kept) -> Iterator[pa.RecordBatch]:
    """All values are text. Raises DataError for a line that cannot be read: a quotation mark may have swallowed others."""
    names, row = _wanted(header.schema, item, truth, kept), 0
    with storage.open_stream(item) as stream:
        for found in csv_table.read_all(stream, header, names):
            if isinstance(found, csv_table.Refused):
                raise DataError(
                    f"{item}: cannot be read as a manifest: row {row}: {found.rejection.detail}; expected each row in one "
                    "line, with as many values as the header has"
                )
            yield found
            row += found.num_rows


def _parquet(item: str, truth: str, kept: Kept) -> Iterator[pa.RecordBatch]:
    try:
        with storage.open_input(item) as stream:
            parquet = pq.ParquetFile(stream)
            yield from parquet.iter_batches(_BATCH, columns=_wanted(parquet.schema_arrow, item, truth, kept))
    except OSError as error:  # a damaged page
        raise _unreadable(item, error) from None


def _lists_paths(item: str, image_column: str) -> bool:
    """Whether a Parquet file lists paths instead of holding images. False if it is damaged. Raises StorageError.

    A file with the column that the user has named for images holds images.
    """
    try:
        with storage.open_input(item) as stream:
            schema, metadata = pq.read_schema(stream), pq.read_metadata(stream)
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except DAMAGE:
        return False
    if columns.path_column(schema) is None:
        return False
    wanted = image_column if image_column in schema.names else ""
    try:
        found = columns.image_columns(schema, wanted, item)
    except DataError:
        return not columns.holds_refused_images(schema)
    return not (wanted or columns.hold_images(schema, metadata, found))


def _images(item: str, truth: str, found: Iterable[Batch], truths: set[str]) -> Iterator[ImageFile]:
    """The files of the paths."""
    folder = item.rpartition("/")[0]
    try:
        for paths, labels, kept in found:
            for path in paths:
                if "\0" in path or path.lower().endswith(".parquet"):
                    raise DataError(f"{item}: lists {path[:60]!r}; expected the path of an image file (in UTF-8) on every line")
            rows = zip(paths, labels or repeat(None), kept or repeat(()), strict=False)
            for some in batches(rows, _STATS_AT_ONCE):
                entries = _look_up([path for path, _, _ in some], folder)
                for entry, (_, label, values) in zip(entries, some, strict=True):
                    if truth == "folder":
                        label = digit_of(entry.uri)
                        truths.add("folder names")
                    yield ImageFile(entry, label, values)
    except MemoryError:
        raise
    except (pa.ArrowException, OverflowError, ValueError) as error:  # Python's dates end in 9999; text may not be UTF-8
        raise _unreadable(item, error) from None


def _look_up(paths: list[str], folder: str) -> list[FileEntry]:
    """The entries of the paths. A relative one is in the folder of the manifest, or else in the working directory.

    If it is in neither, the version of its entry says what was tried second.
    """
    relative = [not (path.startswith("/") or "://" in path) for path in paths]
    uris = [storage.join(folder, path) if inside else path for path, inside in zip(paths, relative, strict=True)]
    entries = list(stat_files(uris))
    places = [place for place, inside in enumerate(relative) if inside and entries[place].size < 0]
    seconds = [storage.absolute(paths[place]) for place in places]
    for place, second in zip(places, stat_files(seconds), strict=True):
        missing = entries[place]
        if second.size >= 0:
            entries[place] = second
        elif second.uri != storage.absolute(missing.uri):
            entries[place] = missing._replace(version=storage.to_text(second.uri))
    return entries


def _unreadable(item: str, error: Exception) -> DataError:
    return DataError(f"{item}: cannot be read as a manifest: {error}")
