"""The end of a job: the check that every input is accounted for, and the record of it."""

from typing import Any

import mnist_ray
from mnist_ray.data import storage
from mnist_ray.errors import AccountingError
from mnist_ray.scoring.job import Job, Tally, UnitResult
from mnist_ray.scoring.parts import PREDICTIONS, part_name, unit_of
from mnist_ray.scoring.plan import Plan

COMMIT = "commit.json"
SUMMARY = "summary.json"
REPORT, REPORT_FACTS = "report.html", "report.json"
"""The report that is made of the committed table, and its facts."""


def commit(plan: Plan, units: dict[str, int], job: Job, tally: Tally, about: dict[str, Any]) -> dict[str, Any]:
    """Check that everything adds up, write the commit record and the summary, and return the summary.

    `units` holds the number of inputs of each unit of the plan, and `about` what the caller knows about the job, such as its
    speed. Raises AccountingError and writes nothing if an input is missing or counted twice.
    """
    total = tally.total
    _require_all(plan, units, job, tally)
    counts = {"inputs": total.inputs, "predicted": total.predicted, "quarantined": total.quarantined}
    names = {"job": job.id, "model_digest": job.model, "version": mnist_ray.__version__}
    record = {**names, "plan": plan.fingerprint, **counts, "parts": dict(sorted(tally.parts.items()))}
    storage.write_json(storage.join(job.out, COMMIT), record)
    summary = {
        **counts,
        "reasons": dict(total.reasons.most_common()),
        "ignored": plan.ignored,
        **about,
        "digits": total.digits,
        "confidences": total.confidences,
        "accuracy": total.correct / total.with_truth if total.with_truth else None,
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
    return summary


def _slow(unit: UnitResult) -> dict[str, Any]:
    seconds = {stage: round(spent, 3) for stage, spent in unit.seconds.items()}
    return {"part": part_name(unit.unit), "inputs": unit.inputs, "input_bytes": unit.input_bytes, "seconds": seconds}


def _require_all(plan: Plan, units: dict[str, int], job: Job, tally: Tally) -> None:
    visible = sum(unit_of(name) in tally.parts for name in storage.names(storage.join(job.out, PREDICTIONS)))
    if lost := len(tally.parts) - visible:
        raise AccountingError(
            f"{job.out}: {lost} parts written by workers are not visible on the driver; "
            "give an --out that all nodes share, such as a bucket, and score again"
        )
    if tally.total.inputs != plan.num_inputs or tally.parts.keys() != units.keys():
        raise AccountingError(
            f"{job.out}: {plan.num_inputs} inputs in {plan.num_units} units were planned, "
            f"{tally.total.inputs} in {len(tally.parts)} are done; run again with --resume"
        )
