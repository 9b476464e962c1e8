"""The speed of a scoring job, and what limits it."""

import time
from typing import Any

from mnist_ray.scoring.job import UnitResult


class Clock:
    """Measures the seconds since the start of a job and counts the inputs that it has scored."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._ready = self._first = self._last = 0.0
        self._scored = self._scored_first = 0

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def ready(self) -> None:
        """Note that the model or the cluster is ready."""
        self._ready = self._now()

    def scored(self, result: UnitResult) -> None:
        """Note that a unit is scored."""
        self._last = self._now()
        self._scored += result.inputs
        if not self._first:
            self._first, self._scored_first = self._last, self._scored

    def images_per_second(self) -> float:
        """Inputs per second since the first scored unit; 0 until there is a second one."""
        later = self._scored - self._scored_first
        return later / (self._last - self._first) if later else 0.0

    def report(self, stages: dict[str, float], workers: int) -> dict[str, Any]:
        """The summary's entries about speed. `stages` holds the seconds of work of all workers, by stage.

        The start ends with the first scored unit. The steady rate counts all units after it. `limited_by` is "start" if the
        start took more than half of the job, "listing" if the workers were idle for more than half of the time after it, and
        else the stage that took most of their time.
        """
        total = self._now()
        steady = self._last - self._first
        idle = sum(stages.values()) < 0.5 * workers * steady
        stage = max(stages, key=lambda name: stages[name], default="start")
        limit = "start" if self._first > total / 2 else "listing" if idle else stage
        start = round(self._first, 3)
        return {
            "scored_now": self._scored,
            "images_per_second": round(self._scored / total, 1),
            "steady_images_per_second": round(self.images_per_second(), 1),
            "start_seconds": start,
            "limited_by": limit,
            "seconds": {
                "ready": round(self._ready, 3),
                "first_unit": start,
                "total": round(total, 3),
                "workers": {name: round(value, 3) for name, value in stages.items()},
            },
        }
