"""A training run as a Ray Train job: one process per worker, lost ones replaced, at whatever size is there."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from mnist_ray.cluster import runtime
from mnist_ray.config import TrainConfig
from mnist_ray.console import Console
from mnist_ray.data.digits import Splits
from mnist_ray.errors import ClusterError, MnistRayError, from_status
from mnist_ray.flags import worker_range
from mnist_ray.learn.control import Request, RunControl
from mnist_ray.run import progress
from mnist_ray.run.owner import Owner, OwnerMonitor, require
from mnist_ray.run.worker import work

MAX_FAILURES = 10
"""Times that lost workers are replaced before the job gives up; it can be continued by hand."""
POLL_S = 0.25
STOP_S = 15.0
"""Seconds without progress after which a job that was asked to stop does so: longer than the tries to save take."""

GAUGES = {
    "loss": "Training loss of the last step, in nats per sample.",
    "samples_seen": "Training samples seen by the run.",
    "samples_per_second": "Training samples per second over the run.",
    "test_accuracy": "Share of the test digits predicted right after the last epoch.",
}
"""Ray metrics of rank 0. Prometheus scrapes them as `ray_mnist_ray_train_NAME`."""


def fit(
    run: str,
    config: TrainConfig,
    splits: Splits,
    needs: dict[str, float],
    owner: Owner,
    console: Console,
    *,
    owns_cluster: bool,
) -> bool:
    """Train on Ray workers that are given what they need; whether the run ended, rather than being asked to stop.

    Shows the progress meanwhile and passes on a request to stop. `ours`: the cluster ends with this job. Raises MnistRayError.
    """
    import ray

    progress.clear(run)
    launch = {"run": run, "config": config, "token": owner.token, "device": runtime.granted_device(needs)}
    outcome: Future[Any] = Future()

    def follow_through() -> None:
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
                answer = _trainer({**launch, "splits": ray.put(splits)}, needs, scratch, owns_cluster=owns_cluster)()
            outcome.set_result(answer)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=follow_through, daemon=True).start()  # Ray takes signals for itself in the main thread
    shown, record, moved = progress.ProgressPrinter(console), None, time.monotonic()
    while not wait([outcome], POLL_S).done:
        if (now := progress.look(run, shown)) != record:
            record, moved = now, time.monotonic()
        owner.require()
        still = time.monotonic() - moved
        if owner.signal is not None and still > STOP_S:  # there is nobody to save: workers are lost, or not there yet
            return False
        if still > runtime.START_S * runtime.STARTS:
            raise ClusterError(
                f"--workers {config.workers}: no worker has made progress for {still:.0f} s; look at the cluster's nodes, "
                "then run the same command again"
            )
    progress.look(run, shown)
    owner.require()
    return _answer(run, outcome)


def _answer(run: str, outcome: Future[Any]) -> bool:
    try:
        answer = outcome.result()
    except Exception as error:
        raise ClusterError(
            f"training stopped: {runtime.cause(error)}; lost workers are replaced up to {MAX_FAILURES} times; "
            f"run the same command again to continue from the newest checkpoint in {run}"
        ) from error
    if "error" in answer:
        raise from_status(*answer["error"])
    return bool(answer["ended"])


def _trainer(launch: dict[str, Any], needs: dict[str, float], scratch: str, *, owns_cluster: bool) -> Callable[[], Any]:
    """A function that carries out the Ray Train job and returns what rank 0 returned."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            """On a cluster that ends with the job nothing is left to be cleaned up, and waiting for the cleaner takes 12 s."""
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            return [one for one in callbacks if not (owns_cluster and type(one).__name__ == "PlacementGroupCleanerCallback")]

    fewest, most = worker_range(launch["config"].workers)
    trainer = Trainer(
        _worker,  # type: ignore[arg-type]
        train_loop_config=launch,
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type]
            use_gpu="GPU" in needs,
            resources_per_worker=needs,
        ),
        run_config=RunConfig(
            storage_path=scratch,  # checkpoints are ours alone: Ray's record of them fails where a disk is full
            failure_config=FailureConfig(
                max_failures=MAX_FAILURES, max_preemption_failures=MAX_FAILURES, controller_failure_limit=runtime.STARTS
            ),  # type: ignore[call-arg]
        ),
    )
    return lambda: trainer.fit().return_value  # type: ignore[attr-defined]


def _worker(launch: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs in each worker process. Our own errors are returned, not raised, so that Ray does not retry them."""
    import ray
    import ray.train

    try:
        control = RayControl(launch["run"], launch["token"], rank=ray.train.get_context().get_world_rank())
        return {"ended": work(launch["run"], launch["config"], launch["device"], ray.get(launch["splits"]), control)}
    except MnistRayError as error:
        return {"error": (error.exit_status, str(error))}


class RayControl(RunControl):
    """Control of a run in a Ray Train worker: by the run's owner record, its progress record, Ray metrics and Ray's notices."""

    def __init__(self, run: str, token: str, rank: int) -> None:
        """On rank 0, begin to watch the owner record of the job that has this token."""
        from ray.util.metrics import Gauge

        self._run, self._token = run, token
        self._monitor = OwnerMonitor(run, token, looking=rank == 0)
        gauges = GAUGES if rank == 0 else {}
        self._gauges = {name: Gauge(f"mnist_ray_train_{name}", text) for name, text in gauges.items()}

    def requested(self) -> Request:
        """What the driver asks for in the owner record, or ABANDON if the record names another job."""
        if self._monitor.lost:
            return Request.ABANDON
        return Request.STOP if self._monitor.stop else Request.NOTHING

    def node_leaving(self) -> bool:
        """Whether Ray has a notice that the node of a worker is about to be taken away."""
        import ray.train

        return ray.train.get_preemption_info() is not None

    def require_ownership(self) -> None:
        """Raise OutputError if the run's owner record names another job."""
        require(self._run, self._token)

    def show(self, record: dict[str, Any]) -> None:
        """Publish the record for the driver, and its figures as Ray metrics."""
        progress.publish(self._run, record)
        for name, value in {**(record["history"] or [{}])[-1], **record}.items():
            if name in self._gauges:
                self._gauges[name].set(value)
