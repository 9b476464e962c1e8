"""INPUT arguments to what there is to score: image files and Parquet files."""

from __future__ import annotations

import glob
import io
from dataclasses import dataclass, field
from fnmatch import fnmatch

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mnist_ray.data import columns, storage
from mnist_ray.data.datasets import IMAGE_SUFFIXES, digit_of
from mnist_ray.data.listing import FileEntry, stat_files, walk
from mnist_ray.errors import DataError

MANIFEST_SUFFIXES = (".txt", ".lst", ".csv", ".tsv")
_WILDCARDS = "*?["


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file to score, and its true digit where a folder or manifest gives it."""

    entry: FileEntry
    truth: int | None


@dataclass
class Listing:
    """Everything to score. A file found twice is listed once; a manifest's lines are kept as they are."""

    images: list[ImageFile] = field(default_factory=list)
    listed: list[ImageFile] = field(default_factory=list)
    tables: list[FileEntry] = field(default_factory=list)
    ignored: int = 0

    def tidy(self) -> Listing:
        """Image and Parquet files sorted and once each, so that the same files always make the same plan."""
        images = {image.entry.uri: image for image in self.images}
        tables = {entry.uri: entry for entry in self.tables}
        return Listing([images[uri] for uri in sorted(images)], self.listed, [tables[u] for u in sorted(tables)], self.ignored)


def list_inputs(inputs: tuple[str, ...], truth_column: str) -> Listing:
    """List folders, globs, files and manifests. Raises DataError for one that is not there or holds nothing to score."""
    listing = Listing()
    for item in inputs:
        before = len(listing.images) + len(listing.listed) + len(listing.tables)
        _add(item, listing, truth_column)
        if before == len(listing.images) + len(listing.listed) + len(listing.tables):
            raise DataError(
                f"{item}: holds nothing to score: no {' '.join(IMAGE_SUFFIXES)} and no .parquet; "
                f"{listing.ignored} other files were passed over"
            )
    return listing.tidy()


def _add(item: str, listing: Listing, truth_column: str) -> None:
    if storage.is_folder(item):
        _add_folder(item, listing)
    elif storage.is_file(item):
        _add_file(item, listing, truth_column)
    elif any(mark in item for mark in _WILDCARDS):
        for found in _glob(item):
            _add(found, listing, truth_column)
    else:
        raise DataError(f"{item}: there is no such file or folder; expected a folder, a glob, a file or a manifest of paths")


def _glob(pattern: str) -> list[str]:
    if storage.is_local(pattern):
        return sorted(glob.glob(storage.absolute(pattern), recursive=True))
    fixed = pattern[: min(pattern.index(mark) for mark in _WILDCARDS if mark in pattern)].rpartition("/")[0]
    return sorted(entry.uri for entry in walk(fixed) if fnmatch(entry.uri, pattern))


def _add_folder(folder: str, listing: Listing) -> None:
    for entry in walk(folder):
        name = entry.uri.lower()
        if name.endswith(IMAGE_SUFFIXES):
            listing.images.append(ImageFile(entry, digit_of(entry.uri)))
        elif name.endswith(".parquet"):
            listing.tables.append(entry)
        else:
            listing.ignored += 1


def _add_file(item: str, listing: Listing, truth_column: str) -> None:
    name = item.lower()
    if name.endswith((".txt", ".lst")):
        lines = storage.read(item).decode("utf-8", "surrogateescape").splitlines()
        _add_manifest(item, [line for line in lines if line.strip()], None, listing)
    elif name.endswith((".csv", ".tsv")):
        _add_manifest_table(item, _read_csv(item), listing, truth_column)
    elif name.endswith(".parquet") and _is_manifest(item):
        with storage.open_file(item) as stream:
            _add_manifest_table(item, pq.read_table(stream), listing, truth_column)
    elif name.endswith(".parquet"):
        listing.tables += stat_files([item])
    else:
        listing.images += [ImageFile(entry, digit_of(entry.uri)) for entry in stat_files([item])]


def _read_csv(item: str) -> pa.Table:
    delimiter = "\t" if item.lower().endswith(".tsv") else ","
    try:
        return pa_csv.read_csv(io.BytesIO(storage.read(item)), parse_options=pa_csv.ParseOptions(delimiter=delimiter))
    except pa.ArrowException as error:
        raise DataError(f"{item}: cannot be read as a manifest: {error}") from None


def _is_manifest(item: str) -> bool:
    """Whether a Parquet file lists paths rather than holding images; one that cannot be read does not."""
    try:
        with storage.open_file(item) as stream:
            schema = pq.read_schema(stream)
    except (OSError, pa.ArrowException):
        return False
    try:
        columns.image_column(schema, "", item)
    except DataError:
        return columns.path_column(schema) is not None
    return False


def _add_manifest_table(item: str, table: pa.Table, listing: Listing, truth_column: str) -> None:
    name = columns.path_column(table.schema)
    if name is None:
        raise DataError(
            f"{item}: a manifest needs a text column named {', '.join(columns.PATH_NAMES)}; "
            f"its columns: {columns.describe(table.schema)}"
        )
    truth = columns.truth_column(table.schema, truth_column, item)
    truths = columns.truths(table.column(truth)).to_pylist() if truth else None
    paths = table.column(name).to_pylist()
    if None in paths:
        raise DataError(f"{item}: row {paths.index(None)} of column {name!r} is null; expected a path in every row")
    _add_manifest(item, paths, truths, listing)


def _add_manifest(item: str, paths: list[str], truths: list[int | None] | None, listing: Listing) -> None:
    """Relative paths are relative to the manifest's folder; a path that is not there is an input, too: it is quarantined."""
    folder = item.rpartition("/")[0]
    uris = [path if "://" in path or path.startswith("/") else storage.join(folder, path) for path in paths]
    entries = stat_files(uris)
    known = truths or [digit_of(uri) for uri in uris]
    listing.listed += [ImageFile(entry, truth) for entry, truth in zip(entries, known, strict=True)]
