"""What every worker of a scoring job needs to know, and what it returns for each unit."""

import json
from collections import Counter
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any, Self

import pyarrow as pa

from mnist_ray.data.digits import CLASSES
from mnist_ray.data.statistics import CONFIDENCE_EDGES
from mnist_ray.data.traits import NOTHING
from mnist_ray.flags import probabilities
from mnist_ray.scoring import schema
from mnist_ray.scoring.plan import Plan


@dataclass(frozen=True)
class Job:
    """The options that decide the rows of a unit, and the names that its part carries."""

    out: str
    image_column: str
    truth: str
    """`--truth`."""
    probabilities: int
    """How many probabilities of an image are written."""
    kept: pa.Schema
    """The columns of tables and manifests that are passed through."""
    id: str
    """Hash of the model and of the options."""
    model: str
    """Digest of the model bundle."""
    review_below: float | None = None
    """The confidence up to which predictions need a review; None without `--target-error`."""
    precision: str = "float32"
    """`--precision`."""
    token: str = ""
    """Token of the job's owner record. Workers write only while the record holds it."""

    @classmethod
    def of(cls, plan: Plan, out: str, token: str = "") -> Self:
        """The job of the plan in an output folder."""
        options = plan.request
        asked = probabilities(options["probabilities"])
        number = len(CLASSES) if asked is None else min(asked, len(CLASSES))
        columns = (options["image_column"], options["truth"], number, plan.kept)
        return cls(out, *columns, plan.job_id, plan.model_digest, plan.review_below, options["precision"], token)

    @property
    def columns(self) -> pa.Schema:
        """The columns of the prediction table."""
        return schema.predictions(self.kept, self.probabilities, self.review_below is not None)


@dataclass
class UnitResult:
    """The counts of one unit. The counts of several units add up."""

    unit: str
    predicted: int = 0
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Quarantined inputs by reason."""
    digits: list[int] = field(default_factory=lambda: [0] * len(CLASSES))
    """Predictions by label."""
    confidences: list[int] = field(default_factory=lambda: [0] * (len(CONFIDENCE_EDGES) - 1))
    """Predictions by bin of confidence."""
    traits: dict[str, list[int]] = field(default_factory=lambda: NOTHING)
    """Digits of a sample by bin of each trait of pictures."""
    unlike: int = 0
    """Predictions for inputs that do not look like a digit."""
    needs_review: int = 0
    confusion: list[int] = field(default_factory=lambda: [0] * len(CLASSES) ** 2)
    """Predictions whose true digit is known, by truth * number of classes + prediction."""
    input_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of work by stage. The part does not keep them: its bytes depend on the input alone."""
    digests: tuple[str, str] = ("", "")
    """Digests of the unit's files in the prediction table and in the quarantine table; empty if there is no such file."""

    @property
    def inputs(self) -> int:
        """Inputs that are accounted for."""
        return self.predicted + self.quarantined

    @property
    def with_truth(self) -> int:
        """Predictions whose true digit is known."""
        return sum(self.confusion)

    @property
    def correct(self) -> int:
        """Predictions that equal the true digit."""
        return sum(self.confusion[:: len(CLASSES) + 1])

    def spend(self, seconds: dict[str, float]) -> None:
        """Add seconds by stage."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def add(self, other: Self) -> None:
        """Add the counts and seconds of another unit."""
        self.predicted += other.predicted
        self.quarantined += other.quarantined
        self.reasons += other.reasons
        self.digits = _sums(self.digits, other.digits)
        self.confidences = _sums(self.confidences, other.confidences)
        self.traits = {name: _sums(counts, other.traits[name]) for name, counts in self.traits.items()}
        self.unlike += other.unlike
        self.needs_review += other.needs_review
        self.confusion = _sums(self.confusion, other.confusion)
        self.input_bytes += other.input_bytes
        self.spend(other.seconds)

    def to_json(self) -> str:
        """The result as text."""
        return json.dumps(vars(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The result that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        digests = tuple(values.get("digests", ("", "")))
        return cls(**{**values, "reasons": Counter(values["reasons"]), "digests": digests})


def _sums(a: list[int], b: list[int]) -> list[int]:
    return [one + other for one, other in zip(a, b, strict=True)]


SLOWEST = 10
"""Units that a tally keeps because they took longest."""


class Tally:
    """The counts of all finished units. Each unit counts once."""

    def __init__(self) -> None:
        self.total = UnitResult("")
        self.slowest: list[UnitResult] = []
        """The units that took most work, the slowest first. Units of an earlier start are not among them."""
        self.parts: dict[str, tuple[int, int]] = {}
        """Predicted and quarantined inputs of each unit."""
        self.digests: dict[str, tuple[str, str]] = {}
        """Digests of the files of each unit (see `UnitResult`)."""

    def add(self, result: UnitResult) -> bool:
        """Count a unit and return True, or return False if it is counted already.

        Ray scores a unit again when it loses an actor. The second result equals the first.
        """
        if result.unit in self.parts:
            return False
        self.parts[result.unit] = (result.predicted, result.quarantined)
        self.digests[result.unit] = result.digests
        self.total.add(result)
        if result.seconds:
            self.slowest = nlargest(SLOWEST, [*self.slowest, result], key=lambda unit: sum(unit.seconds.values()))
        return True
