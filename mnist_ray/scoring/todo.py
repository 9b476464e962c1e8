"""What a job still has to do: the units of its plan that are not done, planned as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain

import mnist_ray
from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.errors import DataError, OutputError
from mnist_ray.flags import probabilities
from mnist_ray.scoring import schema
from mnist_ray.scoring.commit import begin, held_plan
from mnist_ray.scoring.job import Job, Tally, UnitResult
from mnist_ray.scoring.known import Known
from mnist_ray.scoring.parts import finished_units, part_name
from mnist_ray.scoring.plan import Plan, PlanWriter, UnitRef, WorkUnit
from mnist_ray.scoring.units import Units


class Todo:
    """The units to be scored, and the tally of those that are. Nothing is written before `begin`."""

    def __init__(self, config: ScoreConfig, model_digest: str) -> None:
        """Look at the output folder and at the first inputs. Raises MnistRayError for what cannot be scored."""
        self._look = partial(held_plan, config, config.out, model_digest)
        self._held = self._look()
        self.plan = self._held or Plan(config.identity(), model_digest, schema.NOTHING)
        """What is planned, so far or in all."""
        self.changes: dict[str, int] = {}
        """How many planned inputs have changed or are gone, where that was looked at."""
        self._planning = self._held is None or config.extend or not self._held.complete
        self._ahead: list[WorkUnit] = []
        if self._planning:
            self._plan_more(config)
        columns = (config.image_column, config.truth_column, probabilities(config.probabilities), self.plan.kept)
        self.job = Job(config.out, *columns, self.plan.job, model_digest, mnist_ray.__version__)
        self.tally = Tally()
        self._done: dict[str, UnitResult] = {r.unit: r for r in finished_units(self.job)} if self._held else {}
        self.num_done = len(self._done)
        self.skip = frozenset(self._done) | frozenset(self.plan.dropped)
        """Units that need not be scored."""

    def _plan_more(self, config: ScoreConfig) -> None:
        """List what is not planned yet, as far as the first unit."""
        known = Known(config.out, self.plan.refs(config.out))
        if config.rescore_changed:
            for _ in Units(config, known):
                pass  # all has to be listed before it is known what is gone
            self.plan = replace(self.plan, dropped=(*self.plan.dropped, *sorted(known.stale())))
            known = Known(config.out, self.plan.refs(config.out))
        self._known, self._units = known, Units(config, known, len(self.plan.parts))
        self._rest = iter(self._units)
        self._ahead += [unit for unit in [next(self._rest, None)] if unit]
        if self.plan.parts and self._units.kept != self.plan.kept:
            raise DataError(f"{config.out}: its table has other columns of --keep than the inputs have now; give another --out")
        self.plan = replace(self.plan, complete=False, failed="", kept=self._units.kept)

    def at_most(self, inputs: int) -> bool:
        """Whether no more than so many inputs are to be scored; lists no further than it takes to tell."""
        left = inputs - max(0, self.plan.num_inputs - sum(r.predicted + r.quarantined for r in self._done.values()))
        if not self._planning:
            return left >= 0
        left -= sum(unit.num_inputs for unit in self._ahead)
        while left >= 0 and (unit := next(self._rest, None)):
            self._ahead.append(unit)
            left -= unit.num_inputs
        return left >= 0

    def begin(self) -> None:
        """Put the job into the output folder, unless it is all planned. Raises OutputError if another job came before."""
        if self._look() != self._held:
            raise OutputError(f"{self.job.out}: another job has written here meanwhile; look at it, and start this one again")
        if self._planning:
            begin(self.plan, self.job.out, anew=self._held is None)

    def refs(self) -> Iterator[UnitRef]:
        """The units that are not done, each once the plan in the output folder has it. Raises MnistRayError."""
        planned = chain(self.plan.refs(self.job.out), self._planned_now() if self._planning else ())
        for ref in planned:
            if done := self._done.pop(ref.id, None):
                self.tally.add(done)
            else:
                yield ref
        for stranger in self._done:  # of a planning that was cut short, or dropped: others have its inputs
            for table in ("predictions", "quarantine"):
                storage.delete(storage.join(self.job.out, table, part_name(stranger)))

    def _planned_now(self) -> Iterator[UnitRef]:
        writer = PlanWriter(self.plan, self.job.out)
        ahead, self._ahead = self._ahead, []
        yield from writer.add(chain(ahead, self._rest))
        if self._known:
            self.changes = self._known.write_changes(self.job.out)
        self.plan = writer.finish(self._units.listing.ignored)
