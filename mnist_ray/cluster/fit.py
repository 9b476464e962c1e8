"""A training run as a Ray Train job: one process per worker; lost workers are replaced, or the group shrinks."""

import os
import platform
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from mnist_ray.cluster import runtime
from mnist_ray.cluster.alone import run_controller
from mnist_ray.cluster.capacity import granted_device
from mnist_ray.cluster.watch import Watch, watching
from mnist_ray.config import TrainConfig
from mnist_ray.console import Console
from mnist_ray.data.digits import Splits
from mnist_ray.errors import ClusterError, DefectError, MnistRayError
from mnist_ray.flags import worker_range
from mnist_ray.learn.control import Meeting, PeersLostError, Request, RunControl
from mnist_ray.run import progress
from mnist_ray.run.lean import leave_compiler_out
from mnist_ray.run.owner import Owner, fenced, read, require_visible
from mnist_ray.run.worker import work

MAX_FAILURES = 10
"""Number of times that lost workers are replaced. Then the job ends; the same command continues it."""
POLL_S = 0.25
"""Seconds between two reads of the progress record by the driver."""
MONITOR_S = 0.5
"""Seconds between two reads of the owner record by rank 0."""
STOP_S = 15.0
"""Seconds without progress after which a job that was asked to stop ends: longer than all attempts to save take."""
END_S = 5.0
"""Most seconds to wait for the thread that runs Ray Train when a job ends early."""
_LOST_NODE = "its workers are replaced when there is room, and training goes on from the newest checkpoint"
GAUGES = {
    "loss": "Training loss of the last step, in nats per sample.",
    "samples_seen": "Training samples seen by the run.",
    "samples_per_second": "Training samples per second over the run.",
    "test_accuracy": "Share of the test digits predicted correctly after the last epoch.",
}
"""Ray metrics of rank 0. Prometheus scrapes them as `ray_mnist_ray_train_NAME`."""


def fit(
    config: TrainConfig, splits: Splits, needs: dict[str, float], owner: Owner, console: Console, *, owns_cluster: bool
) -> bool:
    """Train on Ray workers, and print their progress; returns whether the run ended, False if it was asked to stop.

    `needs` are the resources of each worker; `owns_cluster` says that the cluster ends with this job. Raises MnistRayError, and
    DefectError if a worker raised another exception.
    """
    launch = {"run": owner.run, "config": config, "token": owner.token, "device": granted_device(needs)}
    outcome: Future[bool] = Future()
    ended = threading.Event()

    def train() -> None:
        try:
            outcome.set_result(_run_workers(launch, splits, needs, ended if owns_cluster else None))
        except BaseException as error:
            outcome.set_exception(error)

    progress.clear(owner.run)
    console.progress("starting the workers")
    training = threading.Thread(target=train, daemon=True)  # in the main thread, Ray would install its own signal handlers
    training.start()
    try:
        with watching(console, _LOST_NODE) as cluster:
            if not _watch(outcome, config.workers, owner, console, cluster):
                return False
    finally:
        ended.set()
        fewest, most = worker_range(config.workers)
        if owns_cluster and fewest == most:  # the controller runs here; Ray ends a process that uses it after `ray.shutdown`
            training.join(END_S)
    try:
        return outcome.result()
    except Exception as error:
        final = getattr(error, "controller_failure", None)
        if isinstance(final, MnistRayError | DefectError):
            raise final from None
        raise ClusterError(
            f"training stopped: {runtime.cause(error)}; lost workers are replaced up to {MAX_FAILURES} times; "
            f"Ray's logs are in {runtime.logs_folder()} on each node; "
            f"run the same command again to continue from the newest checkpoint in {owner.run}"
        ) from error


def _watch(outcome: Future[bool], workers: str, owner: Owner, console: Console, cluster: Watch) -> bool:
    """Print the progress until there is an outcome; returns False if the job was asked to stop and no worker reacts.

    Raises OutputError if another job takes the directory over, and ClusterError if no worker makes progress.
    """
    printer, record, moved = progress.ProgressPrinter(console), None, time.monotonic()
    while not wait([outcome], POLL_S).done:
        if (now := progress.show(owner.run, printer)) != record:
            record, moved = now, time.monotonic()
            cluster.moved()
        owner.require()
        cluster.require(f"run the same command again to continue from the newest checkpoint in {owner.run}")
        still = time.monotonic() - moved
        if owner.signal is not None and still > STOP_S:  # no worker can save: all are lost, or have not started yet
            return False
        if still > runtime.START_S * runtime.STARTS:
            raise ClusterError(
                f"--workers {workers}: no worker has made progress for {still:.0f} s; check the cluster's nodes, "
                "then run the same command again"
            )
    progress.show(owner.run, printer)
    owner.require()
    return True


def _run_workers(launch: dict[str, Any], splits: Splits, needs: dict[str, float], ended: threading.Event | None) -> bool:
    """Run the Ray Train job; returns what `_worker` returned on rank 0.

    `ended` is set when the job ends, if the cluster ends with it.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    fewest, most = worker_range(launch["config"].workers)

    class Failures(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
            """End the job at once if another start would not help. Ray's controller does so if a callback raises."""
            if error := final_error(worker_exceptions.values()):
                raise error

    class Alone(FixedScalingPolicy):
        """Starts the workers of a job that shares its cluster with no other one.

        The usual policy asks an actor that divides the cluster among jobs, a process that imports Ray Data for seconds.
        """

        def after_controller_start(self, train_run_context: Any) -> None:
            """Ask nobody."""

        def _maybe_send_resource_request(self) -> None:
            """Ask nobody."""

    class Trainer(DataParallelTrainer):  # not Ray's TorchTrainer: a worker that fails in its set-up leaves a placement group
        def _create_default_callbacks(self) -> list[Any]:
            """Ray's callbacks that this job needs, without processes for Ray Data, which it does not use."""
            return [one for one in super()._create_default_callbacks() if type(one).__name__ not in unused]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            if not (ended and fewest == most):
                return super()._initialize_and_run_controller(**settings)
            return run_controller(ended, **{**settings, "scaling_policy": Alone(self.scaling_config)})  # type: ignore[arg-type]

    # DatasetsCallback starts a process for datasets of Ray Data. The cleaner takes 12 s to end, and a cluster that ends with
    # the job does not need it.
    unused = {"DatasetsCallback", "PlacementGroupCleanerCallback" if ended else ""}
    scaling = ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type]
        use_gpu="GPU" in needs,
        resources_per_worker=needs,
    )
    failure = FailureConfig(
        max_failures=MAX_FAILURES, max_preemption_failures=MAX_FAILURES, controller_failure_limit=runtime.STARTS
    )  # type: ignore[call-arg]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        # Ray keeps no checkpoints of ours: its record of them fails on a full disk.
        storage = RunConfig(storage_path=scratch, failure_config=failure, callbacks=[Failures()])  # type: ignore[list-item]
        launch = {**launch, "splits": ray.put(splits)}
        trainer = Trainer(_worker, train_loop_config=launch, scaling_config=scaling, run_config=storage)
        return bool(trainer.fit().return_value)  # type: ignore[attr-defined]


def final_error(errors: Iterable[Exception]) -> Exception | None:
    """The error of a worker that another start of the workers would meet again; None if workers or nodes were lost.

    If a worker is lost, errors of the others follow from that.
    """
    causes = [error for error in errors if not isinstance(error, PeersLostError)]
    return causes[0] if causes and all(isinstance(error, MnistRayError | DefectError) for error in causes) else None


def _worker(launch: dict[str, Any]) -> bool:
    """The function of each worker process; returns whether the run ended.

    Raises MnistRayError or DefectError, which end the job, or PeersLostError or an error of Ray, after which the workers start
    again.
    """
    from ray.exceptions import RayError

    leave_compiler_out()
    try:
        return _train(launch)
    except (MnistRayError, PeersLostError, RayError):
        raise
    except Exception:
        raise DefectError(
            f"a worker on {platform.node()} failed:\n\n{traceback.format_exc()}\n"
            f"Ray's logs of this worker are in {runtime.logs_folder()}; the names of its files end in {os.getpid()}"
        ) from None


def _train(launch: dict[str, Any]) -> bool:
    """Train with the other workers; returns whether the run ended."""
    import ray
    import ray.train
    import ray.train.collective

    run, token, context = launch["run"], launch["token"], ray.train.get_context()
    require_visible(run, token)
    from_rank_0: Any = ray.train.collective.broadcast_from_rank_zero
    meeting = Meeting(context.get_world_rank(), context.get_world_size(), ray.util.get_node_ip_address(), from_rank_0)
    with fenced(run, token), progress.Publisher(run) as publisher:
        control = RayControl(run, token, meeting, publisher)
        return work(run, launch["config"], launch["device"], ray.get(launch["splits"]), control)


class RayControl(RunControl):
    """Control of a run in a Ray Train worker, through the owner record, the progress record, and Ray's metrics and notices."""

    def __init__(self, run: str, token: str, meeting: Meeting, publisher: progress.Publisher) -> None:
        """On rank 0, also begin to read the owner record, and create the metrics. `token` is the job's."""
        self._run, self._token, self._request = run, token, Request.NOTHING
        self.meeting, self._publisher = meeting, publisher
        if meeting.rank == 0:
            from ray.util.metrics import Gauge

            threading.Thread(target=self._follow, daemon=True).start()
            self._gauges = {name: Gauge(f"mnist_ray_train_{name}", text) for name, text in GAUGES.items()}

    def requested(self) -> Request:
        """STOP if the driver asks for it in the owner record, ABANDON if the record names another job."""
        return self._request

    def _follow(self) -> None:
        while self._request != Request.ABANDON:
            with suppress(Exception):  # ignore transient storage errors here; the next write reports them
                record = read(self._run, patience_s=0)
                if record.get("token", self._token) != self._token:
                    self._request = Request.ABANDON
                elif record.get("stop"):
                    self._request = Request.STOP
            time.sleep(MONITOR_S)

    def node_leaving(self) -> bool:
        """Whether Ray has a preemption notice for the node of a worker."""
        import ray.train

        return ray.train.get_preemption_info() is not None

    def show(self, record: dict[str, Any]) -> None:
        """Publish the record for the driver, and its values to the Ray metrics."""
        self._publisher.publish(record)
        for name, value in {**(record["history"] or [{}])[-1], **record}.items():
            if gauge := self._gauges.get(name):
                gauge.set(value)
