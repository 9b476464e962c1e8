"""The inputs of one unit, read and decoded a chunk at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.data import columns, storage
from mnist_ray.data.bulk import read_many
from mnist_ray.data.containers import MAX_BYTES, Reason, Rejection
from mnist_ray.data.images import Grey, decode
from mnist_ray.scoring.job import Job
from mnist_ray.scoring.plan import WorkUnit

CHUNK_ROWS = 1024
"""Images decoded and predicted together: enough for the predictor, small in memory."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive inputs. `images[i]` belongs to row i of `keys`: source, row, size_bytes, truth and the kept columns."""

    images: Sequence[Grey | Rejection]
    keys: pa.Table
    num_bytes: int
    read_s: float
    decode_s: float


def read_unit(unit: WorkUnit, job: Job) -> Iterator[Chunk]:
    """Every input of a unit, in order. What cannot be read is in its chunk as a Rejection."""
    if unit.rows["first_row"].null_count:
        for start in range(0, unit.rows.num_rows, CHUNK_ROWS):
            yield _read_files(unit.rows.slice(start, CHUNK_ROWS), job)
    else:
        yield from _read_rows(unit.rows.to_pylist()[0], job)


def _read_files(rows: pa.Table, job: Job) -> Chunk:
    started = time.perf_counter()
    sources = rows["source"].to_pylist()
    contents = list(read_many([storage.from_text(source) for source in sources], MAX_BYTES))
    decoding = time.perf_counter()
    images = [to_grey(source, data) for source, data in zip(sources, contents, strict=True)]
    keys = pa.table(
        {"source": rows["source"], "row": rows["first_row"], "size_bytes": rows["size_bytes"], "truth": rows["truth"]}
    )
    for field in job.kept:
        keys = keys.append_column(field, pa.nulls(len(sources), field.type))
    num_bytes = sum(len(data) for data in contents if isinstance(data, bytes))
    return Chunk(images, keys, num_bytes, decoding - started, time.perf_counter() - decoding)


def to_grey(source: str, data: bytes | OSError) -> Grey | Rejection:
    """What was read of an image file, or why it was not, as grey levels uint8[H, W] or a Rejection."""
    if isinstance(data, FileNotFoundError):
        return Rejection(Reason.MISSING, "there is no such file")
    if isinstance(data, OSError):
        return Rejection(Reason.UNREADABLE, data.strerror or str(data))
    if source.lower().endswith(".parquet"):
        return Rejection(Reason.CORRUPT, "cannot be opened as Parquet; its rows are not counted")
    return decode(data)


def _read_rows(row: dict[str, object], job: Job) -> Iterator[Chunk]:
    """A range of rows of one Parquet file; the rows behind a damaged page are all rejected."""
    source, first, num_rows = str(row["source"]), int(str(row["first_row"])), int(str(row["num_rows"]))
    done = 0
    try:
        with storage.open_file(storage.from_text(source)) as stream:
            parquet = pq.ParquetFile(stream)
            for batch, read_s in _batches(parquet, first, num_rows, job, source):
                yield _chunk_of(batch, source, first + done, job, read_s)
                done += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        reason = Reason.MISSING if isinstance(error, FileNotFoundError) else Reason.CORRUPT
        rejection = Rejection(reason, "there is no such file" if reason == Reason.MISSING else _first_line(error))
        keys = _keys(source, first + done, num_rows - done)
        keys["truth"] = pa.nulls(num_rows - done, pa.uint8())
        keys.update({field.name: pa.nulls(num_rows - done, field.type) for field in job.kept})
        yield Chunk([rejection] * (num_rows - done), pa.table(keys), 0, 0.0, 0.0)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _batches(
    parquet: pq.ParquetFile, first: int, num_rows: int, job: Job, source: str
) -> Iterator[tuple[pa.RecordBatch, float]]:
    """The record batches of rows `first` up to `first + num_rows`, each with the seconds it took to read."""
    names = list(dict.fromkeys(_columns(parquet.schema_arrow, job, source)))
    groups: list[int] = []
    offset = skip = 0
    for group in range(parquet.metadata.num_row_groups):
        size = parquet.metadata.row_group(group).num_rows
        if offset < first + num_rows and offset + size > first:
            skip = skip if groups else first - offset
            groups.append(group)
        offset += size
    left, started = num_rows, time.perf_counter()
    for batch in parquet.iter_batches(CHUNK_ROWS, row_groups=groups, columns=names):
        wanted = batch.slice(min(skip, batch.num_rows), left)
        skip = max(skip - batch.num_rows, 0)
        left -= wanted.num_rows
        if wanted.num_rows:
            yield wanted, time.perf_counter() - started
            started = time.perf_counter()
        if not left:
            return
    raise OSError(f"has {left} rows less than when it was listed")


def _columns(found: pa.Schema, job: Job, source: str) -> list[str]:
    truth = columns.truth_column(found, job.truth_column, source)
    return [columns.image_column(found, job.image_column, source), *([truth] if truth else []), *job.kept.names]


def _keys(source: str, first: int, num_rows: int) -> dict[str, pa.Array]:
    return {
        "source": pa.repeat(pa.scalar(source), num_rows),
        "row": pa.array(range(first, first + num_rows), pa.int64()),
        "size_bytes": pa.nulls(num_rows, pa.int64()),
    }


def _chunk_of(batch: pa.RecordBatch, source: str, first: int, job: Job, read_s: float) -> Chunk:
    decoding = time.perf_counter()
    images = columns.decode_cells(batch.column(columns.image_column(batch.schema, job.image_column, source)))
    truth = columns.truth_column(batch.schema, job.truth_column, source)
    keys = _keys(source, first, batch.num_rows)
    keys["truth"] = columns.truths(batch.column(truth)) if truth else pa.nulls(batch.num_rows, pa.uint8())
    keys.update({name: batch.column(name) for name in job.kept.names})
    return Chunk(images, pa.table(keys), batch.nbytes, read_s, time.perf_counter() - decoding)
