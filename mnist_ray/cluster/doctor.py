"""Runs the checks of a set-up one after the other, each in a limited time.

They run in a process of their own, whose output is discarded: Ray and storage libraries print there, hang or end the process. A
check that does not answer in time, or whose process ends, is itself a finding.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from mnist_ray.cluster.checks import CHECKS, Check, Finding, Problem, Skip, join
from mnist_ray.config import DoctorConfig
from mnist_ray.errors import MnistRayError, first_line
from mnist_ray.run.processes import follow_parent

LEAVE_S = 5.0
"""Seconds to leave the cluster at the end."""


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """Run all checks; yields each finding as soon as it is there."""
    done: dict[str, Finding] = {}
    child = _Child(config)
    try:
        for check in CHECKS:
            before = next((done[name] for name in check.needs if done[name].state != "ok"), None)
            findings = [_skipped(check, before)] if before else child.ask(check)
            done[check.name] = findings[0]
            yield from findings
    finally:
        child.stop(LEAVE_S)


def _skipped(check: Check, before: Finding) -> Finding:
    """A check that needs another one, which was not ok. The reason is that of the first one in the chain."""
    reason = before.text if before.state == "skipped" else f"`{before.name}` has a problem"
    return Finding(check.name, "skipped", reason)


class _Child:
    """The process that runs the checks. It is replaced when it hangs or ends."""

    def __init__(self, config: DoctorConfig) -> None:
        self._config = config
        self._running: tuple[SpawnProcess, Connection] | None = None

    def ask(self, check: Check) -> list[Finding]:
        """What a check finds, or that it gave no answer."""
        _, pipe = self._running = self._running or self._start()
        try:
            pipe.send(check.name)
            if pipe.poll(check.limit_s):
                findings: list[Finding] = pipe.recv()
                return findings
            why = f"no answer within {check.limit_s:.0f} s"
        except (EOFError, OSError):
            why = "the process that checked this has died"
        self.stop(0)
        return [Finding(check.name, "problem", why, check.stuck)]

    def _start(self) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_answer, args=(theirs, self._config), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def stop(self, grace_s: float) -> None:
        """End the process. If it waits for the next check, it has `grace_s` seconds to leave the cluster."""
        if self._running:
            process, pipe = self._running
            pipe.close()
            process.join(grace_s)
            process.kill()
            process.join()
            self._running = None


def _answer(pipe: Connection, config: DoctorConfig) -> None:
    """Run the checks that `pipe` names, until it is closed."""
    follow_parent()
    discard = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(discard, stream)
    checks = {check.name: check for check in CHECKS}
    with suppress(EOFError, OSError):
        while True:
            pipe.send(_run(checks[pipe.recv()], config))


def _run(check: Check, config: DoctorConfig) -> list[Finding]:
    """What a check found: one finding, or several problems."""
    try:
        if "joining" in check.needs:  # again, if the process that joined was replaced; else Ray would start a cluster
            join(config)
        return [Finding(check.name, "ok", check.run(config))]
    except Skip as reason:
        return [Finding(check.name, "skipped", str(reason))]
    except ExceptionGroup as group:
        return [Finding(check.name, "problem", *problem.args) for problem in group.exceptions]
    except Problem as problem:
        return [Finding(check.name, "problem", *problem.args)]
    except MnistRayError as error:  # its message says what to do
        return [Finding(check.name, "problem", str(error))]
    except Exception as error:
        why = f"the check failed: {type(error).__name__}: {first_line(error)}"
        return [Finding(check.name, "problem", why, check.stuck)]
