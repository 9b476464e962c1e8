"""What every worker of one scoring job is told, and what it answers for each unit."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

_META = b"mnist_ray"


@dataclass(frozen=True)
class Job:
    """The options that decide a unit's rows, and the names that its part carries."""

    out: str
    image_column: str
    truth_column: str
    kept: pa.Schema
    plan: str
    """Fingerprint of the plan."""
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

    def to_json(self) -> str:
        """The result as text."""
        return json.dumps(vars(self), sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes) -> UnitResult:
        """The result that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return UnitResult(**{**values, "reasons": Counter(values["reasons"])})


def part_metadata(job: Job, result: UnitResult) -> dict[bytes, str]:
    """What a part says of itself: job and counts."""
    counts = json.loads(result.to_json())
    counts["seconds"] = {}
    return {_META: json.dumps({"plan": job.plan, "model": job.model, "version": job.version, "result": counts}, sort_keys=True)}


def read_metadata(schema: pa.Schema) -> tuple[str, str, UnitResult]:
    """Plan fingerprint, model digest and counts of a part. Raises KeyError, TypeError or ValueError for another file."""
    about = json.loads(schema.metadata[_META])
    return about["plan"], about["model"], UnitResult.from_json(json.dumps(about["result"]))
