"""Scoring on Ray: the units of the plan stream through a pool of actors, and only their results come back."""

import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.exceptions import ExecutionTimeoutError
from ray.util.metrics import Counter

from mnist_ray.cluster.alone import without_helpers
from mnist_ray.cluster.capacity import granted_device
from mnist_ray.cluster.watch import watching
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.errors import ClusterError, MnistRayError, first_line, from_status
from mnist_ray.run.ahead import ahead
from mnist_ray.run.lean import leave_compiler_out
from mnist_ray.run.owner import require_visible
from mnist_ray.run.probe import crashing_inputs
from mnist_ray.run.processes import TICK_S, predictor, score_ref
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.plan import FOLDER, UnitRef, load_plan, part_refs
from mnist_ray.scoring.planner import Planner

STALLED_S = 900
"""Seconds without progress after which Ray Data gives up a job."""
POLL_S = 0.5
"""Seconds between two looks at a plan that is not complete yet."""
TASKS_PER_ACTOR = 4
"""Most units sent to an actor: the one that it scores, and the next ones. Sending one takes longer than scoring a small one."""
FEW_TASKS = 2
"""The same if fewer than two such rounds are to be scored: the first actors to start would otherwise take all units."""
MOST_TRIES = 3
"""Number of times that a unit may end an actor that has found no input to blame."""
END_S = 5.0
"""Most seconds to wait until Ray Data has ended its threads when a job stops early. It takes less than a second."""
_GO_ON = "run again with --resume to score the rest"
_LOST_NODE = "units that its actors had not finished are scored again by others"
RAY_EXTENSIONS = (
    "ray.data.arrow_pickled_object",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
)
"""Types that Ray registers with pyarrow. While they are registered, reading a file may run code that the file contains.

They are unregistered in every process that imports this module, so that files are read as they are without Ray.
"""
for _name in RAY_EXTENSIONS:
    with suppress(KeyError):
        pa.unregister_extension_type(_name)


def _follow(out: str, skip: frozenset[str]) -> Iterator[pa.Table]:
    """The units of a plan, one row each, except those in `skip`. The plan may still be growing."""
    seen: set[str] = set()
    while True:
        plan = load_plan(out)  # before the files are listed: those of a complete plan are then all visible
        for part in storage.names(storage.join(out, FOLDER)):
            if part not in seen and not part.startswith("."):
                seen.add(part)
                yield from (pa.Table.from_pylist([asdict(ref)]) for ref in part_refs(out, part) if ref.id not in skip)
        if plan.complete or plan.failed:
            return
        time.sleep(POLL_S)


class PlannedUnits(Datasource):
    """The units of the plan in an output folder. The driver's node reads them: it sees the folder."""

    def __init__(self, out: str, skip: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read = partial(_follow, out, skip)

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(self, *_: object, **__: object) -> list[ReadTask]:
        """One task, which streams."""
        return [ReadTask(self._read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]


class _Metrics:
    """The work of an actor as Ray metrics, which Prometheus can scrape."""

    def __init__(self) -> None:
        self._images = Counter("mnist_ray_score_images", "Images predicted.")
        self._rejected = Counter("mnist_ray_score_rejected", "Inputs quarantined.", tag_keys=("reason",))
        self._bytes = Counter("mnist_ray_score_bytes", "Bytes of inputs read.")
        self._seconds = Counter("mnist_ray_score_seconds", "Seconds of work.", tag_keys=("stage",))

    def add(self, result: UnitResult) -> None:
        """Add a unit. Ray refuses an increment of zero."""
        for counter, value in ((self._images, result.predicted), (self._bytes, result.input_bytes)):
            if value:
                counter.inc(value)
        for reason, count in result.reasons.items():
            self._rejected.inc(count, {"reason": reason})
        for stage, seconds in result.seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})


class Actor:
    """A scoring worker. It loads and tests the model once, and then scores one unit per call.

    Our own errors are returned as plain values, because Ray Data passes on only the text of an exception.
    """

    def __init__(self, job: Job, bundle: str, device: str) -> None:
        self._job, self._bundle, self._device, self._metrics = job, bundle, device, _Metrics()
        self._sees_output = False
        reconstructed = ray.get_runtime_context().was_current_actor_reconstructed
        self._suspects = TASKS_PER_ACTOR if reconstructed else 0
        """Units that may have ended the process of this actor before."""
        leave_compiler_out()
        with suppress(MnistRayError):  # the first unit reports it
            predictor(bundle, device, job.precision)
        gc.freeze()  # else Python looks for garbage among all modules, while it runs and for a second when it ends

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The result of the unit that this row names, or an error."""
        try:
            if not self._sees_output:
                require_visible(self._job.out, self._job.token)
                self._sees_output = True
            result = self._score(UnitRef(**row))
            self._metrics.add(result)
            return {"result": result.to_json(), "status": 0}
        except MnistRayError as error:
            return {"result": str(error), "status": error.exit_status}

    def _score(self, ref: UnitRef) -> UnitResult:
        """Score a unit; one that may have ended this process before, without the inputs that end a process."""
        if not self._suspects:
            return score_ref(ref, self._job, self._bundle, self._device)
        self._suspects -= 1
        marker = Path(tempfile.gettempdir(), f"mnist_ray-{self._job.token}-{ref.id}")
        tried = marker.read_text() if marker.exists() else ""
        if len(tried) >= MOST_TRIES:
            raise ClusterError(f"unit {ref.id} ends every process that scores it, or memory runs out; run again with --resume")
        marker.write_text(tried + "x")
        result = score_ref(ref, self._job, self._bundle, self._device, crashing_inputs(self._job.out, ref))
        marker.unlink(missing_ok=True)
        return result


def stream(
    planner: Planner, job: Job, bundle: str, pool: tuple[int, int], needs: dict[str, float], console: Console, *, alone: bool
) -> Generator[UnitResult | None]:
    """Plan the inputs and score the units in a pool of actors. Ray replaces a lost actor and scores its unit again.

    Yields each result as soon as it is there, and None after `TICK_S` without one. `pool` is the smallest and the largest
    number of actors, `needs` the resources of each, and `alone` says that the cluster was started for this job. Raises
    MnistRayError.
    """
    console.progress("starting the actors")
    results = _results(planner, job, bundle, pool, needs)
    helpers = without_helpers() if alone else nullcontext()
    with helpers, ThreadPoolExecutor(1, "planner") as thread, watching(console, _LOST_NODE) as cluster:
        planning = thread.submit(_plan, planner)
        try:
            # It waits for its thread: Ray ends a process in which a thread uses Ray after its shutdown, without a message.
            with closing(ahead(results.iter_rows(), TICK_S, _ending(results), END_S)) as rows:
                for row in rows:
                    if row is None:
                        cluster.require(_GO_ON)
                        yield None
                        continue
                    if row["status"]:
                        raise from_status(row["status"], row["result"])
                    cluster.moved()
                    yield UnitResult.from_json(row["result"])
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            if isinstance(cause := getattr(error, "cause", None), MnistRayError):  # the plan could not be read
                raise type(cause)(first_line(cause)) from None
            raise ClusterError(f"scoring stopped: {first_line(error)}; {_GO_ON}") from error
        finally:
            planner.stop()
        planning.result()


class _EndedError(Exception):
    """Ends an execution of Ray Data."""


def _ending(dataset: ray.data.Dataset) -> Callable[[], None]:
    """A function that ends the execution of a dataset: its next step fails, and Ray Data then ends its threads itself.

    Ray Data has no function for this until the first row is there. With a Ray that has no such callbacks, nothing is ended.
    """
    try:
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        callbacks = dataset.context.custom_execution_callback_classes
    except (ImportError, AttributeError):
        return lambda: None

    class Ending(ExecutionCallback):
        asked = False  # not an event: Ray Data sends this class to the actors, with the other settings of the dataset

        def on_execution_step(self, _: object) -> None:
            if Ending.asked:
                raise _EndedError

    callbacks.append(Ending)
    return lambda: setattr(Ending, "asked", True)


def _results(planner: Planner, job: Job, bundle: str, pool: tuple[int, int], needs: dict[str, float]) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = STALLED_S
    context.target_max_block_size = 1  # a block, and so a task, for each unit: it starts as soon as it is planned
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach the user as ours
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)  # a small job leaves some idle
    units = _units(planner, job)
    in_flight = FEW_TASKS if planner.all_known and len(planner.units) < 2 * TASKS_PER_ACTOR * pool[1] else TASKS_PER_ACTOR
    results: ray.data.Dataset = units.map(
        Actor,  # type: ignore[arg-type]
        fn_constructor_args=(job, bundle, granted_device(needs)),
        num_cpus=needs["CPU"],
        num_gpus=needs.get("GPU", 0),
        compute=ray.data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1], max_tasks_in_flight_per_actor=in_flight),
    )
    return results


def _units(planner: Planner, job: Job) -> ray.data.Dataset:
    """The units to be scored, one row each. Unless all are known, a task reads them from the plan while it grows."""
    if planner.all_known:  # so that Ray need not start a process for the task
        rows = [asdict(ref) for ref in sorted(planner.pending(), key=lambda ref: -ref.num_inputs)]  # small ones end together
        return ray.data.from_items(rows, override_num_blocks=len(rows))
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    units: ray.data.Dataset = ray.data.read_datasource(
        PlannedUnits(job.out, planner.skip), num_cpus=0, label_selector=here, override_num_blocks=1
    )
    return units


def _plan(planner: Planner) -> None:
    """Plan all inputs, in a thread, while the actors score what is planned."""
    try:
        for _ in planner.pending():
            pass
        if not planner.stopped:
            planner.complete()
    except BaseException as error:
        with suppress(MnistRayError):
            planner.fail(first_line(error))
        raise
