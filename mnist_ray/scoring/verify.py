"""Proof, from the output alone, that every planned input is in it exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.errors import AccountingError, OutputError
from mnist_ray.scoring.commit import COMMIT, PLAN
from mnist_ray.scoring.job import read_metadata
from mnist_ray.scoring.plan import Plan, WorkUnit, load_plan
from mnist_ray.scoring.unit import part_name

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
        plan = load_plan(storage.join(out, PLAN))
    except FileNotFoundError:
        raise OutputError(f"{out}: holds no scoring job: {PLAN} is missing") from None
    _no_strangers(out, plan)
    proof = Proof()
    fingerprint = plan.fingerprint
    for unit in plan.units():
        predicted = _keys(out, "predictions", unit, plan, fingerprint)
        quarantined = _keys(out, "quarantine", unit, plan, fingerprint)
        _compare(out, unit, predicted + quarantined)
        proof.predicted += predicted.total()
        proof.quarantined += quarantined.total()
        proof.inputs += unit.num_inputs
        proof.units += 1
    _agrees_with_commit(out, fingerprint, proof)
    return proof


def _no_strangers(out: str, plan: Plan) -> None:
    planned = {part_name(unit) for unit in plan.unit_ids()}
    for table in ("predictions", "quarantine"):
        for name in storage.names(storage.join(out, table)):
            if name not in planned and not name.startswith("."):
                raise AccountingError(f"{out}/{table}/{name}: belongs to no unit of the plan; remove it")


def _keys(out: str, table: str, unit: WorkUnit, plan: Plan, fingerprint: str) -> Keys:
    uri = storage.join(out, table, part_name(unit.id))
    try:
        with storage.open_file(uri) as stream:
            found = pq.read_table(stream)  # every column: a damaged page anywhere must show
        part_plan, part_model, _ = read_metadata(found.schema)
    except FileNotFoundError:
        if table == "quarantine":
            return Counter()
        raise AccountingError(f"{uri}: is missing: its {unit.num_inputs} inputs have no row; run again with --resume") from None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise AccountingError(f"{uri}: cannot be read ({error}); delete it and run again with --resume") from None
    if (part_plan, part_model) != (fingerprint, plan.model_digest):
        raise AccountingError(f"{uri}: comes from another plan or model; delete it and run again with --resume")
    return Counter(zip(found["source"].to_pylist(), found["row"].to_pylist(), strict=True))


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


def _agrees_with_commit(out: str, fingerprint: str, proof: Proof) -> None:
    try:
        record = storage.read_json(storage.join(out, COMMIT))
        said = (record["plan"], record["inputs"], record["predicted"], record["quarantined"])
    except FileNotFoundError:
        raise AccountingError(f"{out}: has no commit record: the job has not ended; run again with --resume") from None
    except (ValueError, KeyError, TypeError):
        raise AccountingError(f"{out}/{COMMIT}: is damaged; run again with --resume") from None
    if said != (fingerprint, proof.inputs, proof.predicted, proof.quarantined):
        raise AccountingError(f"{out}/{COMMIT}: records {said[1:]}, the tables hold {proof.predicted} + {proof.quarantined}")
