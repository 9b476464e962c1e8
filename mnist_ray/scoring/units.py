"""The inputs, cut into units of work while they are listed."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.data.columns import plain_type
from mnist_ray.data.listing import FileEntry, ImageFile, batches
from mnist_ray.errors import DataError, UsageError, first_line
from mnist_ray.flags import shard, shard_folder
from mnist_ray.scoring import schema
from mnist_ray.scoring.inputs import Listing
from mnist_ray.scoring.known import Known
from mnist_ray.scoring.plan import WorkUnit
from mnist_ray.scoring.sample import draw
from mnist_ray.scoring.tables import Kept, TableRange, table_ranges

MIN_BYTES, MAX_BYTES = 2 << 20, 32 << 20
"""Smallest and largest size at which a unit of image files ends. The largest takes a core about a second."""
SHARE = 16
"""Between these sizes, a unit is a 16th of the bytes before it. Small jobs get even units, large jobs few parts."""
FILE_BYTES = 4 << 10
"""Fixed cost of a file, in equivalent bytes: opening it and predicting its digit take as long as decoding so many bytes."""


class Units:
    """The units of a job, listed as they are iterated over. Inputs that are in `known` are left out.

    With `--shard I/N`, these are every N-th unit of all, so N jobs agree on their parts without talking to each other.

    Raises DataError or UsageError for inputs that cannot be scored.
    """

    def __init__(self, config: ScoreConfig, known: Known, job_id: str, number: int = 0) -> None:
        """`job_id` is that of the plan: a unit of another model or with other options must have another id.

        `number` distinguishes an extension of a plan from the plan before: equal units of both must have different ids.
        """
        self._kept = Kept(config.kept_columns())
        out = config.out.removesuffix(shard_folder(config.shard))
        self.listing = Listing(config.inputs, config.truth, out, self._kept, config.image_column)
        self.kept = schema.NOTHING
        """The columns of tables and manifests that are passed through."""
        self._stated = False
        """Whether a manifest has such columns. Only then does the plan hold their values."""
        self.ids = hashlib.sha256()
        """Hash of the ids of the units of all shards, as in the fingerprint of a plan."""
        self._config = config
        self._job = f"{job_id}\nextension {number}" if number else job_id
        self._copies: Counter[str] = Counter()
        self._known = known
        self._images: Iterable[ImageFile] = self.listing.images()
        if config.keep:  # every row of the table has the kept columns, so all tables must be found first
            self._images = list(self._images)
            table_ranges(self.listing.tables, config, self.listing.truths, self._kept)
            if self._kept.schema is None and not self.listing.tables:
                raise UsageError(f"--keep {config.keep}: copies columns of tables and manifests, and no input has columns")
            self.kept = self._kept.schema or schema.NOTHING
            self._stated = any(image.kept for image in self._images)
            _require_copyable(self.kept, self._stated)

    def __iter__(self) -> Iterator[WorkUnit]:
        """The units of this shard. Raises DataError if nothing is listed and nothing is known."""
        number, count = shard(self._config.shard)
        for position, unit in enumerate(self._of_all_shards(), 1):
            self.ids.update(f"{unit.id}\n".encode())
            if (position - number) % count == 0:
                yield unit

    def _of_all_shards(self) -> Iterator[WorkUnit]:
        """The units of image files, then those of tables. Raises DataError if nothing is listed and nothing is known."""
        new = self._images
        if self._known:
            new = self._known.new(self._images)
        ranges: Iterable[TableRange] = self._ranges()
        if self._config.sample:
            new, ranges = draw(self._config.sample, new, ranges)
        for files in _cut(new, self._config.unit_rows):
            entries, truths, kept = zip(*files, strict=True)
            yield self._unit(entries, truths, kept)
        for part in ranges:
            yield self._unit((part.entry,), (None,), ((),), part.first_row, part.num_rows, part.first_byte)
        if not self._copies and not self._known:
            raise DataError(f"{', '.join(self._config.inputs)}: the tables have no rows; there is nothing to score")

    def _ranges(self) -> Iterator[TableRange]:
        new = self._known.new(ImageFile(entry, None) for entry in self.listing.tables)
        yield from table_ranges([table.entry for table in new], self._config, self.listing.truths, self._kept)

    def _unit(
        self,
        entries: Sequence[FileEntry],
        truths: Sequence[int | None],
        kept: Sequence[tuple[Any, ...]],
        first_row: int | None = None,
        num_rows: int = 1,
        first_byte: int | None = None,
    ) -> WorkUnit:
        """A unit. Its id is a hash of its inputs, in order, and of the job. Equal units (repeated lines) are numbered."""
        uris, sizes, versions = zip(*entries, strict=True)
        number = len(entries)
        if not "".join(uris).isascii():
            uris = tuple(map(storage.to_text, uris))
        digest = hashlib.sha256(self._job.encode())
        for column in (uris, sizes, versions, truths, (first_row,) * number, (num_rows,) * number):
            digest.update("\0".join(map(str, column)).encode())
        if self.kept.names:
            digest.update("\0".join(map(str, kept)).encode("utf-8", "surrogateescape"))
        unit_id = digest.hexdigest()[:20]
        self._copies[unit_id] += 1
        if (copies := self._copies[unit_id]) > 1:
            digest.update(f"\ncopy {copies}".encode())
            unit_id = digest.hexdigest()[:20]
        same = (pa.repeat(pa.scalar(value, pa.int64()), number) for value in (first_row, num_rows, first_byte))
        columns = (pa.repeat(pa.scalar(unit_id), number), uris, sizes, versions, truths, *same)
        rows = pa.table(list(columns), schema=schema.PLAN)
        return WorkUnit(unit_id, rows.append_column(schema.KEPT, _structs(kept, self.kept)) if self._stated else rows)


def _structs(kept: Sequence[tuple[Any, ...]], columns: pa.Schema) -> pa.Array:
    """The values that manifests state in the kept columns, as a column of the plan. Null for files that no manifest lists."""
    values = [dict(zip(columns.names, row, strict=True)) if row else None for row in kept]
    return pa.array(values, pa.struct([(field.name, plain_type(field.type)) for field in columns]))


def _require_copyable(columns: pa.Schema, stated: bool) -> None:
    """Raise DataError for a column of a type that Arrow cannot copy, such as a list of string views.

    `stated` says whether its values are also copied into the plan.
    """
    for field in columns:
        try:
            pa.nulls(0, field.type).take(pa.array([], pa.int64()))
            _structs((), pa.schema([field] if stated else []))
        except pa.ArrowNotImplementedError as error:
            raise DataError(
                f"--keep {field.name}: values of the type {field.type} cannot be copied ({first_line(error)}); "
                "write this column with plain types, or choose another one"
            ) from None


def _cut(images: Iterable[ImageFile], unit_rows: int) -> Iterator[list[ImageFile]]:
    """Image files in groups of `unit_rows`, or if that is 0, in groups whose size follows from their bytes."""
    if unit_rows:
        yield from batches(images, unit_rows)
        return
    unit: list[ImageFile] = []
    before = size = 0
    for image in images:
        unit.append(image)
        size += image.entry.size + FILE_BYTES
        if size >= min(max(MIN_BYTES, before // SHARE), MAX_BYTES):
            yield unit
            unit, before, size = [], before + size, 0
    if unit:
        yield unit
