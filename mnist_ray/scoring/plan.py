"""The plan: every input cut into units of work with stable ids, kept beside the output and written as the listing runs.

`plan.json` says what the job is, and what is planned once all is; `plan/*.parquet` hold the inputs, a row group for each unit.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.errors import OutputError
from mnist_ray.scoring import schema

PLAN = "plan.json"
FOLDER = "plan"
FORMAT = 1
FIRST_PART, LAST_PART = 1 << 13, 1 << 17
"""Inputs after which the first part of the plan is written; each part is twice as large as the one before, up to the last."""
_UNITS = b"units"


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """An ordered slice of the inputs: the plan's rows that carry its id."""

    id: str
    rows: pa.Table

    @property
    def num_inputs(self) -> int:
        """Images in this unit."""
        return int(pc.sum(self.rows["num_rows"]).as_py())


@dataclass(frozen=True, slots=True)
class UnitRef:
    """Where the plan holds a unit."""

    id: str
    part: str
    row_group: int
    num_inputs: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the job is: request, model, passed-through columns; and what is planned, so far or in all."""

    request: dict[str, Any]
    model_digest: str
    kept: pa.Schema
    complete: bool = False
    failed: str = ""
    """Why planning has ended without being complete."""
    parts: tuple[str, ...] = ()
    """Files of the plan; while it is not complete, those that were when it last was."""
    dropped: tuple[str, ...] = ()
    """Units that were planned and no longer count: others have their inputs."""
    num_units: int = 0
    num_inputs: int = 0
    ignored: int = 0
    """Files in folders that are neither images nor Parquet."""
    fingerprint: str = ""
    """SHA-256 over the ids of the units, in order."""

    @property
    def job(self) -> str:
        """What every part of the job's tables carries: the hash of model and request."""
        about = json.dumps([FORMAT, self.model_digest, self.request], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()

    def save(self, out: str) -> None:
        """Write what the job is."""
        kept = base64.b64encode(self.kept.serialize().to_pybytes()).decode()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        storage.write_json(storage.join(out, PLAN), {"format": FORMAT, **values, "kept": kept})

    def refs(self, out: str) -> Iterator[UnitRef]:
        """Every unit that is planned, in order. Raises OutputError for a damaged plan."""
        dropped = set(self.dropped)
        for part in self.parts:
            yield from (ref for ref in part_refs(out, part) if ref.id not in dropped)


def load_plan(out: str) -> Plan:
    """Read back what the job in an output folder is. Raises FileNotFoundError, or OutputError for a damaged record."""
    uri = storage.join(out, PLAN)
    try:
        values = storage.read_json(uri)
        kept = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["kept"])))
        if values.pop("format") != FORMAT:
            raise ValueError("another version of this program wrote it")
        return Plan(**{**values, "kept": kept, "parts": tuple(values["parts"])})
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise _damaged(uri, error) from None


def _damaged(uri: str, error: Exception) -> OutputError:
    return OutputError(f"{uri}: this plan is damaged ({error}); give --overwrite to score anew")


def part_refs(out: str, part: str) -> list[UnitRef]:
    """The units of one part of the plan. Raises OutputError for a damaged one."""
    uri = storage.join(out, FOLDER, part)
    try:
        with storage.open_file(uri) as stream:
            units = json.loads(pq.read_metadata(stream).metadata[_UNITS])
        return [UnitRef(unit, part, position, inputs) for position, (unit, inputs) in enumerate(units)]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise _damaged(uri, error) from None


def load_unit(out: str, ref: UnitRef) -> WorkUnit:
    """The inputs of a unit. Raises OutputError for a damaged plan."""
    uri = storage.join(out, FOLDER, ref.part)
    try:
        with storage.open_file(uri) as stream:
            return WorkUnit(ref.id, pq.ParquetFile(stream).read_row_group(ref.row_group).cast(schema.PLAN))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _damaged(uri, error) from None


def fingerprint(refs: Iterable[UnitRef]) -> str:
    """SHA-256 over the ids of units, in order."""
    digest = hashlib.sha256()
    for ref in refs:
        digest.update(f"{ref.id}\n".encode())
    return digest.hexdigest()


class PlanWriter:
    """Puts units into the plan as they come."""

    def __init__(self, plan: Plan, out: str) -> None:
        self.plan, self._out = plan, out
        self._waiting: list[WorkUnit] = []
        self._limit = FIRST_PART

    def add(self, units: Iterable[WorkUnit]) -> Iterator[UnitRef]:
        """Yield each unit once the part that holds it is in place; the first parts are small, so that work can begin."""
        inputs = 0
        for unit in units:
            self._waiting.append(unit)
            inputs += unit.num_inputs
            if inputs >= self._limit:
                yield from self._flush()
                inputs, self._limit = 0, min(2 * self._limit, LAST_PART)
        yield from self._flush()

    def finish(self, ignored: int) -> Plan:
        """Record that all is planned."""
        refs = list(self.plan.refs(self._out))
        done = replace(self.plan, complete=True, num_units=len(refs), fingerprint=fingerprint(refs), ignored=ignored)
        self.plan = replace(done, num_inputs=sum(ref.num_inputs for ref in refs))
        self.plan.save(self._out)
        return self.plan

    def _flush(self) -> list[UnitRef]:
        if not self._waiting:
            return []
        units = [(unit.id, unit.num_inputs) for unit in self._waiting]
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema.PLAN, compression="zstd") as writer:
            for unit in self._waiting:
                writer.write_table(unit.rows, row_group_size=unit.rows.num_rows)
            writer.add_key_value_metadata({_UNITS: json.dumps(units)})
        name = f"{len(self.plan.parts):05d}.parquet"
        storage.write(storage.join(self._out, FOLDER, name), sink.getvalue().to_pybytes())
        self._waiting.clear()
        self.plan = replace(self.plan, parts=(*self.plan.parts, name))
        return [UnitRef(unit, name, position, inputs) for position, (unit, inputs) in enumerate(units)]
