"""INPUT arguments to what there is to score: image files and Parquet files."""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from mnist_ray.data import columns, storage
from mnist_ray.data.datasets import IMAGE_SUFFIXES, digit_of
from mnist_ray.data.listing import FileEntry, stat_files, walk
from mnist_ray.errors import DataError, UsageError

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

    @property
    def count(self) -> int:
        """Files in the listing."""
        return len(self.images) + len(self.listed) + len(self.tables)

    def tidy(self) -> Listing:
        """Image and Parquet files sorted and once each, so that the same files always make the same plan."""
        images = {image.entry.uri: image for image in self.images}
        tables = {entry.uri: entry for entry in self.tables}
        return Listing([images[uri] for uri in sorted(images)], self.listed, [tables[u] for u in sorted(tables)], self.ignored)


def list_inputs(inputs: tuple[str, ...], truth_column: str, out: str) -> Listing:
    """List folders, globs, files and manifests, but for what lies in the output folder. Raises DataError or UsageError."""
    listing = Listing()
    for item in inputs:
        if f"{item}/".startswith(f"{out}/"):
            raise UsageError(f"{item}: lies in the output folder {out}; give another --out")
        before = listing.count
        _add(item, listing, truth_column, f"{out}/")
        if before == listing.count:
            raise DataError(
                f"{item}: holds nothing to score: no {' '.join(IMAGE_SUFFIXES)} and no .parquet; "
                f"{listing.ignored} other files were passed over"
            )
    return listing.tidy()


def _add(item: str, listing: Listing, truth_column: str, out: str) -> None:
    if storage.is_folder(item):
        _add_entries(walk(item), listing, out)
    elif storage.is_file(item):
        _add_file(item, listing, truth_column)
    elif any(mark in item for mark in _WILDCARDS):
        _add_entries(_glob(item), listing, out)
    else:
        raise DataError(f"{item}: there is no such file or folder; expected a folder, a glob, a file or a manifest of paths")


def _glob(pattern: str) -> Iterator[FileEntry]:
    if storage.is_local(pattern):
        for found in glob.glob(storage.absolute(pattern), recursive=True):
            yield from walk(found) if storage.is_folder(found) else stat_files([found])
        return
    fixed = pattern[: min(pattern.index(mark) for mark in _WILDCARDS if mark in pattern)].rpartition("/")[0]
    matches = re.compile(glob_translate(pattern)).match
    yield from (entry for entry in walk(fixed) if matches(entry.uri))


def _add_entries(entries: Iterable[FileEntry], listing: Listing, out: str) -> None:
    """What folders and globs hold: the suffix decides what a file is."""
    for entry in entries:
        name = entry.uri.lower()
        if entry.uri.startswith(out):
            continue
        if name.endswith(IMAGE_SUFFIXES):
            listing.images.append(ImageFile(entry, digit_of(entry.uri)))
        elif name.endswith(".parquet"):
            listing.tables.append(entry)
        else:
            listing.ignored += 1


def _add_file(item: str, listing: Listing, truth_column: str) -> None:
    name = item.lower()
    if name.endswith((".txt", ".lst")):
        lines = storage.read(item).decode("utf-8-sig", "surrogateescape").split("\n")
        _add_manifest(item, [line.removesuffix("\r") for line in lines if line.strip()], None, listing)
    elif name.endswith((".csv", ".tsv")):
        _add_manifest_table(item, _read_csv(item), listing, truth_column)
    elif name.endswith(".parquet") and _is_manifest(item):
        _add_manifest_table(item, _read_parquet(item), listing, truth_column)
    elif name.endswith(".parquet"):
        listing.tables += stat_files([item])
    else:
        listing.images += [ImageFile(entry, digit_of(entry.uri)) for entry in stat_files([item])]


def _read_parquet(item: str) -> pa.Table:
    try:
        with storage.open_file(item) as stream:
            return pq.read_table(stream)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{item}: cannot be read as a manifest: {error}") from None


def _read_csv(item: str) -> pa.Table:
    delimiter = "\t" if item.lower().endswith(".tsv") else ","
    try:
        return pa_csv.read_csv(
            io.BytesIO(storage.read(item)),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(columns.PATH_NAMES, pa.string())),
        )
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
    columns.require_unique(table.schema, item)
    name = columns.path_column(table.schema)
    if name is None:
        raise DataError(
            f"{item}: a manifest needs a text column named {', '.join(columns.PATH_NAMES)}; "
            f"its columns: {columns.describe(table.schema)}"
        )
    truth = columns.truth_column(table.schema, truth_column, item)
    truths = columns.truths(table.column(truth)).to_pylist() if truth else None
    paths = table.column(name).cast(pa.string()).to_pylist()
    if None in paths:
        raise DataError(f"{item}: row {paths.index(None)} of column {name!r} is null; expected a path in every row")
    _add_manifest(item, paths, truths, listing)


def _add_manifest(item: str, paths: list[str], truths: list[int | None] | None, listing: Listing) -> None:
    """Relative paths are relative to the manifest's folder; a path that is not there is an input, too: it is quarantined."""
    for path in paths:
        if "\0" in path or path.lower().endswith(".parquet"):
            raise DataError(f"{item}: lists {path[:60]!r}; expected the path of an image file (in UTF-8) on every line")
    folder = item.rpartition("/")[0]
    uris = [path if "://" in path or path.startswith("/") else storage.join(folder, path) for path in paths]
    entries = stat_files(uris)
    known = truths or [digit_of(uri) for uri in uris]
    listing.listed += [ImageFile(entry, truth) for entry, truth in zip(entries, known, strict=True)]
