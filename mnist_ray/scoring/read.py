"""The inputs of one unit, read and decoded in chunks."""

import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data import columns, csv_table, storage
from mnist_ray.data.bulk import read_many
from mnist_ray.data.cells import decode_rows
from mnist_ray.data.containers import MAX_BYTES, Reason, Rejection
from mnist_ray.data.csv_table import Refused
from mnist_ray.data.images import SIDE, Digits, Grey, decode, normalise
from mnist_ray.data.listing import stat_file
from mnist_ray.data.patience import ANSWERS
from mnist_ray.errors import StorageError, first_line
from mnist_ray.scoring import schema
from mnist_ray.scoring.job import Job
from mnist_ray.scoring.plan import WorkUnit
from mnist_ray.scoring.refused import REFUSED, ask_again, rejection_of
from mnist_ray.scoring.tables import DAMAGE, read_header

CHUNK_ROWS = 1024
"""Images that are decoded and predicted together: enough to keep the predictor busy, few enough to need little memory."""

MAX_PAGE_BYTES = 1 << 31
"""Largest page of a Parquet file, whose header states its size as a 32-bit integer."""

_CRASHED = Rejection(Reason.CRASHED_READER, "ends the process that reads it; report it to the authors of mnist_ray")

_OPTIONAL_KEYS = [schema.PLAN.field("size_bytes"), schema.PLAN.field("truth")]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive inputs. Row i of `keys` (source, row, size_bytes, truth, kept columns) belongs to `digits[i]`."""

    digits: Digits
    """uint8[N, 28, 28]; blank for a rejected input."""
    rejected: dict[int, Rejection]
    """Rejected inputs by position."""
    keys: pa.Table
    num_bytes: int
    read_s: float
    decode_s: float


def read_unit(unit: WorkUnit, job: Job, crashed: Collection[int] = ()) -> Iterator[Chunk]:
    """All inputs of a unit, in order. An input that cannot be read is in its chunk as a Rejection. Raises StorageError.

    The inputs at the positions `crashed` are not decoded: they are rejected because they end the process.
    """
    if unit.rows["first_row"].null_count:
        for start in range(0, unit.rows.num_rows, CHUNK_ROWS):
            yield _read_files(unit.rows.slice(start, CHUNK_ROWS), job, {position - start for position in crashed})
    else:
        yield from _read_rows(unit.rows.to_pylist()[0], job, crashed)


def _read_files(rows: pa.Table, job: Job, crashed: Collection[int]) -> Chunk:
    sources, sizes, versions = (rows[name].to_pylist() for name in ("source", "size_bytes", "version"))
    uris = [storage.from_text(source) for source in sources]
    contents = read_many(uris, MAX_BYTES, sizes)
    read_s, num_bytes = 0.0, 0

    def decoded(position: int, data: bytes | OSError) -> Grey | Rejection:
        size, version = sizes[position], versions[position]
        if position in crashed:
            return _CRASHED
        if isinstance(data, FileNotFoundError) and size < 0 and version:
            return Rejection(Reason.MISSING, f"there is no such file, and no {version}")
        if changed := _changed(data, size):
            return changed
        if isinstance(data, bytes) and uris[position].lower().endswith(".parquet"):
            _require_damaged(uris[position])
        return to_grey(sources[position], data)

    only_images = not crashed and ".parquet" not in "\n".join(uris).lower()

    def images() -> Iterator[Grey | Rejection]:
        nonlocal read_s, num_bytes
        for position, size in enumerate(sizes):
            started = time.perf_counter()
            data = next(contents)
            read_s += time.perf_counter() - started
            num_bytes += len(data) if isinstance(data, bytes) else 0
            if only_images and isinstance(data, bytes) and len(data) == size:
                yield decode(data)  # as `decoded` does, in less time
            else:
                yield decoded(position, data)

    started = time.perf_counter()
    digits, rejected = normalise(images())
    decode_s = time.perf_counter() - started - read_s
    if refused := {position: rejection for position, rejection in rejected.items() if rejection.reason in REFUSED}:
        answers = ask_again(uris, refused, [position for position, size in enumerate(sizes) if size >= 0])
        digits[list(refused)], still = normalise(map(decoded, refused, answers))
        others = {position: rejection for position, rejection in rejected.items() if position not in refused}
        again = {position: still[place] for place, position in enumerate(refused) if place in still}
        rejected = dict(sorted({**others, **again}.items()))
    keys = {"source": rows["source"], "row": rows["first_row"], "size_bytes": rows["size_bytes"], "truth": rows["truth"]}
    if schema.KEPT in rows.column_names:
        kept = rows[schema.KEPT].combine_chunks()
        keys |= {field.name: pc.struct_field(kept, field.name).cast(field.type) for field in job.kept}
    return Chunk(digits, rejected, _with_nulls(keys, job), num_bytes, read_s, decode_s)


def _changed(data: bytes | OSError, size: int) -> Rejection | None:
    """A Rejection if a file no longer has the size that was planned."""
    if isinstance(data, OSError) or size < 0 or len(data) == size or len(data) > MAX_BYTES:
        return None
    return Rejection(Reason.CHANGED, f"has {len(data)} bytes and had {size} when the plan was made")


def to_grey(source: str, data: bytes | OSError) -> Grey | Rejection:
    """Decode the bytes of an image file, or the error of reading it, to grey levels uint8[H, W] or a Rejection."""
    if isinstance(data, OSError):
        return rejection_of(data)
    if source.lower().endswith(".parquet"):
        return Rejection(Reason.CORRUPT, "cannot be opened as Parquet; its rows are not counted")
    return decode(data)


def _require_damaged(uri: str) -> None:
    """Raise StorageError if a table can be opened now, and could not when the plan was made."""
    if read_header(stat_file(uri)):
        raise StorageError(
            f"{uri}: can be opened now, and could not when the plan was made; --resume keeps this plan, so give --overwrite"
        )


def _read_rows(row: dict[str, Any], job: Job, crashed: Collection[int]) -> Iterator[Chunk]:
    """A range of rows of one table. If a page of a Parquet file is damaged, the rows from there on are all rejected."""
    source, first, num_rows = row["source"], row["first_row"], row["num_rows"]
    done = 0
    batches = _batches(row, job)
    while done < num_rows:
        if crashed and len(crashed) == num_rows:  # not even one row can be read
            yield _rejected(_CRASHED, source, first, num_rows, job)
            return
        started = time.perf_counter()
        batch = next(batches)
        read_s = time.perf_counter() - started
        if isinstance(batch, Refused):
            refused = min(batch.num_rows, num_rows - done)
            yield _rejected(batch.rejection, source, first + done, refused, job)
            done += refused
            continue
        for piece in _pieces(batch, {position - done for position in crashed}):
            if isinstance(piece, int):
                yield _rejected(_CRASHED, source, first + done, piece, job)
                done += piece
            else:
                yield _chunk_of(piece, source, first + done, job, read_s)
                done += piece.num_rows
    next(batches, None)  # sees whether the file has changed meanwhile


def _pieces(batch: pa.RecordBatch, crashed: Collection[int]) -> Iterator[pa.RecordBatch | int]:
    """The batch without the rows at the positions `crashed`. In place of these, in order, how many there are."""
    for is_crashed, group in groupby(range(batch.num_rows), lambda position: position in crashed):
        positions = list(group)
        yield len(positions) if is_crashed else batch.slice(positions[0], len(positions))


def _batches(row: dict[str, Any], job: Job) -> Iterator[pa.RecordBatch | Refused]:
    """The record batches of a row range, and rows that the file does not give.

    Raises StorageError if the storage fails: the rows are not rejected then.
    """
    uri = storage.from_text(row["source"])
    entry = stat_file(uri)
    if _differ(entry.size, row["size_bytes"], unknown=-1) or _differ(entry.version, row["version"], unknown=""):
        rejection = Rejection(Reason.CHANGED, "the file is not the one that was there when the plan was made")
        yield Refused(rejection, row["num_rows"])
        return
    try:
        yield from _lines(uri, row, job) if csv_table.is_csv(uri) else _range(uri, row, job)
        damage = ""
    except ANSWERS as error:
        rejection = rejection_of(error)
        (answer,) = ask_again([uri], {0: rejection}, [0])
        if isinstance(answer, bytes):
            raise StorageError(f"{uri}: cannot be read: {rejection.detail}, but only for a moment; run with --resume") from None
        yield Refused(rejection, row["num_rows"])
        return
    except DAMAGE as error:
        if isinstance(error, MemoryError) and _bytes_asked_for(error) <= MAX_PAGE_BYTES:
            raise
        damage = first_line(error)
    now = stat_file(uri)
    if _differ(now.size, entry.size, unknown=-1) or _differ(now.version, entry.version, unknown=""):
        raise StorageError(f"{uri}: has changed while it was read; run again with --resume")
    if damage:
        yield Refused(Rejection(Reason.CORRUPT, damage), row["num_rows"])


def _bytes_asked_for(error: MemoryError) -> int:
    """The size that pyarrow could not allocate. A damaged page may ask for more than a page can hold."""
    return max(map(int, re.findall(r"\d+", str(error))), default=0)


def _differ(found: object, planned: object, unknown: object) -> bool:
    return found != planned and unknown not in (found, planned)


def _lines(uri: str, row: dict[str, Any], job: Job) -> Iterator[pa.RecordBatch | Refused]:
    """The rows of a range of a CSV file."""
    header = csv_table.read_header(uri)
    with storage.open_lines(uri) as stream:
        names = _columns(header.schema, job, row["source"])
        yield from csv_table.read(stream, header, row["first_byte"], row["num_rows"], names)


def _range(uri: str, row: dict[str, Any], job: Job) -> Iterator[pa.RecordBatch]:
    """The record batches of a row range, from the row groups of a Parquet file that hold it."""
    with storage.open_input(uri) as stream:
        parquet = pq.ParquetFile(stream)
        first, left = row["first_row"], row["num_rows"]
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
        ends = list(accumulate(sizes))
        groups = [group for group, end in enumerate(ends) if end > first and end - sizes[group] < first + left]
        skip = first - sum(sizes[: min(groups, default=0)])
        names = _columns(parquet.schema_arrow, job, row["source"])
        for batch in columns.read_rows(stream, parquet.metadata, groups, names, CHUNK_ROWS):
            wanted = batch.slice(min(skip, batch.num_rows), left)
            skip = max(skip - batch.num_rows, 0)
            left -= wanted.num_rows
            if wanted.num_rows:
                yield wanted
            if not left:
                return
        raise OSError(f"has {left} rows less than its footer says")


def _columns(found: pa.Schema, job: Job, source: str) -> list[str]:
    truth = columns.truth_column(found, job.truth, source)
    names = [*columns.image_columns(found, job.image_column, source), *([truth] if truth else []), *job.kept.names]
    return list(dict.fromkeys(names))


def _chunk_of(batch: pa.RecordBatch, source: str, first: int, job: Job, read_s: float) -> Chunk:
    started = time.perf_counter()
    digits, rejected = normalise(decode_rows(batch, columns.image_columns(batch.schema, job.image_column, source)))
    truth = columns.truth_column(batch.schema, job.truth, source)
    keys = _row_keys(source, first, batch.num_rows) | {
        kept.name: columns.valid_text(batch.column(kept.name)).cast(kept.type) for kept in job.kept
    }
    if truth:
        keys["truth"] = columns.truths(batch.column(truth))
    return Chunk(digits, rejected, _with_nulls(keys, job), batch.nbytes, read_s, time.perf_counter() - started)


def _rejected(rejection: Rejection, source: str, first: int, num_rows: int, job: Job) -> Chunk:
    keys = _with_nulls(_row_keys(source, first, num_rows), job)
    blank = np.zeros((num_rows, SIDE, SIDE), np.uint8)
    return Chunk(blank, dict.fromkeys(range(num_rows), rejection), keys, 0, 0.0, 0.0)


def _row_keys(source: str, first: int, num_rows: int) -> dict[str, pa.Array]:
    rows = pa.array(range(first, first + num_rows), pa.int64())
    return {"source": pa.repeat(pa.scalar(source), num_rows), "row": rows}


def _with_nulls(keys: dict[str, pa.Array], job: Job) -> pa.Table:
    """The keys of a chunk: the known columns, and nulls for the others."""
    missing = [field for field in (*_OPTIONAL_KEYS, *job.kept) if field.name not in keys]
    return pa.table(keys | {field.name: pa.nulls(len(keys["source"]), field.type) for field in missing})
