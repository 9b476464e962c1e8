"""The proof, from the output folder alone, that every planned input is in the tables exactly once."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.data import storage
from mnist_ray.data.digits import CLASSES
from mnist_ray.errors import AccountingError, OutputError
from mnist_ray.scoring import schema
from mnist_ray.scoring.commit import COMMIT
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.parts import DAMAGE, PREDICTIONS, QUARANTINE, part_name, read_part, strays
from mnist_ray.scoring.plan import PLAN, Plan, WorkUnit, fingerprint, load_plan

_KEY = ["source", "row"]
_BALANCE = pa.schema([("source", pa.string()), ("row", pa.int64()), ("n", pa.int64())])


class Proof(NamedTuple):
    """What the tables hold. All of it adds up."""

    inputs: int
    predicted: int
    quarantined: int
    units: int


def verify(out: str) -> Proof:
    """Compare the tables with the plan and the commit record. Raises AccountingError for the first thing that is wrong."""
    plan = complete_plan(out)
    planned = dict.fromkeys(ref.id for ref in plan.refs(out))
    if fingerprint(planned) != plan.fingerprint:
        raise AccountingError(f"{out}: the files of its plan have changed; give --overwrite to score all inputs again")
    for stray in strays(out, planned):
        raise AccountingError(f"{stray}: belongs to no unit of the plan; remove it")
    job = Job.of(plan, out)
    counts = {unit.id: _verify_unit(job, unit) for unit in plan.units(out)}
    predicted = sum(predicted for predicted, _ in counts.values())
    quarantined = sum(quarantined for _, quarantined in counts.values())
    proof = Proof(predicted + quarantined, predicted, quarantined, len(counts))
    _compare_with_commit(out, plan, proof, counts)
    return proof


def complete_plan(out: str) -> Plan:
    """The plan of a job whose inputs are all listed. Raises OutputError if there is no job, and else AccountingError."""
    try:
        plan = load_plan(out)
    except FileNotFoundError:
        raise OutputError(f"{out}: holds no scoring job: {PLAN} is missing") from None
    if not plan.complete:
        raise AccountingError(f"{out}: its inputs are not all listed yet: the job has not ended; run again with --resume")
    return plan


def commit_record(out: str) -> dict[str, Any]:
    """The commit record of a job: counts, and the predicted and quarantined inputs of each unit. Raises AccountingError."""
    try:
        record: dict[str, Any] = storage.read_json(storage.join(out, COMMIT))
        return {name: record[name] for name in ("plan", "inputs", "predicted", "quarantined", "parts")}
    except FileNotFoundError:
        raise AccountingError(f"{out}: has no commit record: the job has not ended; run again with --resume") from None
    except (ValueError, KeyError, TypeError):
        raise AccountingError(f"{out}/{COMMIT}: is damaged; run again with --resume") from None


def _verify_unit(job: Job, unit: WorkUnit) -> list[int]:
    """The number of predicted and of quarantined inputs of a unit. Raises AccountingError if its parts are not right."""
    predicted, result = _read(job, unit, PREDICTIONS)
    quarantined, _ = _read(job, unit, QUARANTINE)
    _compare_keys(job.out, unit, pa.concat_tables([predicted.select(_KEY), quarantined.select(_KEY)]))
    if np.bincount(predicted["label"].to_numpy(), minlength=len(CLASSES)).tolist() != result.digits:
        uri = storage.join(job.out, PREDICTIONS, part_name(unit.id))
        raise AccountingError(f"{uri}: its labels are not those that were written; delete it and run again with --resume")
    return [predicted.num_rows, quarantined.num_rows]


def _read(job: Job, unit: WorkUnit, table: str) -> tuple[pa.Table, UnitResult]:
    """The unit's part in one table. A unit without quarantined inputs has no part in the quarantine table."""
    uri = storage.join(job.out, table, part_name(unit.id))
    try:
        return read_part(job, unit.id, table)
    except FileNotFoundError:
        if table == QUARANTINE:
            return schema.QUARANTINE.empty_table(), UnitResult(unit.id)
        raise AccountingError(f"{uri}: is missing: its {unit.num_inputs} inputs have no row; run again with --resume") from None
    except DAMAGE as error:
        done = storage.join(job.out, PREDICTIONS, part_name(unit.id))
        raise AccountingError(f"{uri}: cannot be read ({error}); delete {done} and run again with --resume") from None


def _expected_keys(unit: WorkUnit) -> pa.Table:
    """Source and row of each input of a unit; the row is null for an image file."""
    rows = unit.rows
    counts = rows["num_rows"].to_numpy()
    positions = np.repeat(np.arange(len(counts)), counts)
    offsets = pa.array(np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts))
    return pa.table([rows["source"].take(positions), pc.add(rows["first_row"].take(positions), offsets)], names=_KEY)


def _weighted(keys: pa.Table, n: int) -> pa.Table:
    return keys.append_column("n", pa.repeat(pa.scalar(n), keys.num_rows)).cast(_BALANCE)


def _compare_keys(out: str, unit: WorkUnit, found: pa.Table) -> None:
    """Raise AccountingError unless each expected key is found once, and no other key."""
    expected = _expected_keys(unit)
    keys = pa.concat_tables([_weighted(expected, -1), _weighted(found, 1)])
    off = keys.group_by(_KEY).aggregate([("n", "sum")]).filter(pc.field("n_sum") != 0)
    if not off.num_rows:
        return
    surplus = off["n_sum"].to_numpy()
    first = off.sort_by("n_sum").slice(0, 1).to_pylist()[0]
    where = f"{first['source']}{'' if first['row'] is None else ', row ' + str(first['row'])}"
    raise AccountingError(
        f"{out}: unit {unit.id}: {-surplus[surplus < 0].sum()} inputs missing and {surplus[surplus > 0].sum()} too many, "
        f"the first: {where}; delete {PREDICTIONS}/{part_name(unit.id)} and run again with --resume"
    )


def _compare_with_commit(out: str, plan: Plan, proof: Proof, counts: dict[str, list[int]]) -> None:
    recorded = tuple(commit_record(out).values())
    if recorded != (plan.fingerprint, proof.inputs, proof.predicted, proof.quarantined, counts):
        raise AccountingError(
            f"{out}/{COMMIT}: records {recorded[1:4]}, the tables hold {proof.predicted} + {proof.quarantined}"
        )
