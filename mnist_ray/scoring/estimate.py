"""What a scoring job would take: its inputs are counted, and a random sample of them is scored. Nothing is written."""

import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.data.digits import Predict
from mnist_ray.scoring.job import Job, UnitResult
from mnist_ray.scoring.plan import WorkUnit
from mnist_ray.scoring.unit import score_chunks
from mnist_ray.scoring.units import FILE_BYTES

SAMPLE_S = 3.0
"""Seconds of scoring after which the sample is large enough."""
DRAWN = 64
"""Units of each kind from which the sample is taken."""
PIECE = 256
"""Image files of a drawn unit that are scored. They lie next to each other, as those that a worker reads."""


class Kind:
    """The inputs of one kind, image files or rows of tables: how many there are, and how fast a sample was scored."""

    def __init__(self, per_input: int, per_byte: int) -> None:
        """`per_input` and `per_byte` are the shares of an input and of one of its bytes in the work."""
        self.inputs = self.files = self.bytes = self.units = 0
        self.sample, self.sample_s = UnitResult(""), 0.0
        """The counts of the sample, and the seconds that one process took for it."""
        self._per_input, self._per_byte = per_input, per_byte
        self._drawn: list[WorkUnit] = []
        self._chance = random.Random(0)

    def add(self, unit: WorkUnit, files: int, num_bytes: int) -> None:
        """Count a unit, with so many files and bytes that no unit before it has. All units have the same chance to be drawn."""
        self.inputs += unit.num_inputs
        self.files += files
        self.bytes += num_bytes
        self.units += 1
        place = len(self._drawn) if len(self._drawn) < DRAWN else self._chance.randrange(self.units)
        if place < DRAWN:
            self._drawn[place : place + 1] = [self._piece(unit)]

    def _piece(self, unit: WorkUnit) -> WorkUnit:
        start = self._chance.randrange(max(0, unit.rows.num_rows - PIECE) + 1)
        wanted = range(start, min(start + PIECE, unit.rows.num_rows))
        return WorkUnit(unit.id, unit.rows.take(pa.array(wanted)))  # a slice would keep all rows in memory

    def drawn(self) -> list[WorkUnit]:
        """The drawn units in random order; of image files, a piece of each."""
        return self._chance.sample(self._drawn, len(self._drawn))

    def score_sample(self, job: Job, predict: Predict, seconds: float) -> None:
        """Score drawn units until these seconds are used up. Writes nothing. Raises StorageError."""
        began = time.perf_counter()
        for unit in self.drawn():
            for _ in score_chunks(unit, job, predict, self.sample):
                self.sample_s = time.perf_counter() - began
                if self.sample_s > seconds:
                    return

    def _work(self, inputs: int, num_bytes: int) -> int:
        return inputs * self._per_input + num_bytes * self._per_byte

    @property
    def seconds(self) -> float:
        """The seconds that one process would take for all inputs."""
        sampled = self._work(self.sample.inputs, self.sample.input_bytes)
        return self.sample_s * self._work(self.inputs, self.bytes) / sampled if sampled else 0.0


@dataclass
class Inventory:
    """The inputs that a job would score."""

    images: Kind = field(default_factory=lambda: Kind(FILE_BYTES, 1))
    """Image files."""
    rows: Kind = field(default_factory=lambda: Kind(1, 0))
    """Rows of tables. A file that cannot be opened counts as one row."""
    seconds: float = 0.0
    """How long listing the inputs took."""

    @property
    def inputs(self) -> int:
        """Images to score."""
        return self.images.inputs + self.rows.inputs

    @property
    def units(self) -> int:
        """Units of work."""
        return self.images.units + self.rows.units

    def count(self, units: Iterable[WorkUnit]) -> Iterator[int]:
        """Count the inputs of units. Yields their number after each unit."""
        last, began = "", time.perf_counter()
        for unit in units:
            source, sizes = unit.rows["source"][0].as_py(), pc.max_element_wise(unit.rows["size_bytes"], 0)
            if unit.rows["first_row"].null_count and not source.lower().endswith(".parquet"):
                self.images.add(unit, unit.rows.num_rows, pc.sum(sizes).as_py())
            else:  # the units of one Parquet file follow each other
                self.rows.add(unit, *((1, sizes[0].as_py()) if source != last else (0, 0)))
                last = source
            self.seconds += time.perf_counter() - began
            yield self.inputs
            began = time.perf_counter()

    def score_sample(self, job: Job, predict: Predict) -> None:
        """Score a sample of each kind. Writes nothing. Raises StorageError."""
        kinds = [kind for kind in (self.images, self.rows) if kind.units]
        for kind in kinds:
            kind.score_sample(job, predict, SAMPLE_S / len(kinds))


@dataclass(frozen=True)
class Workers:
    """The workers that a job would have."""

    most: int
    """Their largest number."""
    needs: dict[str, float]
    """Resources of each worker."""
    per_node: int
    """How many of them fit on a node; 0 if that is not known yet."""
    place: str
    """Where they run, and which resources are there."""


@dataclass(frozen=True)
class Estimate:
    """What a job would take."""

    inventory: Inventory
    ignored: int
    """Files in input folders that are neither images nor Parquet."""
    workers: Workers
    price: float
    """Price of a node for an hour."""

    @property
    def number(self) -> int:
        """Workers that have something to do."""
        return min(self.workers.most, self.inventory.units)

    @property
    def work(self) -> float:
        """The seconds that one worker would take for all inputs."""
        return self.inventory.images.seconds + self.inventory.rows.seconds

    @property
    def seconds(self) -> float:
        """How long the job takes after its start. The inputs are listed while they are scored."""
        return max(self.inventory.seconds, self.work / max(1, self.number))

    def to_text(self) -> str:
        """The estimate as lines of text."""
        images, rows, workers = self.inventory.images, self.inventory.rows, self.workers
        each = " and ".join(f"{number:.3g} {name}" for name, number in workers.needs.items())
        lines = [
            f"inputs: {images.files:,} image files ({_size(images.bytes)}) and {rows.inputs:,} rows of {rows.files:,} "
            f"tables ({_size(rows.bytes)}), in {self.inventory.units:,} units; {self.ignored:,} other files are ignored",
            f"workers: {self.number:,} with {each} each; {workers.place}",
            *_sample("image files", images),
            *_sample("rows", rows),
            f"expected: {_duration(self.seconds)} after the start: {_duration(self.work)} of work for {self.number:,} workers, "
            f"each as fast as this process; listing took {_duration(self.inventory.seconds)}",
        ]
        if self.price:
            lines.append(f"cost: {self._cost()}")
        return "\n".join(lines)

    def _cost(self) -> str:
        if not self.workers.per_node:
            hours = self.seconds * self.number / 3600
            return f"{hours * self.price:,.4g}, divided by the number of workers that fit on a node; there is no node yet"
        nodes = math.ceil(self.number / self.workers.per_node)
        hours = self.seconds * nodes / 3600
        return f"{hours * self.price:,.4g} for {hours:,.4g} node hours ({nodes:,} x {self.price:g} per hour)"


def _sample(name: str, kind: Kind) -> Iterator[str]:
    found = kind.sample
    if found.inputs:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.reasons.most_common())
        yield (
            f"sample: {found.inputs:,} {name} scored by this process in {kind.sample_s:.1f} s, "
            f"{found.inputs / kind.sample_s:,.0f} images/s; {found.quarantined:,} quarantined{reasons and f' ({reasons})'}"
        )


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
