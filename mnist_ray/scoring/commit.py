"""The beginning and the end of a job: which output it may write to, which units are done, and the record that all are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.errors import AccountingError, OutputError
from mnist_ray.scoring.job import Job, UnitResult, read_metadata
from mnist_ray.scoring.plan import Plan, load_plan
from mnist_ray.scoring.unit import part_name

PLAN = "plan.parquet"
COMMIT = "commit.json"
SUMMARY = "summary.json"
_OURS = (COMMIT, SUMMARY, PLAN, "predictions", "quarantine")


def held_plan(config: ScoreConfig, out: str, model_digest: str) -> Plan | None:
    """The plan of the job that the output folder holds, to resume it; None where a new job may begin. Writes nothing.

    Raises OutputError where the folder holds something that this job would not continue.
    """
    held = [name for name in storage.names(out) if not name.startswith(".")]
    if not held:
        return None
    if PLAN not in held and (config.resume or config.overwrite):
        raise OutputError(f"{out}: holds something, but no scoring job to resume or overwrite; give another --out")
    if config.overwrite:
        return None
    if not config.resume:
        raise OutputError(
            f"{out}: is not empty; give --resume to continue its job, --overwrite to replace it, or another --out"
        )
    plan = load_plan(storage.join(out, PLAN))
    wanted = {**config.meaning(), "model": model_digest}
    found = {**plan.request, "model": plan.model_digest}
    if other := [f"{name} {found.get(name)} -> {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]:
        raise OutputError(f"{out}: holds another job ({'; '.join(other)}); give another --out, or --overwrite")
    return plan


def begin(plan: Plan, out: str) -> None:
    """Put a new job's plan in the output folder, in place of the job that it may hold."""
    for name in _OURS:
        storage.delete(storage.join(out, name))
    plan.save(storage.join(out, PLAN))


def finished_units(job: Job) -> dict[str, UnitResult]:
    """The units whose parts are there and whole, by id, read from the parts alone."""
    done = {}
    folder = storage.join(job.out, "predictions")
    for name in storage.names(folder):
        try:
            footer = _footer(storage.join(folder, name))
            plan, _, result = read_metadata(footer.schema.to_arrow_schema())
            spoiled = _footer(storage.join(job.out, "quarantine", name)).num_rows if result.quarantined else 0
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            continue  # not a part, or a damaged one: the unit is done again
        whole = (footer.num_rows, spoiled) == (result.predicted, result.quarantined)
        if whole and plan == job.plan and name == part_name(result.unit):
            done[result.unit] = result
    return done


def _footer(uri: str) -> pq.FileMetaData:
    with storage.open_file(uri) as stream:
        return pq.read_metadata(stream)


def commit(plan: Plan, job: Job, results: list[UnitResult], seconds: dict[str, float], scored_now: int) -> dict[str, Any]:
    """Check that everything adds up, write the commit record and the summary, and return the summary.

    Raises AccountingError, and writes neither, if an input is missing or there twice.
    """
    totals = _total(results)
    units = Counter(result.unit for result in results)
    there = set(storage.names(storage.join(job.out, "predictions")))
    if lost := [unit for unit in units if part_name(unit) not in there]:
        raise AccountingError(
            f"{job.out}: {len(lost)} parts that workers wrote are not to be seen from here; "
            "give an --out that all nodes share, such as a bucket, and score anew"
        )
    counted = totals.predicted + totals.quarantined
    if units != Counter(plan.unit_ids()) or counted != plan.num_inputs:
        raise AccountingError(
            f"{job.out}: {plan.num_inputs} inputs in {len(plan.unit_ids())} units were planned, "
            f"{counted} in {units.total()} are there; run again with --resume"
        )
    storage.write_json(
        storage.join(job.out, COMMIT),
        {
            "plan": job.plan,
            "model_digest": job.model,
            "version": job.version,
            "inputs": counted,
            "predicted": totals.predicted,
            "quarantined": totals.quarantined,
            "parts": {result.unit: [result.predicted, result.quarantined] for result in results},
        },
    )
    summary = _summary(plan, job, totals, seconds, scored_now)
    storage.write_json(storage.join(job.out, SUMMARY), summary)
    return summary


def _total(results: list[UnitResult]) -> UnitResult:
    total = UnitResult("")
    for result in results:
        total.predicted += result.predicted
        total.quarantined += result.quarantined
        total.reasons += result.reasons
        total.digits = [a + b for a, b in zip(total.digits, result.digits, strict=True)]
        total.correct += result.correct
        total.with_truth += result.with_truth
        total.input_bytes += result.input_bytes
        total.spend(result.seconds)
    return total


def _summary(plan: Plan, job: Job, totals: UnitResult, seconds: dict[str, float], scored_now: int) -> dict[str, Any]:
    return {
        "inputs": totals.predicted + totals.quarantined,
        "predicted": totals.predicted,
        "quarantined": totals.quarantined,
        "reasons": dict(totals.reasons.most_common()),
        "ignored": plan.ignored,
        "scored_now": scored_now,
        "images_per_second": round(scored_now / max(seconds["total"], 1e-9), 1),
        "seconds": {
            **{k: round(v, 3) for k, v in seconds.items()},
            "workers": {k: round(v, 3) for k, v in totals.seconds.items()},
        },
        "digits": totals.digits,
        "accuracy": totals.correct / totals.with_truth if totals.with_truth else None,
        "with_truth": totals.with_truth,
        "correct": totals.correct,
        "input_bytes": totals.input_bytes,
        "units": len(plan.unit_ids()),
        "plan": job.plan,
        "model_digest": job.model,
        "version": job.version,
    }
