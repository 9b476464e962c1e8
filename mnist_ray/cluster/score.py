"""A ScoreConfig to a prediction table: units scored in this process, or streamed through Ray Data actors."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa

import mnist_ray
from mnist_ray.artifact import seal
from mnist_ray.cluster import runtime
from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.data.predictions import Predict
from mnist_ray.errors import ClusterError, MnistRayError, first_line, from_status
from mnist_ray.scoring.commit import begin, commit, finished_units, held_plan
from mnist_ray.scoring.inputs import list_inputs
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.plan import WorkUnit, make_plan
from mnist_ray.scoring.unit import score_unit

STALLED_S = 900
"""Seconds without any progress after which Ray Data gives a job up."""


RAY_TENSORS = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "ray.data.arrow_variable_shaped_tensor")
"""Ray's extension types. Inputs are read through their storage, as they are without Ray."""


def score(config: ScoreConfig, console: Console) -> dict[str, Any]:
    """Run a scoring job, or continue it, to its commit record, and return its summary. Raises MnistRayError."""
    started = time.perf_counter()
    runtime.warn_of_lost_output(config.out, console)
    config = replace(config, inputs=tuple(storage.absolute(item) for item in config.inputs), out=storage.absolute(config.out))
    bundle = seal.find(config.model)
    _, digest = seal.read(bundle)
    held = held_plan(config, config.out, digest)
    plan = held or make_plan(list_inputs(config.inputs, config.truth_column, config.out), config, digest)
    version = mnist_ray.__version__
    job = Job(config.out, config.image_column, config.truth_column, plan.kept, plan.fingerprint, digest, version)
    done = finished_units(job) if held else {}
    todo = [unit for unit in plan.units() if unit.id not in done]
    already = f", {len(done):,} of them done already" if done else ""
    console.line(f"{plan.num_inputs:,} inputs in {len(done) + len(todo):,} units{already}")
    seconds = {"plan": time.perf_counter() - started}
    before = count = sum(result.predicted + result.quarantined for result in done.values())
    with _workers(todo, job, bundle, config) as results:
        if not held:  # only now: whatever refuses a job leaves the output folder as it was
            begin(plan, config.out)
        for result in results:
            seconds.setdefault("first_unit", time.perf_counter() - started)
            if result.unit not in done:  # Ray may do a unit twice when an actor is lost: its part is the same
                count += result.predicted + result.quarantined
            done[result.unit] = result
            speed = (count - before) / (time.perf_counter() - started)
            share = f"{count / plan.num_inputs:4.0%}  {count:,} of {plan.num_inputs:,} inputs"
            console.progress(f"scoring {share}  {speed:,.0f} images/s")
    seconds["total"] = time.perf_counter() - started
    return commit(plan, job, list(done.values()), seconds, count - before)


@contextmanager
def _workers(todo: list[WorkUnit], job: Job, bundle: str, config: ScoreConfig) -> Iterator[Iterator[UnitResult]]:
    """What scores the units, ready to begin: this process, or a Ray cluster that has room for the actors."""
    if not todo:
        yield iter(())
    elif config.workers == 0:
        predict = _predictor(bundle, config.device)
        yield (score_unit(unit, job, predict) for unit in todo)
    else:
        with runtime.cluster(config.address):
            workers = min(config.workers, len(todo))
            yield _stream(todo, job, bundle, workers, runtime.resources(workers, workers, config.device))


def _predictor(bundle: str, device: str) -> Predict:
    from mnist_ray.artifact.bundle import load
    from mnist_ray.artifact.predictor import Predictor, pick_device

    return Predictor.ready(load(bundle), pick_device(device))


class _Actor:
    """A scoring worker: it loads and tests the model once, and then scores one unit per call."""

    def __init__(self, job: Job, bundle: str, device: str) -> None:
        for name in RAY_TENSORS:  # else Ray parses what a file's metadata says of such a column, and fails on other versions'
            with suppress(KeyError):
                pa.unregister_extension_type(name)
        self._job = job
        self._failure: MnistRayError | None = None
        try:
            self._predict = _predictor(bundle, device)
        except MnistRayError as error:
            self._failure = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The unit's result, or an error of ours as plain values: of an exception Ray Data hands on the text alone."""
        unit = WorkUnit(row["unit"], pa.ipc.open_stream(row["rows"]).read_all())
        try:
            if self._failure:
                raise self._failure
            return {"result": score_unit(unit, self._job, self._predict).to_json(), "status": 0}
        except MnistRayError as error:
            return {"result": str(error), "status": error.exit_status}


def _packed(unit: WorkUnit) -> dict[str, Any]:
    """A unit as one row of plain values: its id, and its rows of the plan as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, unit.rows.schema) as stream:
        stream.write_table(unit.rows)
    return {"unit": unit.id, "rows": sink.getvalue().to_pybytes()}


def _stream(todo: list[WorkUnit], job: Job, bundle: str, workers: int, needs: dict[str, float]) -> Iterator[UnitResult]:
    """Stream units through an actor pool. Ray replaces lost actors and does their unit again, which overwrites itself."""
    import ray.data
    from ray.data.exceptions import ExecutionTimeoutError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach the user as ours
    context.execution_no_progress_timeout_s = STALLED_S
    units = ray.data.from_items([_packed(unit) for unit in todo], override_num_blocks=len(todo))
    results = units.map(
        _Actor,  # type: ignore[arg-type]  # Ray's annotation leaves callable classes out
        fn_constructor_args=(job, bundle, runtime.granted_device(needs)),
        num_cpus=needs["CPU"],
        num_gpus=needs.get("GPU", 0),
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    try:
        for row in results.iter_rows():
            if row["status"]:
                raise from_status(row["status"], row["result"])
            yield UnitResult.from_json(row["result"])
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        why = first_line(error)
        raise ClusterError(f"scoring stopped: {why}; run again with --resume to score the rest") from error
