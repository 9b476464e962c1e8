"""A part: the rows of one unit, as one file of the prediction table and, if inputs were rejected, one of the quarantine table.

The quarantine file is written first. The prediction file is written last, even without rows: it marks the unit as finished.
Both carry the id of the job, the digest of the model and the counts of the unit in their Parquet metadata.
"""

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import mnist_ray
from mnist_ray.data import storage
from mnist_ray.data.listing import batches
from mnist_ray.scoring import schema
from mnist_ray.scoring.job import Job, UnitResult

PREDICTIONS, QUARANTINE = "predictions", "quarantine"
ROW_GROUP = 1024
"""Rows of a row group. Rows are sorted by confidence, so a query for low confidence reads the first row groups only."""
DAMAGE = (OSError, pa.ArrowException, KeyError, TypeError, ValueError)
"""What reading a file raises that is damaged or is not a part."""
_METADATA = b"mnist_ray"
_READERS = 16


def part_name(unit_id: str) -> str:
    """The file name of a unit's part. It is the same in both tables."""
    return f"part-{unit_id}.parquet"


def write_part(job: Job, result: UnitResult, predicted: pa.Table, quarantined: pa.Table) -> None:
    """Write the rows of a unit, the least confident first. Writing it again replaces it. Raises StorageError."""
    about = {"job": job.id, "model": job.model, "version": mnist_ray.__version__, "result": {**vars(result), "seconds": {}}}
    metadata = {_METADATA: json.dumps(about, sort_keys=True)}
    quarantine = storage.join(job.out, QUARANTINE, part_name(result.unit))
    if quarantined.num_rows:
        _write(quarantine, quarantined, metadata)
    else:  # an earlier attempt may have rejected what this one could read
        storage.delete(quarantine)
    predicted = predicted.take(pc.sort_indices(predicted, sort_keys=[("confidence", "ascending")]))
    _write(storage.join(job.out, PREDICTIONS, part_name(result.unit)), predicted, metadata)


def _write(uri: str, table: pa.Table, metadata: dict[bytes, str]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", row_group_size=ROW_GROUP)
    storage.write(uri, sink.getvalue().to_pybytes())


def _read_metadata(found: pa.Schema) -> tuple[str, str, UnitResult]:
    """Job id, model digest and counts of a part. Raises KeyError, TypeError or ValueError if the file is not a part."""
    about = json.loads(found.metadata[_METADATA])
    return about["job"], about["model"], UnitResult.from_json(json.dumps(about["result"]))


def read_part(job: Job, unit_id: str, table: str) -> tuple[pa.Table, UnitResult]:
    """All rows and the counts of a unit's part in one of the two tables.

    Raises FileNotFoundError if it is missing, and one of `DAMAGE` if it is damaged, or is the part of another job or unit.
    """
    with storage.open_file(storage.join(job.out, table, part_name(unit_id))) as stream:
        found = pq.ParquetFile(stream).read()  # every column, so that a damaged page anywhere shows
    job_id, model, result = _read_metadata(found.schema)
    if (job_id, model, result.unit) != (job.id, job.model, unit_id):
        raise ValueError("it comes from another job, model or unit")
    expected = schema.predictions(job.kept, job.probabilities) if table == PREDICTIONS else schema.QUARANTINE
    if not found.schema.equals(expected):
        raise ValueError(f"its columns are {found.schema.names}, expected {expected.names} with their types")
    return found, result


def finished_units(out: str, job_id: str) -> dict[str, UnitResult]:
    """The units of a job whose parts are complete, by id. Reads only the footers of the parts."""
    found: dict[str, UnitResult] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for names in batches(storage.names(storage.join(out, PREDICTIONS)), 1024):  # a pool holds all that it has been given
            results = pool.map(lambda name: _finished(out, job_id, name), names)
            found.update((result.unit, result) for result in results if result)
    return found


def _finished(out: str, job_id: str, name: str) -> UnitResult | None:
    """The counts of a part if both of its files hold as many rows as it counts, else None: its unit is scored again."""
    try:
        footer = _footer(storage.join(out, PREDICTIONS, name))
        found_id, _, result = _read_metadata(footer.schema.to_arrow_schema())
        quarantined = _footer(storage.join(out, QUARANTINE, name)).num_rows if result.quarantined else 0
    except DAMAGE:
        return None
    complete = (footer.num_rows, quarantined) == (result.predicted, result.quarantined)
    return result if complete and (found_id, part_name(result.unit)) == (job_id, name) else None


def _footer(uri: str) -> pq.FileMetaData:
    with storage.open_file(uri) as stream:
        return pq.read_metadata(stream)


def unit_of(name: str) -> str:
    """The unit of a part with this file name; empty if it is no part's name."""
    unit = name.removeprefix("part-").removesuffix(".parquet")
    return unit if part_name(unit) == name else ""


def strays(out: str, planned: Collection[str]) -> list[str]:
    """The files in the folders of the tables that are the part of no planned unit. Hidden files are not counted."""
    return [
        storage.join(out, table, name)
        for table in (PREDICTIONS, QUARANTINE)
        for name in storage.names(storage.join(out, table))
        if unit_of(name) not in planned and not name.startswith(".")
    ]


def sweep(out: str, planned: Collection[str]) -> None:
    """Delete the parts of units that the plan does not hold, such as those of a plan that was interrupted or changed."""
    for uri in strays(out, planned):
        if unit_of(uri.rpartition("/")[2]):
            storage.delete(uri)
