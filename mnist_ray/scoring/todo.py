"""What a job still has to do: the units of its plan that are not done, planned as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain

import mnist_ray
from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.errors import OutputError
from mnist_ray.flags import probabilities
from mnist_ray.scoring.commit import begin, finished_units, held_plan
from mnist_ray.scoring.job import Job, Tally, UnitResult
from mnist_ray.scoring.plan import Plan, PlanWriter, UnitRef, WorkUnit
from mnist_ray.scoring.unit import part_name
from mnist_ray.scoring.units import Units


class Todo:
    """The units to be scored, and the tally of those that are. Nothing is written before `begin`."""

    def __init__(self, config: ScoreConfig, model_digest: str) -> None:
        """Look at the output folder and at the first inputs. Raises MnistRayError for what cannot be scored."""
        self._look = partial(held_plan, config, config.out, model_digest)
        self._held = held = self._look()
        self._units = None if held and held.complete else Units(config)
        self._ahead: list[WorkUnit] = []
        self._rest: Iterator[WorkUnit] = iter(self._units or ())
        self.plan = held if held and not self._units else self._new_plan(config, model_digest)
        """What is planned, so far or in all."""
        columns = (config.image_column, config.truth_column, probabilities(config.probabilities), self.plan.kept)
        self.job = Job(config.out, *columns, self.plan.job, model_digest, mnist_ray.__version__)
        self.tally = Tally()
        self._found: dict[str, UnitResult] = {r.unit: r for r in finished_units(self.job)} if held else {}
        self.found = frozenset(self._found)
        """Units that were done before."""

    def _new_plan(self, config: ScoreConfig, model_digest: str) -> Plan:
        assert self._units
        self._ahead.append(next(self._rest))
        return Plan(config.meaning(), model_digest, self._units.kept)

    def at_most(self, inputs: int) -> bool:
        """Whether no more than so many inputs are to be scored; lists no further than it takes to tell."""
        if not self._units:
            return self.plan.num_inputs - sum(r.predicted + r.quarantined for r in self._found.values()) <= inputs
        left = inputs - sum(unit.num_inputs for unit in self._ahead)
        while left >= 0 and (unit := next(self._rest, None)):
            self._ahead.append(unit)
            left -= unit.num_inputs
        return left >= 0

    def begin(self) -> None:
        """Put the new job into the output folder, unless its plan is there. Raises OutputError if another job came before."""
        if self._look() != self._held:
            raise OutputError(f"{self.job.out}: another job has written here meanwhile; look at it, and start this one again")
        if self._units:
            begin(self.plan, self.job.out, anew=self._held is None)

    def refs(self) -> Iterator[UnitRef]:
        """The units that are not done, each once the plan in the output folder has it. Raises MnistRayError."""
        writer = PlanWriter(self.plan, self.job.out)
        ahead, self._ahead = self._ahead, []
        planned = writer.add(chain(ahead, self._rest)) if self._units else self.plan.refs(self.job.out)
        for ref in planned:
            if done := self._found.pop(ref.id, None):
                self.tally.add(done)
            else:
                yield ref
        if self._units:
            self.plan = writer.finish(self._units.listing.ignored)
        for stranger in self._found:  # the plan was never finished, and the inputs have changed since
            for table in ("predictions", "quarantine"):
                storage.delete(storage.join(self.job.out, table, part_name(stranger)))
