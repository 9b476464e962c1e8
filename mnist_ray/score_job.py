"""The scoring job: from a ScoreConfig to a prediction table."""

import json
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from mnist_ray import engines
from mnist_ray.artifact import seal
from mnist_ray.config import CommitConfig, ScoreConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.data.digits import CLASSES
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
from mnist_ray.flags import most_quarantined, output_folder, share, table_path
from mnist_ray.run import processes
from mnist_ray.run.clock import Clock
from mnist_ray.run.lean import few_objects_to_collect
from mnist_ray.run.owner import Owner, owning, require_free
from mnist_ray.scoring.admit import admit, begin
from mnist_ray.scoring.commit import REPORT, SUMMARY, commit
from mnist_ray.scoring.estimate import Estimate, Inventory
from mnist_ray.scoring.job import Job, Tally, UnitResult
from mnist_ray.scoring.parts import PREDICTIONS, QUARANTINE, finished_units, require_parts_alone, sweep
from mnist_ray.scoring.plan import PLAN, Plan
from mnist_ray.scoring.planner import Planner
from mnist_ray.scoring.shards import copy_parts, load_shards, require_parts, write_plan


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
    if held:
        require_parts_alone(config.out)
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
    engine = engines.start(config, planner, job, bundle, console)
    with _resumable(), engine as (workers, results), owning(owner):
        if admit(config, digest) != held:
            raise OutputError(f"{config.out}: another job has written here meanwhile; check what it holds, then start again")
        if planner.planning:
            begin(planner.plan, config.out, replace=held is None)
        clock.ready()
        with few_objects_to_collect():
            tally = _score(results, planner, clock, owner, config, console)
            plan = planner.complete()
        for unit in planner.units.keys() & finished:
            tally.add(finished[unit])
        sweep(config.out, {unit: quarantined for unit, (_, quarantined) in tally.parts.items()})
        about = {**clock.report(tally.total.seconds, workers), **planner.changes, "model": bundle}
        summary = commit(plan, planner.units, job, tally, {**about, "drift": _drift(tally.total, card)})
        _report(config, summary, card, console)
    if config.truth not in ("auto", "none") and summary["predicted"] and not summary["with_truth"]:
        classes = ", ".join(CLASSES)
        console.warning(f"--truth {config.truth}: no input has a class there ({classes}), so the table has no accuracy")
    _require_predictions(config, summary)
    return summary


def commit_shards(config: CommitConfig, console: Console) -> dict[str, Any]:
    """Make one table of the shards in an output folder, and return its summary. Raises MnistRayError."""
    clock = Clock()
    out = storage.absolute(output_folder(config.out))
    console.progress("reading the plans of the shards")
    shards = load_shards(out)
    if not config.overwrite and {PLAN, PREDICTIONS, QUARANTINE} & set(storage.names(out)):
        raise OutputError(f"{out}: holds a table already; give --overwrite to replace it by that of the shards")
    if config.overwrite:
        require_parts(shards)  # before the table is deleted that they replace
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


@contextmanager
def _resumable() -> Iterator[None]:
    """Add to a StorageError how to continue."""
    try:
        yield
    except StorageError as error:
        raise error if "--resume" in str(error) else StorageError(f"{error}; run again with --resume") from None


def estimate(config: ScoreConfig, console: Console) -> Estimate:
    """What `score` would do with the same configuration: its inputs, workers, time and cost.

    Writes nothing. Lists all inputs and scores a sample of them in this process. Raises MnistRayError in the cases in which
    `score` would not start.
    """
    config, bundle, _, _, _, _, planner, _, job = _prepare(config, console)
    require_free(config.out)
    began = time.perf_counter()
    here = engines.without_ray(config, planner)
    inventory = Inventory(seconds=time.perf_counter() - began)
    workers = engines.workers(config, here, console)
    console.progress("loading the model")
    predict = processes.predictor(bundle, config.device if here else "auto", config.precision)
    with few_objects_to_collect():
        for inputs in inventory.count(planner.preview()):
            console.progress("listing", detail=f"{inputs:,} inputs", inputs=inputs)
    console.progress("scoring a sample")
    inventory.score_sample(job, predict)
    return Estimate(inventory, planner.ignored, workers, config.price_per_node_hour)


def _score(
    results: Generator[UnitResult | None],
    planner: Planner,
    clock: Clock,
    owner: Owner,
    config: ScoreConfig,
    console: Console,
) -> Tally:
    """Count the results of the units; None among them says that none came for a while."""
    tally = Tally()
    with closing(results):
        for result in results:
            if result and tally.add(result):
                clock.scored(result)
                done, quarantined = planner.done + tally.total.inputs, planner.quarantined + tally.total.quarantined
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
