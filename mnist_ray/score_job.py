"""The scoring job: from a ScoreConfig to a prediction table."""

import gc
import json
import os
import threading
import time
from collections.abc import Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from mnist_ray.artifact import seal
from mnist_ray.cluster import capacity, runtime
from mnist_ray.config import CommitConfig, ScoreConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.data.measures import review_below
from mnist_ray.data.traits import CONFIDENCE, compare_traits
from mnist_ray.errors import (
    MnistRayError,
    ModelError,
    NothingScoredError,
    OutputError,
    QuarantineError,
    StorageError,
    UsageError,
    first_line,
)
from mnist_ray.flags import most_quarantined, output_path, scoring_pool, share, table_path
from mnist_ray.run import forkserver, processes
from mnist_ray.run.clock import Clock
from mnist_ray.run.owner import Owner, owning, require_free
from mnist_ray.scoring.admit import admit, begin
from mnist_ray.scoring.commit import REPORT, SUMMARY, commit
from mnist_ray.scoring.estimate import Estimate, Inventory, Workers
from mnist_ray.scoring.job import Job, Tally, UnitResult
from mnist_ray.scoring.parts import PREDICTIONS, QUARANTINE, finished_units, sweep
from mnist_ray.scoring.plan import PLAN, Plan
from mnist_ray.scoring.planner import Planner
from mnist_ray.scoring.shards import copy_parts, load_shards, write_plan

SMALL_JOB = 200_000
"""Inputs up to which `--workers auto` scores without Ray. They take seconds, and Ray takes ten to start."""


LOOK_AHEAD_S, RAY_LOOK_AHEAD_S = 1.0, 3.0
"""Most seconds of listing while PyTorch is imported, and while Ray starts. Both take longer than that."""


class _Start(NamedTuple):
    """A job that has written nothing yet."""

    config: ScoreConfig
    bundle: str
    digest: str
    card: dict[str, Any]
    """The description in the bundle."""
    held: Plan | None
    """The plan in the output folder, if the job continues."""
    finished: dict[str, UnitResult]
    planner: Planner
    owner: Owner
    job: Job


def _prepare(config: ScoreConfig, console: Console) -> _Start:
    """Check the model and the output folder, and list the first inputs. Writes nothing. Raises MnistRayError."""
    out = storage.absolute(table_path(config.out, config.shard))
    config = replace(config, inputs=tuple(storage.absolute(item) for item in config.inputs), out=out)
    bundle = seal.find(config.model)
    files, digest = seal.read(bundle)

    held = admit(config, digest)
    card = json.loads(files["card.json"])
    plan = held or Plan(config.identity(), digest, review_below=_review_below(config, card), shard=config.shard)
    owner = Owner(config.out)
    finished = {unit.unit: unit for unit in finished_units(Job.of(plan, config.out))} if held else {}
    planner = Planner(config, plan, finished)
    if finished:
        inputs = sum(unit.inputs for unit in finished.values())
        console.line(
            f"continuing: {len(finished):,} units are done already, with {inputs:,} inputs",
            "resumed",
            units=len(finished),
            inputs=inputs,
        )
    job = Job.of(planner.plan, config.out, owner.token)
    return _Start(config, bundle, digest, card, held, finished, planner, owner, job)


def _review_below(config: ScoreConfig, card: dict[str, Any]) -> float | None:
    """The confidence up to which predictions need a review; None without `--target-error`. Raises UsageError."""
    if not config.target_error:
        return None
    held = card.get("confidence", {"mistakes": [], "num_images": 0})
    target = share("--target-error", config.target_error)
    found = review_below(held["mistakes"], held["num_images"], target)
    if found is None:
        raise UsageError(
            f"--target-error {config.target_error}: the {held['num_images']:,} held-out digits of {config.model} with their "
            f"{len(held['mistakes']):,} mistakes cannot show it; give a larger share, or a model with more test digits"
        )
    return found


def score(config: ScoreConfig, console: Console) -> dict[str, Any]:
    """Run a scoring job, or continue it, to its commit record, and return its summary. Raises MnistRayError."""
    clock = Clock()
    console.progress("listing inputs")
    config, bundle, digest, card, held, finished, planner, owner, job = _prepare(config, console)
    engine = _engine(config, planner, job, bundle, console)
    with _resumable(), engine as (workers, results), owning(owner):
        if admit(config, digest) != held:
            raise OutputError(f"{config.out}: another job has written here meanwhile; check what it holds, then start again")
        if planner.planning:
            begin(planner.plan, config.out, replace=held is None)
        clock.ready()
        with _few_objects_to_collect():
            tally = _score(results, planner, finished.values(), clock, owner, config, console)
            plan = planner.complete()
        for unit in planner.units.keys() & finished:
            tally.add(finished[unit])
        sweep(config.out, {unit: quarantined for unit, (_, quarantined) in tally.parts.items()})
        about = {**clock.report(tally.total.seconds, workers), **planner.changes, "model": bundle}
        summary = commit(plan, planner.units, job, tally, {**about, "drift": _drift(tally.total, card)})
        _report(config, summary, card, console)
    _require_predictions(config, summary)
    return summary


def commit_shards(config: CommitConfig, console: Console) -> dict[str, Any]:
    """Make one table of the shards in an output folder, and return its summary. Raises MnistRayError."""
    clock = Clock()
    out = storage.absolute(output_path(config.out))
    console.progress("reading the plans of the shards")
    shards = load_shards(out)
    if not config.overwrite and {PLAN, PREDICTIONS, QUARANTINE} & set(storage.names(out)):
        raise OutputError(f"{out}: holds a table already; give --overwrite to replace it by that of the shards")
    with owning(Owner(out)) as owner:
        begin(replace(shards[0].plan, shard="", complete=False, parts={}), out, replace=True)
        plan, units = write_plan(shards, out)
        job, tally = Job.of(plan, out), Tally()
        for result in copy_parts(shards, out):
            tally.add(result)
            console.progress("copying", tally.total.inputs, plan.num_inputs, "images")
            owner.require()
            owner.raise_if_stopped("run again with --overwrite")
        model = storage.read_json(storage.join(shards[0].out, SUMMARY))["model"]
        card = _card(plan, model, console)
        about = {**clock.report({}, 0), "model": model, "drift": _drift(tally.total, card)}
        summary = commit(plan, units, job, tally, about)
        whole = ScoreConfig(**{**plan.request, "inputs": tuple(plan.request["inputs"])}, model=model, out=out)
        _report(whole, summary, card, console)
    _require_predictions(whole, summary)
    return summary


def _card(plan: Plan, bundle: str, console: Console) -> dict[str, Any]:
    """The description of the model that a plan names; empty, with a warning, if the bundle is gone or holds another model."""
    try:
        files, digest = seal.read(bundle)
        if digest != plan.model_digest:
            raise ModelError(f"{bundle}: holds another model now")
        return dict(json.loads(files["card.json"]))
    except MnistRayError as error:
        console.warning(f"there is no report: {error}")
        return {}


def _drift(total: UnitResult, card: dict[str, Any]) -> dict[str, Any]:
    """How the inputs differ from the digits of the model, whose histograms are in its card."""
    reference = card.get("reference", {})
    known = {CONFIDENCE: reference.get("confidences"), **reference.get("traits", {})}
    return compare_traits({CONFIDENCE: total.confidences, **total.traits}, known)


def _require_predictions(config: ScoreConfig, summary: dict[str, Any]) -> None:
    """Raise an error if a complete table has no prediction, or more quarantined inputs than allowed."""
    inputs, quarantined = summary["inputs"], summary["quarantined"]
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in summary["reasons"].items())
    why = f"({reasons}); {config.out}/quarantine says why"
    if inputs and not summary["predicted"]:
        raise NothingScoredError(f"{config.out}: none of {inputs:,} inputs could be scored {why}")
    if quarantined > most_quarantined(config.max_quarantined, inputs):
        raise QuarantineError(
            f"{config.out}: {quarantined:,} of {inputs:,} inputs are quarantined, more than --max-quarantined "
            f"{config.max_quarantined} allows {why}. The table is complete"
        )


def _require_few_quarantined(config: ScoreConfig, planner: Planner, done: int, quarantined: int) -> None:
    """Raise QuarantineError if too many of the `done` inputs are quarantined, and there are others to score."""
    known = planner.num_inputs if planner.listed else None
    if quarantined > most_quarantined(config.max_quarantined, known) and done != known:
        raise QuarantineError(
            f"{config.out}: {quarantined:,} of the first {done:,} inputs are quarantined, more than --max-quarantined "
            f"{config.max_quarantined} allows; {config.out}/quarantine says why. The other inputs are not scored: run again "
            "with --resume and a higher --max-quarantined to score them"
        )


def _report(config: ScoreConfig, summary: dict[str, Any], card: dict[str, Any], console: Console) -> None:
    """Write the report of a committed job, unless that of the same table is there, to read no images again for nothing.

    The table is complete, so whatever goes wrong is only a warning. Without the card of the model, there is no report.
    """
    if not card:
        return
    try:
        if summary["scored_now"] or not storage.is_file(storage.join(config.out, REPORT)):
            from mnist_ray.report.scoring import write_report

            write_report(config, summary, card)
        console.line(f"report: {storage.join(config.out, REPORT)}")
    except Exception as error:
        console.warning(f"the report could not be written: {type(error).__name__}: {first_line(error)}")


def _import_report() -> None:
    """Import what draws the report, while other processes load the model: matplotlib takes half a second."""
    with suppress(Exception):  # `_report` meets it again, and warns
        import mnist_ray.report.scoring  # noqa: F401


@contextmanager
def _resumable() -> Iterator[None]:
    """Add to a StorageError how to continue."""
    try:
        yield
    except StorageError as error:
        raise error if "--resume" in str(error) else StorageError(f"{error}; run again with --resume") from None


@contextmanager
def _few_objects_to_collect() -> Iterator[None]:
    """Keep the garbage collector from scanning all imported modules again and again, a third of the time of planning."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def estimate(config: ScoreConfig, console: Console) -> Estimate:
    """What `score` would do with the same configuration: its inputs, workers, time and cost.

    Writes nothing. Lists all inputs and scores a sample of them in this process. Raises MnistRayError in the cases in which
    `score` would not start.
    """
    config, bundle, _, _, _, _, planner, _, job = _prepare(config, console)
    require_free(config.out)
    began = time.perf_counter()
    here = _without_ray(config, planner)
    inventory = Inventory(seconds=time.perf_counter() - began)
    workers = _workers(config, here, console)
    console.progress("loading the model")
    predict = processes.predictor(bundle, config.device if here else "auto", config.precision)
    with _few_objects_to_collect():
        for inputs in inventory.count(planner.preview()):
            console.progress("listing", detail=f"{inputs:,} inputs", inputs=inputs)
    console.progress("scoring a sample")
    inventory.score_sample(job, predict)
    return Estimate(inventory, planner.ignored, workers, config.price_per_node_hour)


def _workers(config: ScoreConfig, here: bool, console: Console) -> Workers:
    """The workers that a job would have: processes of this machine, or actors of a cluster."""
    if here:
        cores = processes.cores()
        number = config.processes or cores
        return Workers(number, {"CPU": 1}, number, f"they are processes of this machine, which has {cores} CPUs")
    with runtime.cluster(config.address, console):
        (_, most), needs, has = _pool(config)
        return Workers(most, needs, capacity.per_node(needs), str(has))


def _without_ray(config: ScoreConfig, planner: Planner) -> bool:
    """Whether processes of this machine score the inputs. To know it, the first inputs may be listed."""
    cluster = config.address or os.environ.get("RAY_ADDRESS")
    small = config.workers == "auto" and not cluster and planner.at_most(SMALL_JOB)
    return small or scoring_pool(config.workers)[1] == 0


def _pool(config: ScoreConfig) -> tuple[tuple[int, int], dict[str, float], capacity.Capacity]:
    """The smallest and the largest number of actors of the connected cluster, the resources of each, and what is there."""
    has = capacity.capacity()
    fewest, most = scoring_pool(config.workers)
    gpus = config.gpus_per_actor or capacity.gpu_share(capacity.nodes())
    pool = (fewest, most) if most > 0 else (1, capacity.size(config.device, has, gpus))
    return pool, capacity.needs(pool[0], config.device, has, gpus=gpus), has


@contextmanager
def _engine(
    config: ScoreConfig, planner: Planner, job: Job, bundle: str, console: Console
) -> Iterator[tuple[int, Generator[UnitResult | None]]]:
    """The smallest number of workers, and the results. Planning and scoring begin with the first result that is asked for.

    The workers are processes of this machine, or actors of a Ray cluster that has room for them. Nothing is started if nothing
    is to be done.
    """
    if planner.at_most(0):
        yield 0, _nothing()
    elif _without_ray(config, planner):
        console.progress("loading the model")
        threading.Thread(target=_import_report).start()
        units, number, list_more = planner.pending(), config.processes, partial(planner.look_ahead, LOOK_AHEAD_S)
        with processes.scoring(units, job, bundle, config.device, number, console.warning, list_more) as results:
            yield number or processes.cores(), results
    else:
        forkserver.kill()  # it was started before it was known that Ray scores the inputs
        with ThreadPoolExecutor(1) as meanwhile:
            listed = meanwhile.submit(_prepare_for_ray, planner)
            with runtime.cluster(config.address, console) as alone:
                listed.result()
                from mnist_ray.cluster import actors

                pool, needs, _ = _pool(config)
                capacity.wait_for_room(pool[0], needs, console)
                meanwhile.submit(_import_report)
                yield pool[0], actors.stream(planner, job, bundle, pool, needs, console, alone=alone)


def _prepare_for_ray(planner: Planner) -> None:
    """What takes seconds and needs no cluster, while Ray starts. Raises MnistRayError for inputs that cannot be scored."""
    import mnist_ray.cluster.actors  # noqa: F401

    planner.look_ahead(RAY_LOOK_AHEAD_S)


def _nothing() -> Generator[UnitResult | None]:
    yield from ()


def _score(
    results: Generator[UnitResult | None],
    planner: Planner,
    earlier: Collection[UnitResult],
    clock: Clock,
    owner: Owner,
    config: ScoreConfig,
    console: Console,
) -> Tally:
    """Count the results of the units; None among them says that none came for a while.

    `earlier` are those that an earlier start of the job has scored.
    """
    tally = Tally()
    before = UnitResult("", sum(unit.predicted for unit in earlier), sum(unit.quarantined for unit in earlier))
    with closing(results):
        for result in results:
            if result and tally.add(result):
                clock.scored(result)
                done, quarantined = before.inputs + tally.total.inputs, before.quarantined + tally.total.quarantined
                _show(planner, done, quarantined, clock.images_per_second(), console)
                _require_few_quarantined(config, planner, done, quarantined)
            owner.require()
            owner.raise_if_stopped("run again with --resume to score the rest")
    return tally


def _show(planner: Planner, done: int, quarantined: int, rate: float, console: Console) -> None:
    detail = f"{quarantined:,} quarantined"
    growing = not planner.listed
    console.progress(
        "scoring", done, planner.num_inputs, "images", rate, detail, growing=growing, listing=growing, quarantined=quarantined
    )
