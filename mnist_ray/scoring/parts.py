"""A part: one unit's file in the prediction table and its file in the quarantine table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.plan import WorkUnit

_META = b"mnist_ray"
_READERS = 16
ROW_GROUP = 1024
"""Rows with statistics of their own. They are sorted by confidence, so those below a limit lie in the first few groups."""


def part_name(unit_id: str) -> str:
    """The file name of a unit's part, in both tables."""
    return f"part-{unit_id}.parquet"


def part_metadata(job: Job, result: UnitResult) -> dict[bytes, str]:
    """What a part says of itself: job and counts."""
    counts = json.loads(result.to_json())
    counts["seconds"] = {}
    return {_META: json.dumps({"job": job.id, "model": job.model, "version": job.version, "result": counts}, sort_keys=True)}


def read_metadata(schema: pa.Schema) -> tuple[str, str, UnitResult]:
    """Job, model digest and counts of a part. Raises KeyError, TypeError or ValueError for another file."""
    about = json.loads(schema.metadata[_META])
    return about["job"], about["model"], UnitResult.from_json(json.dumps(about["result"]))


def write_parts(unit: WorkUnit, job: Job, result: UnitResult, predicted: list[pa.Table], quarantined: list[pa.Table]) -> None:
    """The quarantine first: a unit is done once its part of the predictions is there, even one without rows."""
    metadata = part_metadata(job, result)
    place = storage.join(job.out, "quarantine", part_name(unit.id))
    if result.quarantined:
        _write_part(place, pa.concat_tables(quarantined), metadata)
    else:  # of an attempt that could not read what this one could
        storage.delete(place)
    table = pa.concat_tables(predicted)
    table = table.take(pc.sort_indices(table, sort_keys=[("confidence", "ascending")]))
    _write_part(storage.join(job.out, "predictions", part_name(unit.id)), table, metadata)


def _write_part(uri: str, table: pa.Table, metadata: dict[bytes, str]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", row_group_size=ROW_GROUP)
    storage.write(uri, sink.getvalue().to_pybytes())


def finished_units(job: Job) -> Iterator[UnitResult]:
    """The units whose parts are there and whole, read from the parts alone."""
    names = storage.names(storage.join(job.out, "predictions"))
    with ThreadPoolExecutor(_READERS) as pool:
        yield from filter(None, pool.map(lambda name: _finished(job, name), names))


def _finished(job: Job, name: str) -> UnitResult | None:
    try:
        footer = _footer(storage.join(job.out, "predictions", name))
        held, _, result = read_metadata(footer.schema.to_arrow_schema())
        spoiled = _footer(storage.join(job.out, "quarantine", name)).num_rows if result.quarantined else 0
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None  # not a part, or a damaged one: the unit is done again
    whole = (footer.num_rows, spoiled) == (result.predicted, result.quarantined)
    return result if whole and held == job.id and name == part_name(result.unit) else None


def _footer(uri: str) -> pq.FileMetaData:
    with storage.open_file(uri) as stream:
        return pq.read_metadata(stream)
