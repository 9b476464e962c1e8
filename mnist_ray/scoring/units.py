"""A listing cut into units of work, as it runs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa

from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.data.listing import ImageFile, batches
from mnist_ray.errors import DataError
from mnist_ray.scoring import schema
from mnist_ray.scoring.inputs import Listing
from mnist_ray.scoring.known import Known
from mnist_ray.scoring.plan import WorkUnit
from mnist_ray.scoring.sample import Sample
from mnist_ray.scoring.tables import TableRange, table_ranges

FIRST_UNIT, LAST_UNIT, SHARE = 2 << 20, 32 << 20, 16
"""Bytes at which a unit ends: a 16th of what came before it, so that a small job is shared out evenly and a large one has
few parts; at most a second of work for a core."""
FILE_BYTES = 4 << 10
"""What a file counts beside its bytes: opening it and predicting its digit take as long as decoding so many."""

_INPUT = schema.PLAN.remove(0)


class Units:
    """The units of a job. Raises DataError, or UsageError, for inputs that cannot be used."""

    def __init__(self, config: ScoreConfig, known: Known, number: int = 0) -> None:
        """`number` tells an extension of a plan from the one before: equal units of both must have different ids."""
        self.listing = Listing(config.inputs, config.truth_column, config.out)
        self.kept = pa.schema([])
        """The types of the passed-through columns."""
        self._config = config
        self._options = _options(config) + (f"\nextension {number}" if number else "")
        self._copies: Counter[str] = Counter()
        self._known = known
        self._images: Iterable[ImageFile] = self.listing.images()
        if config.keep:  # every row of the table has these columns, so the tables are looked at first
            self._images = list(self._images)
            self.kept, _ = table_ranges(self.listing.tables, config)

    def __iter__(self) -> Iterator[WorkUnit]:
        """All units that are not known, the images first. Raises DataError if there is none, and none was known."""
        new = (image for image in self._images if self._known.is_new(image.entry)) if self._known else self._images
        if self._config.sample:
            sample = Sample(self._config.sample)
            images = sample.images(new)  # all is listed then, the tables too
            yield from self._units(*sample.part(images, list(self._ranges())))
        else:
            yield from self._units(new, self._ranges())
        if not self._copies and not self._known:
            raise DataError(f"{', '.join(self._config.inputs)}: the Parquet files hold no rows: there is nothing to score")

    def _ranges(self) -> Iterator[TableRange]:
        tables = {entry.uri for entry in self.listing.tables if self._known.is_new(entry)}
        _, ranges = table_ranges(self.listing.tables, self._config)
        yield from (part for part in ranges if part.entry.uri in tables)

    def _units(self, images: Iterable[ImageFile], ranges: Iterable[TableRange]) -> Iterator[WorkUnit]:
        for unit in _cut(images, self._config.unit_rows):
            yield self._unit(_file_rows(unit))
        for part in ranges:
            yield self._unit(_range_rows(part))

    def _unit(self, rows: pa.Table) -> WorkUnit:
        """Named by the hash of its ordered inputs and the options; equal units (repeated manifest lines) count up."""
        digest = hashlib.sha256(self._options.encode())
        for column in rows.itercolumns():
            digest.update("\0".join(map(str, column.to_pylist())).encode())
        self._copies[digest.hexdigest()] += 1
        if (copies := self._copies[digest.hexdigest()]) > 1:
            digest.update(f"\ncopy {copies}".encode())
        name = digest.hexdigest()[:20]
        return WorkUnit(name, rows.add_column(0, schema.PLAN.field("unit"), pa.repeat(pa.scalar(name), rows.num_rows)))


def _options(config: ScoreConfig) -> str:
    """The options that change a unit's rows, as text."""
    return json.dumps({k: v for k, v in config.identity().items() if k not in ("inputs", "unit_rows")}, sort_keys=True)


def _cut(images: Iterable[ImageFile], unit_rows: int) -> Iterator[list[ImageFile]]:
    if unit_rows:
        yield from batches(images, unit_rows)
        return
    unit: list[ImageFile] = []
    before = size = 0
    for image in images:
        unit.append(image)
        size += image.entry.size + FILE_BYTES
        if size >= min(max(FIRST_UNIT, before // SHARE), LAST_UNIT):
            yield unit
            unit, before, size = [], before + size, 0
    if unit:
        yield unit


def _file_rows(images: list[ImageFile]) -> pa.Table:
    uris, sizes, versions = zip(*(image.entry for image in images), strict=True)
    try:
        sources = pa.array(uris, pa.string())
    except UnicodeEncodeError:
        sources = pa.array(map(storage.to_text, uris), pa.string())
    truths = [image.truth for image in images]
    ones = pa.repeat(pa.scalar(1, pa.int64()), len(images))
    return pa.table([sources, sizes, versions, truths, pa.nulls(len(images), pa.int64()), ones], schema=_INPUT)


def _range_rows(part: TableRange) -> pa.Table:
    entry = part.entry
    values = [storage.to_text(entry.uri), entry.size, entry.version, None, part.first_row, part.num_rows]
    return pa.table([[value] for value in values], schema=_INPUT)
