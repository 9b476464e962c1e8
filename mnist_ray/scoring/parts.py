"""A part: the rows of one unit, as one file of the prediction table and, if inputs were rejected, one of the quarantine table.

The quarantine file is written first. The prediction file is written last, even without rows: it marks the unit as finished.
Both carry the id of the job, the digest of the model, the counts of the unit and a digest of their rows in their Parquet
metadata. The prediction file also carries the digest of the quarantine file.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import mnist_ray
from mnist_ray.data import storage
from mnist_ray.data.listing import batches
from mnist_ray.errors import AccountingError, first_line
from mnist_ray.scoring import schema
from mnist_ray.scoring.job import Job, UnitResult

if TYPE_CHECKING:
    import pyarrow.dataset as ds

PREDICTIONS, QUARANTINE = "predictions", "quarantine"
ROW_GROUP = 1024
"""Rows of a row group. Rows are sorted by confidence, so a query for low confidence reads the first row groups only."""
DAMAGE = (OSError, pa.ArrowException, KeyError, TypeError, ValueError)
"""What reading a file raises that is damaged or is not a part."""
_METADATA = b"mnist_ray"
_READERS = 16


class PartError(Exception):
    """A part is missing or damaged, or it is not the part of this job and unit. The message names the file."""


def part_name(unit_id: str) -> str:
    """The file name of a unit's part. It is the same in both tables."""
    return f"part-{unit_id}.parquet"


def write_part(job: Job, result: UnitResult, predicted: pa.Table, quarantined: pa.Table) -> None:
    """Write the rows of a unit, the least confident first, and note the digests of the files in `result`.

    Writing it again replaces it. Raises StorageError, and OutputError if the job does not own the folder any more.
    """
    counts = {name: value for name, value in vars(result).items() if name not in ("seconds", "digests")}
    about: dict[str, object] = {"job": job.id, "model": job.model, "version": mnist_ray.__version__, "result": counts}
    quarantine, digest = storage.join(job.out, QUARANTINE, part_name(result.unit)), ""
    if quarantined.num_rows:
        data = _encode(quarantined, about)
        digest = digest_of(data)
        storage.write(quarantine, data)
    else:  # an earlier attempt may have rejected what this one could read
        storage.delete(quarantine)
    predicted = predicted.take(pc.sort_indices(predicted, sort_keys=[("confidence", "ascending")]))
    data = _encode(predicted, {**about, "quarantine": digest})
    storage.write(storage.join(job.out, PREDICTIONS, part_name(result.unit)), data)
    result.digests = (digest_of(data), digest)


def digest_of(data: bytes | memoryview) -> str:
    """The first half of the SHA-256 of a file, as 32 hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()[:32]


def _encode(table: pa.Table, about: dict[str, object]) -> bytes:
    """A part as a Parquet file whose metadata also holds the digests of everything before its footer, and of itself."""
    sink = io.BytesIO()
    table = table.replace_schema_metadata(None)
    # Floats hardly repeat: their dictionaries would make a part a third larger.
    repeated = [
        field.name for field in table.schema if not (pa.types.is_floating(field.type) or pa.types.is_nested(field.type))
    ]
    with pq.ParquetWriter(sink, table.schema, compression="zstd", use_dictionary=repeated, write_page_checksum=True) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
        metadata = {**about, "rows": digest_of(sink.getvalue())}
        metadata["self"] = _digest_of_metadata(metadata)
        writer.add_key_value_metadata({_METADATA: json.dumps(metadata, sort_keys=True)})
    return sink.getvalue()


def _digest_of_metadata(about: dict[str, object]) -> str:
    return digest_of(json.dumps(about, sort_keys=True).encode())


def _decode(data: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of a part, and what its metadata says. Raises one of `DAMAGE` unless they are those that were written."""
    parquet = pq.ParquetFile(pa.BufferReader(data))
    about = json.loads(parquet.metadata.metadata[_METADATA])
    if about.pop("self", "") != _digest_of_metadata(about):
        raise ValueError("its counts are not those that were written")
    footer = int.from_bytes(data[-8:-4], "little") + 8
    if digest_of(memoryview(data)[:-footer]) != about["rows"]:
        raise ValueError("its rows are not those that were written")
    return parquet.read(), about


def open_part(stream: pa.NativeFile, unit_id: str, num_rows: int) -> "ds.ParquetFileFragment":
    """One file of a part, to read some of its columns and rows. Pages that are read are compared with their checksums.

    Raises one of `DAMAGE` if it is not of this unit, or has another number of rows.
    """
    import pyarrow.dataset as ds  # imports pandas

    checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    part = ds.ParquetFileFormat(default_fragment_scan_options=checked).make_fragment(stream)
    about = json.loads(part.metadata.metadata[_METADATA])
    if (about["result"]["unit"], part.metadata.num_rows) != (unit_id, num_rows):
        raise ValueError(f"it is of unit {about['result']['unit']} with {part.metadata.num_rows} rows; expected {num_rows}")
    return part


def read_part(job: Job, unit_id: str) -> tuple[pa.Table, pa.Table, UnitResult]:
    """All rows of a unit's part in the prediction table and in the quarantine table, and its counts.

    Raises PartError, or StorageError if the storage fails.
    """
    predicted, result, expected, digest = _read(job, unit_id, PREDICTIONS)
    quarantined, quarantine = schema.QUARANTINE.empty_table(), ""
    if result.quarantined:
        quarantined, _, _, quarantine = _read(job, unit_id, QUARANTINE)
    if quarantine != expected:
        raise PartError(f"{storage.join(job.out, QUARANTINE, part_name(unit_id))}: is not the file that its unit wrote last")
    result.digests = (digest, quarantine)
    return predicted, quarantined, result


def _read(job: Job, unit_id: str, table: str) -> tuple[pa.Table, UnitResult, str, str]:
    """One file of a part: its rows, its counts, the digest of the quarantine file that it names, and its own digest.

    Raises PartError.
    """
    uri = storage.join(job.out, table, part_name(unit_id))
    expected = job.columns if table == PREDICTIONS else schema.QUARANTINE
    try:
        data = storage.read(uri)
        rows, about = _decode(data)
        result = UnitResult.from_json(json.dumps(about["result"]))
        if (about["job"], about["model"], result.unit) != (job.id, job.model, unit_id):
            raise ValueError("it comes from another job, model or unit")
        if rows.num_rows != (result.predicted if table == PREDICTIONS else result.quarantined):
            raise ValueError(f"it has {rows.num_rows} rows and counts other ones")
        if not rows.schema.equals(expected):
            raise ValueError(f"its columns are {rows.schema.names}, expected {expected.names} with their types")
        return rows, result, about.get("quarantine", ""), digest_of(data)
    except FileNotFoundError:
        raise PartError(f"{uri}: is missing") from None
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except DAMAGE as error:
        raise PartError(f"{uri}: cannot be used: {first_line(error)}") from None


def copy_part(job: Job, unit_id: str, out: str) -> UnitResult:
    """Copy the files of a unit's part to another output folder, the prediction file last. Raises PartError and StorageError."""
    result = read_part(job, unit_id)[2]
    for table, digest in ((QUARANTINE, result.digests[1]), (PREDICTIONS, result.digests[0])):
        if digest:
            data = storage.read(storage.join(job.out, table, part_name(unit_id)))
            storage.write(storage.join(out, table, part_name(unit_id)), data)
    return result


def finished_units(job: Job) -> Iterator[UnitResult]:
    """The counts of the units whose parts are whole. Reads all parts. The other units are scored again."""

    def result(name: str) -> UnitResult | None:
        with suppress(PartError):
            return read_part(job, unit_of(name))[2]
        return None

    found = storage.names(storage.join(job.out, PREDICTIONS))
    with ThreadPoolExecutor(_READERS) as pool:
        for names in batches(filter(unit_of, found), 1024):  # a pool holds all that it has been given
            yield from filter(None, pool.map(result, names))


def digests(out: str, table: str) -> Iterator[tuple[str, str]]:
    """The unit and the digest of each part in one of the tables. Reads all parts."""
    found = storage.names(storage.join(out, table))
    with ThreadPoolExecutor(_READERS) as pool:
        for names in batches(filter(unit_of, found), 1024):
            contents = pool.map(lambda name: storage.read(storage.join(out, table, name)), names)
            yield from ((unit_of(name), digest_of(data)) for name, data in zip(names, contents, strict=True))


def unit_of(name: str) -> str:
    """The unit of a part with this file name; empty if it is no part's name."""
    unit = name.removeprefix("part-").removesuffix(".parquet")
    return unit if part_name(unit) == name else ""


def strays(out: str, units: Mapping[str, int]) -> list[str]:
    """The files and folders of the two tables that no unit has written. Hidden files are not counted.

    `units` holds the number of quarantined inputs of each unit.
    """
    tables = {PREDICTIONS: units.keys(), QUARANTINE: {unit for unit, quarantined in units.items() if quarantined}}
    return [
        storage.join(out, table, name)
        for table, expected in tables.items()
        for name in storage.names(storage.join(out, table))
        if unit_of(name) not in expected and not name.startswith(".")
    ]


def sweep(out: str, units: Mapping[str, int]) -> None:
    """Delete parts that no unit has written, such as those of a plan that was interrupted or changed.

    `units` is that of `strays`. Raises AccountingError for other files and folders in the tables: somebody else may need them.
    """
    require_parts_alone(out)
    for uri in strays(out, units):
        storage.delete(uri)


def require_parts_alone(out: str) -> None:
    """Raise AccountingError if the two tables hold a file or folder that has no name of a part. Hidden files may be there."""
    for uri in strays(out, {}):
        if not unit_of(uri.rpartition("/")[2]):
            raise AccountingError(f"{uri}: is no part of this table; move it to another place, then run again with --resume")
