"""The beginning and the end of a job: which output it may write to, which units are done, and the record that all are."""

from __future__ import annotations

from typing import Any

from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.errors import AccountingError, OutputError
from mnist_ray.scoring import plan as plans
from mnist_ray.scoring.job import Job, Tally
from mnist_ray.scoring.known import CHANGES
from mnist_ray.scoring.parts import part_name
from mnist_ray.scoring.plan import Plan

COMMIT = "commit.json"
SUMMARY = "summary.json"
_OURS = (COMMIT, SUMMARY, CHANGES, plans.PLAN, plans.FOLDER, "predictions", "quarantine")
OWNER = "owner.json"
"""The sign of life of a job that writes here: a job that dies at once leaves nothing else."""


def held_plan(config: ScoreConfig, out: str, model_digest: str) -> Plan | None:
    """The plan of the job that the output folder holds, to resume it; None where a new job may begin. Writes nothing.

    Raises OutputError where the folder holds something that this job would not continue.
    """
    held = [name for name in storage.names(out) if not name.startswith(".") and name != OWNER]
    if not held:
        return None
    if plans.PLAN not in held and (config.resume or config.extend or config.overwrite):
        raise OutputError(f"{out}: holds something, but no scoring job to resume, extend or overwrite; give another --out")
    if config.overwrite:
        return None
    if not (config.resume or config.extend):
        raise OutputError(
            f"{out}: is not empty; give --resume to continue its job, --extend to add what is new in its inputs, "
            "--overwrite to replace it, or another --out"
        )
    plan = plans.load_plan(out)
    wanted = {**config.identity(), "model": model_digest}
    found = {**plan.request, "model": plan.model_digest}
    if other := [f"{name} {found.get(name)} -> {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]:
        raise OutputError(f"{out}: holds another job ({'; '.join(other)}); give another --out, or --overwrite")
    return plan


def begin(plan: Plan, out: str, *, anew: bool) -> None:
    """Record what the job is, in place of the job that the folder may hold; or, not `anew`, of what was planned in part."""
    for name in _OURS if anew else (COMMIT, SUMMARY):
        storage.delete(storage.join(out, name))
    for name in storage.names(storage.join(out, plans.FOLDER)):
        if name not in plan.parts:  # of a planning that was cut short
            storage.delete(storage.join(out, plans.FOLDER, name))
    plan.save(out)


def commit(plan: Plan, job: Job, tally: Tally, about: dict[str, Any]) -> dict[str, Any]:
    """Check that everything adds up, write the commit record and the summary, and return the summary.

    `about` is what the job alone can tell of how it went. Raises AccountingError, and writes neither, if an input is missing
    or there twice.
    """
    total = tally.total
    there = set(storage.names(storage.join(job.out, "predictions")))
    if lost := [unit for unit in tally.parts if part_name(unit) not in there]:
        raise AccountingError(
            f"{job.out}: {len(lost)} parts that workers wrote are not to be seen from here; "
            "give an --out that all nodes share, such as a bucket, and score anew"
        )
    counted = total.predicted + total.quarantined
    if counted != plan.num_inputs or set(tally.parts) != {ref.id for ref in plan.refs(job.out)}:
        raise AccountingError(
            f"{job.out}: {plan.num_inputs} inputs in {plan.num_units} units were planned, "
            f"{counted} in {len(tally.parts)} are there; run again with --resume"
        )
    counts = {"inputs": counted, "predicted": total.predicted, "quarantined": total.quarantined}
    names = {"job": job.id, "model_digest": job.model, "version": job.version}
    storage.write_json(
        storage.join(job.out, COMMIT), {**names, "plan": plan.fingerprint, **counts, "parts": dict(sorted(tally.parts.items()))}
    )
    summary = {
        **counts,
        "reasons": dict(total.reasons.most_common()),
        "ignored": plan.ignored,
        **about,
        "digits": total.digits,
        "accuracy": total.correct / total.with_truth if total.with_truth else None,
        "with_truth": total.with_truth,
        "correct": total.correct,
        "input_bytes": total.input_bytes,
        "units": plan.num_units,
        "plan": plan.fingerprint,
        **names,
    }
    storage.write_json(storage.join(job.out, SUMMARY), summary)
    return summary
