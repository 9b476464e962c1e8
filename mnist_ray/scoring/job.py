"""What every worker of one scoring job is told, and what it answers for each unit."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Job:
    """The options that decide a unit's rows, and the names that its part carries."""

    out: str
    image_column: str
    truth_column: str
    probabilities: int
    """How many of a digit's ten are written."""
    kept: pa.Schema
    id: str
    """Hash of model and request."""
    model: str
    """Digest of the bundle."""
    version: str
    """Version of this package."""


@dataclass
class UnitResult:
    """The counts of one unit: all of them add up over units."""

    unit: str
    predicted: int = 0
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    digits: list[int] = field(default_factory=lambda: [0] * 10)
    """Predictions of each digit."""
    correct: int = 0
    with_truth: int = 0
    input_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, on the worker; not kept in the part, which depends on the input alone."""

    def spend(self, seconds: dict[str, float]) -> None:
        """Add seconds by stage."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def add(self, other: UnitResult) -> None:
        """Add another unit's counts and seconds."""
        self.predicted += other.predicted
        self.quarantined += other.quarantined
        self.reasons += other.reasons
        self.digits = [a + b for a, b in zip(self.digits, other.digits, strict=True)]
        self.correct += other.correct
        self.with_truth += other.with_truth
        self.input_bytes += other.input_bytes
        self.spend(other.seconds)

    def to_json(self) -> str:
        """The result as text."""
        return json.dumps(vars(self), sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes) -> UnitResult:
        """The result that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return UnitResult(**{**values, "reasons": Counter(values["reasons"])})


class Tally:
    """The counts of all units that are done, each once."""

    def __init__(self) -> None:
        self.total = UnitResult("")
        self.parts: dict[str, list[int]] = {}
        """Predicted and quarantined inputs of each unit."""
        self._lock = Lock()

    def add(self, result: UnitResult) -> bool:
        """Count a unit, unless it has been: Ray may do one twice when an actor is lost, and its part is then the same."""
        with self._lock:  # units that were done before are counted by the thread that plans
            if result.unit in self.parts:
                return False
            self.parts[result.unit] = [result.predicted, result.quarantined]
            self.total.add(result)
            return True

    @property
    def inputs(self) -> int:
        """Inputs that are accounted for."""
        return self.total.predicted + self.total.quarantined
