"""The plan: all inputs, cut into units of work. It lies beside the tables and is written while the inputs are listed.

`plan.json` describes the job. Once all inputs are planned, it also counts them. `plan/*.parquet` hold the inputs: one row group
for each unit. `plan.json` holds digests of these files and of itself, so that no change stays unnoticed.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.errors import AccountingError, first_line
from mnist_ray.scoring import schema

PLAN = "plan.json"
FOLDER = "plan"
FORMAT = 3
_UNITS = b"units"


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """A slice of the inputs, in order: rows of the plan that carry the unit's id."""

    id: str
    rows: pa.Table

    @property
    def num_inputs(self) -> int:
        """Images of this unit."""
        return int(pc.sum(self.rows["num_rows"]).as_py())


@dataclass(frozen=True, slots=True)
class UnitRef:
    """Where the plan holds a unit."""

    id: str
    part: str
    row_group: int
    num_inputs: int


@dataclass(frozen=True)
class Plan:
    """The job's options, its model and its inputs: those planned so far, or all of them if the plan is complete."""

    request: dict[str, Any]
    model_digest: str
    kept: pa.Schema = schema.NOTHING
    """The columns of tables and manifests that are passed through."""
    review_below: float | None = None
    """The confidence up to which predictions need a review; None without `--target-error`."""
    complete: bool = False
    failed: str = ""
    """Why planning failed."""
    parts: dict[str, str] = field(default_factory=dict)
    """Files of the plan, and the SHA-256 of each. While planning, only those of the last complete plan."""
    dropped: tuple[str, ...] = ()
    """Units that no longer count, because other units have their inputs."""
    num_units: int = 0
    num_inputs: int = 0
    ignored: int = 0
    """Files in input folders that are not scored."""
    ignored_digest: str = ""
    """SHA-256 of the file that lists them; empty if there are none."""
    truths: tuple[str, ...] = ()
    """Where true digits were found: folder names, or columns."""
    fingerprint: str = ""
    """SHA-256 over the ids of the units, in order."""
    shard: str = ""
    """`--shard` if only a part of the inputs is planned."""
    of_all_shards: str = ""
    """The fingerprint that the plans of all shards have together."""

    @property
    def job_id(self) -> str:
        """Hash of the model and of the options. Every part of the job's tables carries it."""
        about = json.dumps([FORMAT, self.model_digest, self.request], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()

    def save(self, out: str) -> None:
        """Write `plan.json`. Raises StorageError."""
        kept = base64.b64encode(self.kept.serialize().to_pybytes()).decode()
        storage.write(storage.join(out, PLAN), seal({"format": FORMAT, **vars(self), "kept": kept}))

    def refs(self, out: str) -> Iterator[UnitRef]:
        """The planned units, in order. Reads all files of the plan. Raises AccountingError if one is damaged."""
        dropped = set(self.dropped)
        for part in self.parts:
            with self._open(out, part) as parquet:
                yield from (ref for ref in _refs(parquet, part) if ref.id not in dropped)

    def units(self, out: str) -> Iterator[WorkUnit]:
        """The planned units with their inputs, in order. Reads all files of the plan. Raises AccountingError."""
        dropped = set(self.dropped)
        for part in self.parts:
            with self._open(out, part) as parquet:
                yield from (_read_unit(parquet, ref) for ref in _refs(parquet, part) if ref.id not in dropped)

    @contextmanager
    def _open(self, out: str, part: str) -> Iterator[pq.ParquetFile]:
        """A whole file of the plan. Raises AccountingError if it has changed since it was written."""
        uri = storage.join(out, FOLDER, part)
        with _damage(uri):
            data = storage.read(uri)
            if hashlib.sha256(data).hexdigest() != self.parts[part]:
                raise ValueError("it has changed since it was written")
            yield pq.ParquetFile(pa.BufferReader(data))


def seal(record: dict[str, Any]) -> bytes:
    """A record as JSON with a SHA-256 of its content, which `unseal` checks."""
    return storage.to_json({**record, "digest": _digest(record)})


def unseal(data: bytes) -> dict[str, Any]:
    """The record that `seal` wrote. Raises ValueError, KeyError or TypeError if it is damaged."""
    record: dict[str, Any] = json.loads(data)
    if record.pop("digest") != _digest(record):
        raise ValueError("it has changed since it was written")
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def load_plan(out: str) -> Plan:
    """Read the plan of the job in an output folder. Raises FileNotFoundError, or AccountingError if it is damaged."""
    uri = storage.join(out, PLAN)
    data = storage.read(uri)
    with _damage(uri):
        values = unseal(data)
        kept = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["kept"])))
        if values.pop("format") != FORMAT:
            raise ValueError("another version of this program wrote it")
        return Plan(**{**values, "kept": kept, "dropped": tuple(values["dropped"]), "truths": tuple(values["truths"])})


@contextmanager
def _damage(uri: str) -> Iterator[None]:
    """Raise AccountingError for an error that says that a file of the plan is damaged. StorageError passes."""
    try:
        yield
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise AccountingError(
            f"{uri}: this plan is damaged ({first_line(error)}); give --overwrite to score all inputs again"
        ) from None


def _refs(parquet: pq.ParquetFile, part: str) -> list[UnitRef]:
    units = json.loads(parquet.metadata.metadata[_UNITS])
    return [UnitRef(unit_id, part, position, num_inputs) for position, (unit_id, num_inputs) in enumerate(units)]


@contextmanager
def _open(out: str, part: str) -> Iterator[pq.ParquetFile]:
    """A file of the plan, of which only what is needed is read. Raises AccountingError if that is damaged."""
    uri = storage.join(out, FOLDER, part)
    with _damage(uri), storage.open_file(uri) as stream:
        yield pq.ParquetFile(stream)


def part_refs(out: str, part: str) -> list[UnitRef]:
    """The units of one file of the plan. Raises AccountingError if it is damaged."""
    with _open(out, part) as parquet:
        return _refs(parquet, part)


def _read_unit(parquet: pq.ParquetFile, ref: UnitRef) -> WorkUnit:
    rows = parquet.read_row_group(ref.row_group)
    return WorkUnit(ref.id, rows.cast(pa.schema([*schema.PLAN, *list(rows.schema)[len(schema.PLAN) :]])))


def load_unit(out: str, ref: UnitRef) -> WorkUnit:
    """The inputs of a unit. Raises AccountingError if its file of the plan is damaged."""
    with _open(out, ref.part) as parquet:
        return _read_unit(parquet, ref)


def write_units(out: str, part: str, units: Sequence[WorkUnit]) -> tuple[list[UnitRef], str]:
    """Write units as one file of the plan; returns them and the SHA-256 of the file. Raises StorageError."""
    counts = [(unit.id, unit.num_inputs) for unit in units]
    sink = pa.BufferOutputStream()
    # Dictionaries and statistics would double the size of these short row groups, and the time to write them.
    with pq.ParquetWriter(
        sink, units[0].rows.schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        for unit in units:
            writer.write_table(unit.rows, row_group_size=unit.rows.num_rows)
        writer.add_key_value_metadata({_UNITS: json.dumps(counts)})
    data = sink.getvalue().to_pybytes()
    storage.write(storage.join(out, FOLDER, part), data)
    refs = [UnitRef(unit_id, part, position, num_inputs) for position, (unit_id, num_inputs) in enumerate(counts)]
    return refs, hashlib.sha256(data).hexdigest()


def fingerprint(units: Iterable[str]) -> str:
    """SHA-256 over the ids of units, in order."""
    return hashlib.sha256("".join(f"{unit}\n" for unit in units).encode()).hexdigest()
