"""The plan: every input cut into units of work with stable ids, kept beside the output."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.data.listing import FileEntry
from mnist_ray.errors import DataError, OutputError
from mnist_ray.scoring import schema
from mnist_ray.scoring.inputs import ImageFile, Listing
from mnist_ray.scoring.tables import table_ranges

_META = b"mnist_ray"


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """An ordered slice of the inputs: the plan's rows that carry its id."""

    id: str
    rows: pa.Table

    @property
    def num_inputs(self) -> int:
        """Images in this unit."""
        return int(pc.sum(self.rows["num_rows"]).as_py())


@dataclass(frozen=True)
class Plan:
    """All units of a job and what the job is: request, model, passed-through columns."""

    table: pa.Table
    request: dict[str, Any]
    model_digest: str
    kept: pa.Schema
    ignored: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the units in order, the model and the request."""
        parts = [*self.unit_ids(), self.model_digest, json.dumps(self.request, sort_keys=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def num_inputs(self) -> int:
        """Images in the whole plan."""
        return int(pc.sum(self.table["num_rows"]).as_py() or 0)

    def unit_ids(self) -> list[str]:
        """The ids of all units, in order."""
        return pc.unique(self.table["unit"]).to_pylist()  # type: ignore[no-any-return]

    def units(self) -> Iterator[WorkUnit]:
        """All units, in order."""
        runs = pc.run_end_encode(self.table["unit"].combine_chunks())
        start = 0
        for end, unit in zip(runs.run_ends.to_pylist(), runs.values.to_pylist(), strict=True):
            yield WorkUnit(unit, self.table.slice(start, end - start))
            start = end

    def save(self, uri: str) -> None:
        """Write the plan as one Parquet file."""
        about = {
            "request": self.request,
            "model_digest": self.model_digest,
            "ignored": self.ignored,
            "kept": base64.b64encode(self.kept.serialize().to_pybytes()).decode(),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(self.table.replace_schema_metadata({_META: json.dumps(about)}), sink, compression="zstd")
        storage.write(uri, sink.getvalue().to_pybytes())


def load_plan(uri: str) -> Plan:
    """Read a plan back. Raises FileNotFoundError, or OutputError for a damaged one."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read(uri)))
        about = json.loads(table.schema.metadata[_META])
        kept = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(about["kept"])))
        return Plan(table.cast(schema.PLAN), about["request"], about["model_digest"], kept, about["ignored"])
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{uri}: this plan is damaged ({error}); give --overwrite to score anew") from None


def make_plan(listing: Listing, config: ScoreConfig, model_digest: str) -> Plan:
    """Cut a listing into units. Raises DataError for a Parquet file whose columns do not fit."""
    kept, ranges = table_ranges(listing.tables, config)
    files = [rows for images in (listing.images, listing.listed) for rows in _plan_files(images, config.unit_rows)]
    tables = [[_row(part.entry, None, part.first_row, part.num_rows)] for part in ranges]
    units = _with_ids([*files, *tables], _options(config))
    rows = [{"unit": unit, **row} for unit, unit_rows in units for row in unit_rows]
    if not rows:
        raise DataError(f"{', '.join(config.inputs)}: the Parquet files hold no rows: there is nothing to score")
    return Plan(pa.Table.from_pylist(rows, schema=schema.PLAN), config.meaning(), model_digest, kept, listing.ignored)


def _options(config: ScoreConfig) -> str:
    """The options that change a unit's rows, as text."""
    return json.dumps({k: v for k, v in config.meaning().items() if k not in ("inputs", "unit_rows")}, sort_keys=True)


def _row(entry: FileEntry, truth: int | None, first_row: int | None, num_rows: int) -> dict[str, Any]:
    found = {"source": storage.to_text(entry.uri), "size_bytes": entry.size, "version": entry.version}
    return {**found, "truth": truth, "first_row": first_row, "num_rows": num_rows}


def _plan_files(images: list[ImageFile], unit_rows: int) -> list[list[dict[str, Any]]]:
    rows = [_row(image.entry, image.truth, None, 1) for image in images]
    return [rows[start : start + unit_rows] for start in range(0, len(rows), unit_rows)]


def _with_ids(units: list[list[dict[str, Any]]], options: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each unit with the hash of its ordered sources and options; equal units (repeated manifest lines) count up."""
    seen: Counter[str] = Counter()
    for rows in units:
        names = [
            f"{row['source']}\0{row['size_bytes']}\0{row['version']}\0{row['first_row']}\0{row['num_rows']}\0{row['truth']}"
            for row in rows
        ]
        digest = hashlib.sha256("\n".join([options, *names]).encode())
        seen[digest.hexdigest()] += 1
        if (copies := seen[digest.hexdigest()]) > 1:
            digest.update(f"\ncopy {copies}".encode())
        yield digest.hexdigest()[:20], rows
