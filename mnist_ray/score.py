"""A ScoreConfig to a prediction table: units scored by processes of this machine, or by actors on Ray."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from mnist_ray.artifact import seal
from mnist_ray.cluster import runtime
from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.data import storage
from mnist_ray.errors import StoppedError
from mnist_ray.flags import scoring_pool
from mnist_ray.run import processes
from mnist_ray.run.clock import Clock
from mnist_ray.run.owner import Owner, owning
from mnist_ray.scoring.commit import commit
from mnist_ray.scoring.job import UnitResult
from mnist_ray.scoring.plan import UnitRef
from mnist_ray.scoring.todo import Todo

SMALL_JOB = 200_000
"""Inputs up to which `--workers auto` scores without Ray: seconds of work, and Ray takes ten to start."""


class Engine(NamedTuple):
    """What scores units: how many at once, and how to begin."""

    workers: int
    results: Callable[[], Iterator[UnitResult]]


def score(config: ScoreConfig, console: Console) -> dict[str, Any]:
    """Run a scoring job, or continue it, to its commit record, and return its summary. Raises MnistRayError."""
    clock = Clock()
    runtime.warn_of_lost_output(config.out, console)
    config = replace(config, inputs=tuple(storage.absolute(item) for item in config.inputs), out=storage.absolute(config.out))
    bundle = seal.find(config.model)
    _, digest = seal.read(bundle)
    todo = Todo(config, digest)
    if todo.num_done:
        console.line(f"{todo.num_done:,} units are done already")
    with _engine(todo, bundle, config) as engine, owning(config.out) as owner:
        todo.begin()
        clock.ready()
        for result in engine.results():
            if todo.tally.add(result):
                clock.scored(result)
                _show(todo, clock, console)
            _require_unasked(owner)
        about = {**clock.report(todo.tally.total.seconds, engine.workers), **todo.changes}
        return commit(todo.plan, todo.job, todo.tally, about)


@contextmanager
def _engine(todo: Todo, bundle: str, config: ScoreConfig) -> Iterator[Engine]:
    """What scores the units, ready to begin: processes of this machine, or a Ray cluster that has room for the actors."""
    fewest, most = scoring_pool(config.workers)
    small = config.workers == "auto" and not config.address and todo.at_most(SMALL_JOB)
    if todo.at_most(0):
        yield Engine(0, lambda: _nothing(todo.refs()))
    elif most == 0 or small:
        with processes.workers(bundle, config.device) as workers:
            yield Engine(processes.cores(), lambda: workers.stream(todo.refs(), todo.job))
    else:
        with runtime.cluster(config.address):
            from mnist_ray.cluster import actors

            pool = (fewest, most) if most > 0 else (runtime.size(config.device),) * 2
            needs = runtime.resources(*pool, config.device)
            yield Engine(pool[1], lambda: actors.stream(todo, bundle, pool, needs))


def _nothing(refs: Iterator[UnitRef]) -> Iterator[UnitResult]:
    """No results: all units are done, and asking for the next one counts them."""
    if ref := next(refs, None):
        raise AssertionError(f"unit {ref.id} was done already")
    return iter(())


def _show(todo: Todo, clock: Clock, console: Console) -> None:
    planned, done = todo.plan.num_inputs, todo.tally.inputs
    share = f"{done / planned:4.0%}  {done:,} of {planned:,}" if todo.plan.complete else f"{done:,}"
    console.progress(f"scoring {share} inputs  {clock.images_per_second():,.0f} images/s")


def _require_unasked(owner: Owner) -> None:
    """Raise what a job that a signal stops, or another job replaces, ends with."""
    owner.require()
    if owner.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if owner.signal is not None:
        raise StoppedError(f"{owner.run}: stopped as asked; run again with --resume to score the rest")
