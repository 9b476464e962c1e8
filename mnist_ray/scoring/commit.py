"""The end of a job: the check that every input is accounted for, and the record of it."""

import hashlib
from contextlib import suppress
from typing import Any

import mnist_ray
from mnist_ray.data import storage
from mnist_ray.errors import AccountingError
from mnist_ray.scoring.ignored import IGNORED
from mnist_ray.scoring.job import Job, Tally, UnitResult
from mnist_ray.scoring.known import CHANGES
from mnist_ray.scoring.parts import PREDICTIONS, QUARANTINE, digests, part_name
from mnist_ray.scoring.plan import PLAN, Plan, seal, unseal

COMMIT = "commit.json"
SUMMARY = "summary.json"
RECORDS = (PLAN, SUMMARY, CHANGES)
"""Records whose digests the commit record holds."""
REPORT, REPORT_FACTS = "report.html", "report.json"
"""The report that is made of the committed table, and its facts."""


def commit(plan: Plan, units: dict[str, int], job: Job, tally: Tally, about: dict[str, Any]) -> dict[str, Any]:
    """Check that everything adds up, write the summary and the commit record, and return the summary.

    `units` holds the number of inputs of each unit of the plan, and `about` what the caller knows about the job, such as its
    speed. All parts are read and compared with what was counted. Raises AccountingError and writes nothing if an input is
    missing or counted twice, or if a part is not the one that was written.
    """
    total = tally.total
    _require_all(plan, units, job, tally)
    require_ignored(plan, job.out)
    counts = {"inputs": total.inputs, "predicted": total.predicted, "quarantined": total.quarantined}
    names = {"job": job.id, "model_digest": job.model, "version": mnist_ray.__version__}
    summary = {
        **counts,
        "reasons": dict(total.reasons.most_common()),
        "ignored": plan.ignored,
        **about,
        "digits": total.digits,
        "confidences": total.confidences,
        "unlike": total.unlike,
        "needs_review": None if job.review_below is None else total.needs_review,
        "review_below": job.review_below,
        "precision": job.precision,
        "accuracy": total.correct / total.with_truth if total.with_truth else None,
        "truth": list(plan.truths),
        "with_truth": total.with_truth,
        "correct": total.correct,
        "confusion": total.confusion if total.with_truth else None,
        "input_bytes": total.input_bytes,
        "slowest": [_slow(unit) for unit in tally.slowest],
        "units": plan.num_units,
        "plan": plan.fingerprint,
        **names,
    }
    storage.write_json(storage.join(job.out, SUMMARY), summary)
    record = {
        **names,
        "plan": plan.fingerprint,
        **counts,
        "parts": dict(sorted(tally.parts.items())),
        "digests": dict(sorted(tally.digests.items())),
        "records": {name: _record_digest(job.out, name) for name in RECORDS},
    }
    storage.write(storage.join(job.out, COMMIT), seal(record))
    return summary


def _record_digest(out: str, name: str) -> str:
    """The SHA-256 of a record in the output folder; empty if it is not there."""
    with suppress(FileNotFoundError):
        return hashlib.sha256(storage.read(storage.join(out, name))).hexdigest()
    return ""


def load_commit(out: str) -> dict[str, Any]:
    """The commit record of a job. Raises AccountingError if there is none, or if it is damaged."""
    try:
        return unseal(storage.read(storage.join(out, COMMIT)))
    except FileNotFoundError:
        raise AccountingError(f"{out}: has no commit record: the job has not ended; run again with --resume") from None
    except (ValueError, KeyError, TypeError):
        raise AccountingError(f"{out}/{COMMIT}: is damaged; run again with --resume") from None


def require_records(out: str, record: dict[str, Any]) -> None:
    """Raise AccountingError if one of `RECORDS` is not the one that the commit record names."""
    for name in RECORDS:
        if _record_digest(out, name) != record["records"].get(name):
            raise AccountingError(f"{out}/{name}: has changed since the job ended; run again with --resume")


def require_ignored(plan: Plan, out: str) -> None:
    """Raise AccountingError if the list of ignored files is not the one that the plan names."""
    if _record_digest(out, IGNORED) != plan.ignored_digest:
        raise AccountingError(f"{out}/{IGNORED}: has changed since the inputs were listed; give --overwrite to list them again")


def _slow(unit: UnitResult) -> dict[str, Any]:
    seconds = {stage: round(spent, 3) for stage, spent in unit.seconds.items()}
    return {"part": part_name(unit.unit), "inputs": unit.inputs, "input_bytes": unit.input_bytes, "seconds": seconds}


def _require_all(plan: Plan, units: dict[str, int], job: Job, tally: Tally) -> None:
    if tally.total.inputs != plan.num_inputs or tally.parts.keys() != units.keys():
        raise AccountingError(
            f"{job.out}: {plan.num_inputs} inputs in {plan.num_units} units were planned, "
            f"{tally.total.inputs} in {len(tally.parts)} are done; run again with --resume"
        )
    for place, table in enumerate((PREDICTIONS, QUARANTINE)):
        written = {unit: found[place] for unit, found in tally.digests.items() if found[place]}
        found = dict(digests(job.out, table))
        if lost := len(written.keys() - found.keys()):
            raise AccountingError(
                f"{job.out}/{table}: {lost} parts written by workers are not visible on the driver; "
                "give an --out that all nodes share, such as a bucket, and score again"
            )
        if other := [unit for unit in found if found[unit] != written.get(unit)]:
            raise AccountingError(
                f"{job.out}/{table}/{part_name(other[0])}: is not the part that this job has written; run again with --resume"
            )
