"""The start of a job: the checks that the output folder is free or holds this job, and the record of what the job is."""

from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.errors import OutputError
from mnist_ray.flags import SHARDS
from mnist_ray.scoring.commit import COMMIT, REPORT, REPORT_FACTS, SUMMARY
from mnist_ray.scoring.ignored import IGNORED
from mnist_ray.scoring.known import CHANGES
from mnist_ray.scoring.parts import PREDICTIONS, QUARANTINE
from mnist_ray.scoring.plan import FOLDER, PLAN, Plan, load_plan

OWNER = "owner.json"
"""The owner record of the job that writes to the folder. A job that ends early may leave nothing else."""


def admit(config: ScoreConfig, model_digest: str) -> Plan | None:
    """The plan of the job that the output folder holds, to continue it; None if a new job may start. Writes nothing.

    Raises OutputError if the folder holds something that this job may not continue or replace.
    """
    out = config.out
    held = [name for name in storage.names(out) if not name.startswith(".") and name not in (OWNER, SHARDS)]
    if not held:
        return None
    if PLAN not in held and (config.resume or config.extend or config.overwrite):
        raise OutputError(f"{out}: holds other files and no scoring job to resume, extend or overwrite; give another --out")
    if config.overwrite:
        return None
    if not (config.resume or config.extend):
        raise OutputError(
            f"{out}: is not empty; give --resume to continue its job, --extend to add new inputs, "
            "--overwrite to replace it, or another --out"
        )
    plan = load_plan(out)
    wanted = {**config.identity(), "model": model_digest, "shard": config.shard}
    found = {**plan.request, "model": plan.model_digest, "shard": plan.shard}
    if other := [f"{name} {found.get(name)} -> {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]:
        raise OutputError(f"{out}: holds another job ({'; '.join(other)}); give another --out, or --overwrite")
    return plan


def begin(plan: Plan, out: str, *, replace: bool) -> None:
    """Write the plan's record before anything else of the job. Raises StorageError.

    First delete the commit record, the summary, the report and the files of a plan that was never completed. With `replace`,
    also delete the tables that the folder may hold. Their plan is replaced last: until then, --overwrite can start again.
    """
    for name in (COMMIT, SUMMARY, REPORT, REPORT_FACTS, *((CHANGES, IGNORED, PREDICTIONS, QUARANTINE) if replace else ())):
        storage.delete(storage.join(out, name))
    for name in storage.names(storage.join(out, FOLDER)):
        if name not in plan.parts:
            storage.delete(storage.join(out, FOLDER, name))
    plan.save(out)
