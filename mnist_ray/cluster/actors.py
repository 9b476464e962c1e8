"""Scoring on Ray: units stream from the plan in the output folder through a pool of actors; only receipts come back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.exceptions import ExecutionTimeoutError
from ray.util.metrics import Counter

from mnist_ray.cluster import runtime
from mnist_ray.data import storage
from mnist_ray.errors import ClusterError, MnistRayError, first_line, from_status
from mnist_ray.run.processes import predictor
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.plan import FOLDER, UnitRef, load_plan, load_unit, part_refs
from mnist_ray.scoring.todo import Todo
from mnist_ray.scoring.unit import score_unit

STALLED_S = 900
"""Seconds without any progress after which Ray Data gives a job up."""
LOOK_S = 0.5
"""Seconds between two looks at a plan that is still being made."""
AHEAD = 2
"""Units that an actor has: the one it scores, and the next."""
RAY_EXTENSIONS = (
    "ray.data.arrow_pickled_object",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
)
"""Types that Ray registers with pyarrow. Where they are registered, reading a file may run code that the file names.

They are unregistered in every process that imports this module, so that files are read as they are without Ray.
"""
for _name in RAY_EXTENSIONS:
    with suppress(KeyError):
        pa.unregister_extension_type(_name)

Row = dict[str, Any]


def _failed(error: MnistRayError) -> Row:
    """An error of ours as plain values: of an exception Ray Data hands on the text alone."""
    return {"result": str(error), "status": error.exit_status}


def _follow(out: str, skip: frozenset[str]) -> Iterator[pa.Table]:
    """The units of a plan but for some, one row each, while others still write the plan."""
    seen: set[str] = set()
    while True:
        plan = load_plan(out)  # before the parts are listed: of a complete plan they are then all there
        for part in storage.names(storage.join(out, FOLDER)):
            if part not in seen and not part.startswith("."):
                seen.add(part)
                todo = [asdict(ref) for ref in part_refs(out, part) if ref.id not in skip]
                yield from (pa.table({name: [value] for name, value in row.items()}) for row in todo)
        if plan.complete or plan.failed:
            return
        time.sleep(LOOK_S)


class PlannedUnits(Datasource):
    """The units of the plan in an output folder. They are read where this program runs: there the folder is."""

    def __init__(self, out: str, skip: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read = partial(_follow, out, skip)

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(self, *_: object, **__: object) -> list[ReadTask]:
        """One: it streams."""
        return [ReadTask(self._read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]


class _Metrics:
    """What an actor has done, for Prometheus: Ray exports it with its own metrics."""

    def __init__(self) -> None:
        self._images = Counter("mnist_ray_score_images", "Images predicted.")
        self._rejected = Counter("mnist_ray_score_rejected", "Inputs quarantined.", tag_keys=("reason",))
        self._bytes = Counter("mnist_ray_score_bytes", "Bytes of inputs read.")
        self._seconds = Counter("mnist_ray_score_seconds", "Seconds of work.", tag_keys=("stage",))

    def add(self, result: UnitResult) -> None:
        """Count a unit. Ray refuses an increment of zero."""
        for counter, value in ((self._images, result.predicted), (self._bytes, result.input_bytes)):
            if value:
                counter.inc(value)
        for reason, count in result.reasons.items():
            self._rejected.inc(count, {"reason": reason})
        for stage, seconds in result.seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})


class Actor:
    """A scoring worker: it loads and tests the model once, and then scores one unit per call."""

    def __init__(self, job: Job, bundle: str, device: str) -> None:
        self._job, self._metrics = job, _Metrics()
        self._failure: MnistRayError | None = None
        try:
            self._predict = predictor(bundle, device)
        except MnistRayError as error:
            self._failure = error

    def __call__(self, row: Row) -> Row:
        """The result of the unit of this row."""
        try:
            if self._failure:
                raise self._failure
            result = score_unit(load_unit(self._job.out, UnitRef(**row)), self._job, self._predict)
            self._metrics.add(result)
            return {"result": result.to_json(), "status": 0}
        except MnistRayError as error:
            return _failed(error)


def stream(todo: Todo, bundle: str, pool: tuple[int, int], needs: dict[str, float]) -> Iterator[UnitResult]:
    """Score units in a pool of actors. Ray replaces lost actors and does their unit again, which overwrites itself."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = STALLED_S
    context.target_max_block_size = 1  # every unit in a block of its own: a task each, as soon as it is planned
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach the user as ours
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    planned = PlannedUnits(todo.job.out, todo.skip)
    units = ray.data.read_datasource(planned, num_cpus=0, label_selector=here, override_num_blocks=1)
    results = units.map(
        Actor,
        fn_constructor_args=(todo.job, bundle, runtime.granted_device(needs)),
        num_cpus=needs["CPU"],
        num_gpus=needs.get("GPU", 0),
        compute=ray.data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1], max_tasks_in_flight_per_actor=AHEAD),
    )
    with _Planning(todo):
        try:
            for row in results.iter_rows():
                if row["status"]:
                    raise from_status(row["status"], row["result"])
                yield UnitResult.from_json(row["result"])
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            why = first_line(error)
            raise ClusterError(f"scoring stopped: {why}; run again with --resume to score the rest") from error


class _Planning(threading.Thread):
    """Lists the inputs and plans, while units that are planned are scored."""

    def __init__(self, todo: Todo) -> None:
        super().__init__(daemon=True)
        self._todo, self._over = todo, False
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in self._todo.refs():
                if self._over:
                    return
        except BaseException as error:
            self._error = error
            with suppress(MnistRayError):
                replace(self._todo.plan, failed=first_line(error)).save(self._todo.job.out)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._over = error is not None
        self.join()
        if self._error and not error:
            raise self._error
