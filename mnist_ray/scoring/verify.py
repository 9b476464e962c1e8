"""The proof, from the output folder alone, that every planned input is in the tables exactly once."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.errors import AccountingError, OutputError
from mnist_ray.scoring.commit import COMMIT, load_commit, require_ignored, require_records
from mnist_ray.scoring.job import Job, Tally, UnitResult
from mnist_ray.scoring.parts import PREDICTIONS, PartError, part_name, read_part, strays, unit_of
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
    planned = [ref.id for ref in plan.refs(out)]
    if fingerprint(planned) != plan.fingerprint:
        raise AccountingError(f"{out}: the files of its plan have changed; give --overwrite to score all inputs again")
    job = Job.of(plan, out)
    tally = Tally()
    for unit in plan.units(out):
        tally.add(_verify_unit(job, unit))
    for stray in strays(out, {unit: quarantined for unit, (_, quarantined) in tally.parts.items()}):
        advice = "run again with --resume, or remove it" if unit_of(stray.rpartition("/")[2]) else "move it to another place"
        raise AccountingError(f"{stray}: belongs to no unit of the plan; {advice}")
    _compare_with_commit(plan, job, tally)
    return Proof(tally.total.inputs, tally.total.predicted, tally.total.quarantined, len(tally.parts))


def complete_plan(out: str) -> Plan:
    """The plan of a job whose inputs are all listed. Raises OutputError if there is no job, and else AccountingError."""
    try:
        plan = load_plan(out)
    except FileNotFoundError:
        raise OutputError(f"{out}: holds no scoring job: {PLAN} is missing") from None
    if not plan.complete:
        raise AccountingError(f"{out}: its inputs are not all listed yet: the job has not ended; run again with --resume")
    return plan


def _verify_unit(job: Job, unit: WorkUnit) -> UnitResult:
    """The counts of a unit. Raises AccountingError if its parts are not right."""
    try:
        predicted, quarantined, result = read_part(job, unit.id)
    except PartError as error:
        raise AccountingError(f"{error}; run again with --resume") from None
    _compare_keys(job.out, unit, pa.concat_tables([predicted.select(_KEY), quarantined.select(_KEY)]))
    return result


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


def _compare_with_commit(plan: Plan, job: Job, found: Tally) -> None:
    """Raise AccountingError unless the commit record describes these parts of this job, and the other records."""
    record, total = load_commit(job.out), found.total
    if (record["job"], record["model_digest"], record["plan"]) != (job.id, job.model, plan.fingerprint):
        raise AccountingError(f"{job.out}/{COMMIT}: is the record of another job; run again with --resume")
    recorded = (record["inputs"], record["predicted"], record["quarantined"])
    if recorded != (total.inputs, total.predicted, total.quarantined):
        raise AccountingError(
            f"{job.out}/{COMMIT}: records {recorded}, the tables hold {total.predicted} + {total.quarantined}; "
            "run again with --resume"
        )
    for unit, numbers in found.parts.items():
        if (record["parts"].get(unit), record["digests"].get(unit)) != (list(numbers), list(found.digests[unit])):
            raise AccountingError(f"{job.out}: {part_name(unit)} has changed since the job ended; run again with --resume")
    require_records(job.out, record)
    require_ignored(plan, job.out)
