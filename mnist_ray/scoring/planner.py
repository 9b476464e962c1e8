"""Planning: the inputs are listed, cut into units and written to the plan, as a stream."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice

from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.errors import DataError
from mnist_ray.scoring.ignored import IGNORED
from mnist_ray.scoring.job import UnitResult
from mnist_ray.scoring.known import Known
from mnist_ray.scoring.plan import Plan, UnitRef, WorkUnit, fingerprint, load_plan, write_units
from mnist_ray.scoring.units import Units

FIRST_PART, LAST_PART = 1 << 13, 1 << 17
"""Inputs of the first file of the plan. Each file holds twice as many as the one before, up to the last."""


class Planner:
    """Plans the inputs that the plan does not hold yet, and yields the units that are not finished."""

    def __init__(self, config: ScoreConfig, plan: Plan, finished: Mapping[str, UnitResult]) -> None:
        """Open the inputs and list the first ones. Writes nothing. Raises MnistRayError for inputs that cannot be scored.

        `finished` are the units whose parts are there.
        """
        self.plan, self._out, self._finished = plan, config.out, finished
        self.planning = config.extend or not plan.complete
        """Whether there may be inputs that are not planned yet."""
        self.units: dict[str, int] = {}
        """The number of inputs of each planned unit, in the order of the plan. The units stay in memory: 200 bytes for each."""
        self.changes: dict[str, int] = {}
        """How many planned inputs have changed or are gone, if they were compared with the inputs."""
        self._listing: Iterator[WorkUnit] = iter(())
        self._ahead: deque[WorkUnit] = deque()
        """Units that were listed to look at them, and that the plan does not hold yet."""
        self.stopped = False
        """Whether `stop` was called."""
        self.num_inputs = self.done = self.quarantined = 0
        """Planned inputs, and how many of them an earlier start of the job has scored and quarantined."""
        if self.planning:
            self._open(config)
        self._count(self.plan.refs(self._out))
        self._planned = self.num_inputs - self.done
        self.listed = not self.planning
        """Whether all inputs are planned."""
        self.all_known = self.listed
        """Whether all inputs are planned or were listed ahead."""

    def _count(self, planned: Iterable[UnitRef]) -> None:
        """Add planned units to the counts."""
        for ref in planned:
            self.units[ref.id] = ref.num_inputs
            self.num_inputs += ref.num_inputs
            if earlier := self._finished.get(ref.id):
                self.done += earlier.inputs
                self.quarantined += earlier.quarantined

    def _open(self, config: ScoreConfig) -> None:
        if config.rescore_changed:
            known = Known(self.plan, self._out)
            for _ in Units(config, known, self.plan.job_id):  # list all inputs once, to compare them
                pass
            self.plan = replace(self.plan, dropped=(*self.plan.dropped, *known.stale()))
        self._known = Known(self.plan, self._out)
        self._units = Units(config, self._known, self.plan.job_id, len(self.plan.parts))
        self._listing = iter(self._units)
        self._ahead.extend(islice(self._listing, 1))
        if self.plan.parts and self._units.kept != self.plan.kept:
            raise DataError(f"{self._out}: its table has other --keep columns than the inputs have now; give another --out")
        self.plan = replace(self.plan, complete=False, failed="", kept=self._units.kept)

    def _next(self) -> WorkUnit | None:
        """The next unit that the plan does not hold yet; None if there is none, or after `stop`."""
        if self.stopped:
            return None
        return self._ahead.popleft() if self._ahead else next(self._listing, None)

    def _look(self) -> Iterator[WorkUnit]:
        """The units that the plan does not hold yet, to look at them: `_next` still returns them."""
        yield from tuple(self._ahead)
        for unit in self._listing:
            self._ahead.append(unit)
            yield unit
        self.all_known = True

    def at_most(self, inputs: int) -> bool:
        """Whether at most so many inputs are to be scored. Lists only as many as it takes to know."""
        left = inputs - self._planned
        new = (unit.num_inputs for unit in self._look() if unit.id not in self._finished)
        while left >= 0 and (num_inputs := next(new, None)):
            left -= num_inputs
        return left >= 0

    def look_ahead(self, until: Callable[[], bool]) -> None:
        """List further inputs until this is true. `pending` then has them at once."""
        for _ in self._look():
            if until():
                return

    def preview(self) -> Iterator[WorkUnit]:
        """The units that are to be scored, with their inputs. Writes nothing; the planner cannot be used afterwards."""
        units = chain(self.plan.units(self._out), iter(self._next, None))
        return (unit for unit in units if unit.id not in self._finished)

    @property
    def ignored(self) -> int:
        """Files in input folders that are not scored, among those listed so far."""
        return self._units.listing.ignored.count if self.planning else self.plan.ignored

    @property
    def skip(self) -> frozenset[str]:
        """Units of the plan that are not to be scored."""
        return frozenset([*self._finished, *self.plan.dropped])

    def pending(self) -> Iterator[UnitRef]:
        """The units that are to be scored. A unit is yielded once the plan in the output folder holds it."""
        planned = chain(self.plan.refs(self._out), self._write())
        return (ref for ref in planned if ref.id not in self._finished)

    def _write(self) -> Iterator[UnitRef]:
        """Write the units that are not planned yet. The first files are small, so that scoring starts early."""
        limit = FIRST_PART
        while units := list(take(iter(self._next, None), limit)):
            name = f"{len(self.plan.parts):05d}.parquet"
            refs, digest = write_units(self._out, name, units)
            self.plan = replace(self.plan, parts={**self.plan.parts, name: digest})
            before = self.num_inputs
            self._count(refs)
            self.listed = self.num_inputs - before < limit and not self.stopped
            yield from refs
            limit = min(2 * limit, LAST_PART)

    def stop(self) -> None:
        """Plan nothing more: let `pending` end soon in another thread, although inputs are left."""
        self.stopped = True

    def complete(self) -> Plan:
        """Plan the inputs that `pending` did not reach, record that the plan is complete, and return it.

        If planned inputs were listed again, also write which of them have changed or are gone.
        """
        if self.plan.complete:
            return self.plan
        self.stopped = False
        for _ in self._write():
            pass
        if self._known or self.plan.dropped:
            self.changes = self._known.write_changes(self._out)
        self.plan = replace(
            self.plan,
            complete=True,
            num_units=len(self.units),
            num_inputs=sum(self.units.values()),
            fingerprint=fingerprint(self.units),
            of_all_shards=self._units.ids.hexdigest() if self.plan.shard else "",
            ignored=self.ignored,
            ignored_digest=self._write_ignored(),
            truths=tuple(sorted({*self.plan.truths, *self._units.listing.truths})),
        )
        self.plan.save(self._out)
        return self.plan

    def _write_ignored(self) -> str:
        """Write the list of ignored files, and return its SHA-256; empty if there are none."""
        uri, ignored = storage.join(self._out, IGNORED), self._units.listing.ignored
        if not ignored.count:
            storage.delete(uri)
            return ""
        data = ignored.to_parquet()
        storage.write(uri, data)
        return hashlib.sha256(data).hexdigest()

    def fail(self, reason: str) -> None:
        """Record that planning has failed, for those who wait for the plan."""
        replace(load_plan(self._out), failed=reason).save(self._out)


def take(units: Iterator[WorkUnit], inputs: int) -> Iterator[WorkUnit]:
    """Units with together at least so many inputs, or all that are left."""
    while inputs > 0 and (unit := next(units, None)):
        yield unit
        inputs -= unit.num_inputs
