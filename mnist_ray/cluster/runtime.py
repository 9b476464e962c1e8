"""The Ray cluster of a job: join or start it, and explain its failures."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from mnist_ray.cluster.address import probe, sends_token, token_source
from mnist_ray.cluster.alone import few_processes, replaced
from mnist_ray.console import Console
from mnist_ray.errors import ClusterError, StoppedError, first_line
from mnist_ray.run.signals import may_handle, raising

START_S, STARTS = 30, 20
"""Seconds that one start of the workers waits for nodes, and the number of starts: 10 minutes in all.

One start is short, because Ray may still count a node that has just died. With `--workers MIN:MAX` the next start is smaller.
"""


RAY_LINES = r"^\[20[0-9 ,:-]* [A-Z] [0-9]* [0-9]*\] "
"""How a line of Ray's C++ code begins. Its log files hold the same lines."""
CLEAN_END = b"\0\n"
"""The last line that this process sends to the one that passes its lines on. Ray's exit does not send it."""
KILLED = (
    "error: the job has ended without a message of its own: it was killed, or its Ray cluster was stopped; "
    "run the same command again to continue, `score` with --resume"
)
PASS_ON = f"""
import re, sys
line = b""
for line in sys.stdin.buffer:
    if not re.match(rb"{RAY_LINES}", line):
        try:
            sys.stdout.buffer.write(line.removesuffix({CLEAN_END!r}))
            sys.stdout.buffer.flush()
        except OSError:
            pass
if not line.endswith({CLEAN_END!r}):
    print({KILLED!r})
"""
"""A program that passes lines on, except those of Ray's C++ code. If no clean end follows, it says what that means."""
EVERY_JOB = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a future default; without it, every task warns
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # the default of 2 s delays the end of a job
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_S),
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers need no folder of Ray Train
}
"""Environment variables that a job sets for Ray."""
OWN_CLUSTER = {  # this machine gets no preemption notices, and nobody scrapes the metrics of a temporary cluster
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # it runs in this process
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",  # workers of Ray Train could not use them
}
"""The same, on a cluster that a job starts for itself."""
FLUSH_S = 2.0
"""Seconds to wait at the end until all of standard error has passed."""


@contextmanager
def cluster(address: str, console: Console | None = None, meanwhile: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Connect to the cluster at `address` or `RAY_ADDRESS`, or start one for this job alone; yields whether it was started.

    `meanwhile` begins what may be done while Ray starts, and returns at once. Raises ClusterError, and StoppedError after
    SIGTERM or SIGHUP.
    """
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    owns_cluster = target == "local"
    if console:
        console.progress("starting Ray" if owns_cluster else f"joining the Ray cluster at {target}")
    settings = _settings(OWN_CLUSTER if owns_cluster else {})
    with settings, _without_messages_of_ray(), _joined(target, meanwhile, owns_cluster=owns_cluster):
        yield owns_cluster


@contextmanager
def _joined(target: str, meanwhile: Callable[[], object], *, owns_cluster: bool) -> Iterator[None]:
    """Join or start the cluster, and leave or end it. Raises ClusterError and StoppedError."""
    import ray
    from ray._private import auto_init_hook

    if ray.is_initialized():
        raise ClusterError(
            "this process has joined a Ray cluster already; call ray.shutdown() first, or give workers=0 to run without Ray"
        )
    _require_answer(target)
    asked = threading.Event()  # by a signal while Ray starts: it can crash if its start is interrupted
    with _without_lines_of_ray(), _noted(asked):
        if not owns_cluster:
            meanwhile()
        try:
            with few_processes(meanwhile) if owns_cluster else nullcontext(), _interrupted_later():
                _connect(target, owns_cluster=owns_cluster)
            with _stoppable(asked):
                yield
        finally:  # threads that still wait for a lost cluster would start another one; the user's next Ray needs ray.init()
            auto_init_hook.enable_auto_connect = False
            with _without_collection():
                ray.shutdown()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from collecting garbage inside this block.

    Any thread may collect it, such as one that imports. It holds references to Ray's objects, and Ray ends a process, without a
    message, that drops one of them while Ray shuts down.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def _without_messages_of_ray() -> Iterator[None]:
    """Keep Ray from printing messages and from answering SIGTERM inside this block: the job does both itself."""
    logger = logging.getLogger("ray")
    with (
        # It prints up to 40 lines about each lost node or retry. watch.py prints one.
        replaced("ray._private.worker", "print_to_stdstream", _ignore),
        replaced("ray._private.utils", "set_sigterm_handler", _ignore),
        # Ray's C++ code prints a stack trace at SIGTERM, or hangs.
        replaced("ray._private.ray_constants", "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", True),
    ):
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


def _ignore(*_: object, **__: object) -> None: ...


@contextmanager
def _noted(asked: threading.Event) -> Iterator[None]:
    """Set `asked` at SIGTERM or SIGHUP inside this block."""
    wanted = filter(may_handle, (signal.SIGTERM, signal.SIGHUP))
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Delay a first SIGINT to the end of this block: Ray can crash if its start is interrupted.

    A second one raises KeyboardInterrupt at once.
    """
    if not may_handle(signal.SIGINT):
        yield
        return
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _stoppable(asked: threading.Event) -> Iterator[None]:
    """Raise StoppedError inside this block after SIGTERM, or once `asked` is set. `owning` waits for signals itself."""
    try:
        with raising(signal.SIGTERM, SystemExit, asked):  # Ray's C++ code passes on no other exception
            yield
    except SystemExit:
        raise StoppedError("stopped as asked; run the same command again") from None


@contextmanager
def _settings(more: dict[str, str]) -> Iterator[None]:
    """Set Ray's environment variables for a job, except those that the user has set. The user's next job may need others."""
    added = {name: value for name, value in {**EVERY_JOB, **more}.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _connect(target: str, *, owns_cluster: bool) -> None:
    """Join the cluster, or start one. Raises ClusterError."""
    import ray

    dashboard = False if owns_cluster else None
    try:
        ray.init(address=target, log_to_driver=False, configure_logging=False, include_dashboard=dashboard)
    except Exception as error:  # Ray raises this class itself if a process of it does not answer in time
        if owns_cluster:
            raise ClusterError(
                f"Ray could not be started here: {first_line(error)}; use --workers 0 to run without Ray"
            ) from None
        raise _unreachable(target, first_line(error)) from None


@contextmanager
def _without_lines_of_ray() -> Iterator[None]:
    """Keep the lines that Ray's C++ code prints to standard error out of it: the job says itself what they mean.

    Some appear in every job: Ray Data keeps arguments of actors in the object store, and Ray warns that actors then may fail to
    restart. All other lines pass, through a process that outlives this one: Ray ends a process whose raylet is stopped.
    """
    error = os.dup(2)
    command = [sys.executable, "-ISc", PASS_ON]
    passing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=error, start_new_session=True)
    assert passing.stdin
    os.dup2(passing.stdin.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(error, 2)
        os.close(error)
        with suppress(BrokenPipeError):
            passing.stdin.write(CLEAN_END)
            passing.stdin.close()
        try:
            passing.wait(FLUSH_S)
        except subprocess.TimeoutExpired:  # another process has inherited the pipe
            passing.kill()
            passing.wait()


def _unreachable(target: str, why: str) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers at {target}: {why} (give HOST:6379 on a machine of the cluster, or submit the job with "
        "`ray job submit --address http://HOST:8265`; without --address and RAY_ADDRESS, a local cluster is started)"
    )


def _require_answer(target: str) -> None:
    """Raise ClusterError if no Ray cluster at HOST:PORT lets this process in. `ray.init` would try for minutes."""
    if "://" in target:
        why = "jobs do not run through Ray Client" if target.startswith("ray://") else "expected HOST:PORT"
        raise _unreachable(target, why)
    if sends_token() and not token_source():
        raise ClusterError(f"RAY_AUTH_MODE=token, but there is no token: {_GIVE_TOKEN}")
    if ":" not in target or os.environ.get("RAY_USE_TLS") == "1":
        return
    answer = probe(target)
    if answer.service != "GCS":
        raise _unreachable(target, answer.detail or f"this is the port of Ray's {answer.service}")
    if not answer.accepted:
        refused = "refuses the token of this process" if sends_token() else "asks for a token: set RAY_AUTH_MODE=token"
        raise ClusterError(f"the Ray cluster at {target} {refused}; {_GIVE_TOKEN}")


_GIVE_TOKEN = "put the cluster's token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"


def logs_folder() -> str:
    """The folder of Ray's logs on this node, where each process has its own files."""
    from ray._private import worker

    node: Any = worker._global_node
    return str(node.get_logs_dir_path())


def cause(error: BaseException) -> str:
    """The cause of a failed Ray Train job: the last line of a worker's error, or else the first line of Ray's error."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    lines = [line for failure in failures if failure for line in str(failure).strip().splitlines()]
    return lines[-1].strip() if lines else first_line(error)
