"""Proof, from the output alone, that every planned input is in it exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.errors import AccountingError, OutputError
from mnist_ray.flags import probabilities
from mnist_ray.scoring import schema
from mnist_ray.scoring.commit import COMMIT
from mnist_ray.scoring.job import UnitResult
from mnist_ray.scoring.parts import part_name, read_metadata
from mnist_ray.scoring.plan import PLAN, Plan, WorkUnit, fingerprint, load_plan, load_unit

Keys = Counter[tuple[str, int | None]]


@dataclass
class Proof:
    """What was found: all of it added up."""

    inputs: int = 0
    predicted: int = 0
    quarantined: int = 0
    units: int = 0


def verify(out: str) -> Proof:
    """Compare the tables with the plan and the commit record. Raises AccountingError for the first thing that is wrong."""
    try:
        plan = load_plan(out)
    except FileNotFoundError:
        raise OutputError(f"{out}: holds no scoring job: {PLAN} is missing") from None
    if not plan.complete:
        raise AccountingError(f"{out}: its inputs are not all listed yet: the job has not ended; run again with --resume")
    refs = list(plan.refs(out))
    if fingerprint(refs) != plan.fingerprint:
        raise AccountingError(f"{out}: its plan is not the one that was made; give --overwrite to score anew")
    _no_strangers(out, {part_name(ref.id) for ref in refs})
    proof = Proof()
    counts: dict[str, list[int]] = {}
    for ref in refs:
        unit = load_unit(out, ref)
        predicted, result = _part(out, "predictions", unit, plan)
        quarantined, _ = _part(out, "quarantine", unit, plan)
        _compare(out, unit, _keys(predicted) + _keys(quarantined))
        _check_labels(out, unit, predicted, result)
        counts[unit.id] = [predicted.num_rows, quarantined.num_rows]
        proof.predicted += predicted.num_rows
        proof.quarantined += quarantined.num_rows
        proof.inputs += unit.num_inputs
        proof.units += 1
    _agrees_with_commit(out, plan.fingerprint, proof, counts)
    return proof


def _no_strangers(out: str, planned: set[str]) -> None:
    for table in ("predictions", "quarantine"):
        for name in storage.names(storage.join(out, table)):
            if name not in planned and not name.startswith("."):
                raise AccountingError(f"{out}/{table}/{name}: belongs to no unit of the plan; remove it")


def _part(out: str, table: str, unit: WorkUnit, plan: Plan) -> tuple[pa.Table, UnitResult]:
    """A unit's part of one table and what it says of itself; no rows where there is no part of the quarantine."""
    uri = storage.join(out, table, part_name(unit.id))
    again = f"delete {storage.join(out, 'predictions', part_name(unit.id))} and run again with --resume"
    try:
        with storage.open_file(uri) as stream:
            found = pq.read_table(stream)  # every column: a damaged page anywhere must show
        part_job, part_model, result = read_metadata(found.schema)
    except FileNotFoundError:
        if table == "quarantine":
            return schema.quarantine().empty_table(), UnitResult(unit.id)
        raise AccountingError(f"{uri}: is missing: its {unit.num_inputs} inputs have no row; run again with --resume") from None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise AccountingError(f"{uri}: cannot be read ({error}); {again}") from None
    if (part_job, part_model, result.unit) != (plan.job, plan.model_digest, unit.id):
        raise AccountingError(f"{uri}: comes from another job, model or unit; {again}")
    expected = (
        schema.predictions(plan.kept, probabilities(plan.request["probabilities"]))
        if table == "predictions"
        else schema.quarantine()
    )
    if not found.schema.equals(expected):
        raise AccountingError(
            f"{uri}: its columns are {found.schema.names}, expected {expected.names} with their types; {again}"
        )
    return found, result


def _keys(table: pa.Table) -> Keys:
    return Counter(zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True))


def _check_labels(out: str, unit: WorkUnit, table: pa.Table, result: UnitResult) -> None:
    """Compare the labels with the counts that were taken when they were predicted."""
    if np.bincount(table["label"].to_numpy(), minlength=10).tolist() != result.digits:
        uri = storage.join(out, "predictions", part_name(unit.id))
        raise AccountingError(f"{uri}: its labels are not those that were written; delete it and run again with --resume")


def _expected(unit: WorkUnit) -> Keys:
    keys: Keys = Counter()
    for row in unit.rows.to_pylist():
        first = row["first_row"]
        keys.update((row["source"], None if first is None else first + i) for i in range(row["num_rows"]))
    return keys


def _compare(out: str, unit: WorkUnit, found: Keys) -> None:
    expected = _expected(unit)
    if found == expected:
        return
    missing, extra = expected - found, found - expected
    source, row = next(iter(missing or extra))
    where = f"{source}{'' if row is None else f', row {row}'}"
    raise AccountingError(
        f"{out}: unit {unit.id}: {missing.total()} inputs missing and {extra.total()} too many, the first: {where}; "
        f"delete predictions/{part_name(unit.id)} and run again with --resume"
    )


def _agrees_with_commit(out: str, planned: str, proof: Proof, counts: dict[str, list[int]]) -> None:
    try:
        record = storage.read_json(storage.join(out, COMMIT))
        said = (record["plan"], record["inputs"], record["predicted"], record["quarantined"], record["parts"])
    except FileNotFoundError:
        raise AccountingError(f"{out}: has no commit record: the job has not ended; run again with --resume") from None
    except (ValueError, KeyError, TypeError):
        raise AccountingError(f"{out}/{COMMIT}: is damaged; run again with --resume") from None
    if said != (planned, proof.inputs, proof.predicted, proof.quarantined, counts):
        raise AccountingError(f"{out}/{COMMIT}: records {said[1:4]}, the tables hold {proof.predicted} + {proof.quarantined}")
