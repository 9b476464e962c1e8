"""The scoring job: from a ScoreConfig to a prediction table."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from mnist_ray.artifact import seal
from mnist_ray.cluster import runtime
from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.errors import DataError, OutputError
from mnist_ray.flags import scoring_pool
from mnist_ray.run import processes
from mnist_ray.run.clock import Clock
from mnist_ray.run.owner import Owner, owning
from mnist_ray.scoring.admit import admit, begin
from mnist_ray.scoring.commit import commit
from mnist_ray.scoring.job import Job, Tally, UnitResult
from mnist_ray.scoring.parts import finished_units, sweep
from mnist_ray.scoring.plan import Plan
from mnist_ray.scoring.planner import Planner

SMALL_JOB = 200_000
"""Inputs up to which `--workers auto` scores without Ray. They take seconds, and Ray takes ten to start."""


def score(config: ScoreConfig, console: Console) -> dict[str, Any]:
    """Run a scoring job, or continue it, to its commit record, and return its summary. Raises MnistRayError."""
    clock = Clock()
    runtime.warn_of_lost_output(config.out, console)
    config = replace(config, inputs=tuple(storage.absolute(item) for item in config.inputs), out=storage.absolute(config.out))
    bundle = seal.find(config.model)
    _, digest = seal.read(bundle)

    held = admit(config, digest)
    plan = held or Plan(config.identity(), digest)
    finished = finished_units(config.out, plan.job_id) if held else {}
    planner = Planner(config, plan, finished)
    job = Job.of(planner.plan, config.out)
    if finished:
        console.line(f"{len(finished):,} units are done already")

    with _engine(config, planner, job, bundle) as (workers, results), owning(config.out) as owner:
        if admit(config, digest) != held:
            raise OutputError(f"{config.out}: another job has written here meanwhile; check what it holds, then start again")
        if planner.planning:
            begin(planner.plan, config.out, replace=held is None)
        clock.ready()
        tally = _score(results, planner, sum(unit.inputs for unit in finished.values()), clock, owner, console)

        plan = planner.complete()
        planned = {ref.id for ref in plan.refs(config.out)}
        sweep(config.out, planned)
        for unit in planned & finished.keys():
            tally.add(finished[unit])
        summary = commit(plan, job, tally, {**clock.report(tally.total.seconds, workers), **planner.changes})
    if not summary["predicted"]:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in summary["reasons"].items())
        raise DataError(
            f"{config.out}: none of {summary['inputs']:,} inputs could be scored ({reasons}); {config.out}/quarantine says why"
        )
    return summary


@contextmanager
def _engine(config: ScoreConfig, planner: Planner, job: Job, bundle: str) -> Iterator[tuple[int, Generator[UnitResult]]]:
    """The number of workers and the results of the units. Planning and scoring begin with the first result that is asked for.

    The workers are processes of this machine, or actors of a Ray cluster that has room for them. Nothing is started if nothing
    is to be done.
    """
    fewest, most = scoring_pool(config.workers)
    small = config.workers == "auto" and not config.address and planner.at_most(SMALL_JOB)
    if planner.at_most(0):
        yield 0, _nothing()
    elif most == 0 or small:
        with processes.scoring(planner.pending(), job, bundle, config.device) as results:
            yield processes.cores(), results
    else:
        with runtime.cluster(config.address):
            from mnist_ray.cluster import actors

            pool = (fewest, most) if most > 0 else (runtime.size(config.device),) * 2
            needs = runtime.resources(*pool, config.device)
            yield pool[1], actors.stream(planner, job, bundle, pool, needs)


def _nothing() -> Generator[UnitResult]:
    yield from ()


def _score(results: Generator[UnitResult], planner: Planner, done: int, clock: Clock, owner: Owner, console: Console) -> Tally:
    """Count the results of the units. `done` is the number of inputs that an earlier start of the job has scored."""
    tally = Tally()
    with closing(results):
        for result in results:
            if tally.add(result):
                clock.scored(result)
                _show(planner.plan, done + tally.total.inputs, clock, console)
            owner.require()
            owner.raise_if_stopped("run again with --resume to score the rest")
    return tally


def _show(plan: Plan, done: int, clock: Clock, console: Console) -> None:
    share = f"{done / plan.num_inputs:4.0%}  {done:,} of {plan.num_inputs:,}" if plan.complete else f"{done:,}"
    console.progress(f"scoring {share} inputs  {clock.images_per_second():,.0f} images/s")
