"""The inputs that a plan holds already, to find those that are new, changed or gone."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.data.listing import ImageFile
from mnist_ray.scoring import schema
from mnist_ray.scoring.plan import Plan

CHANGES = "changes.parquet"


class Known:
    """The inputs of a plan, each as often as it is planned. They stay in memory: about 320 bytes for each."""

    def __init__(self, plan: Plan, out: str) -> None:
        """Read the plan. Raises AccountingError if it is damaged."""
        self.changed: list[str] = []
        """Listed sources that have another size, version, true digit or kept values than planned."""
        self._left: Counter[str] = Counter()
        """How many inputs of each source were not listed yet."""
        self._lines: Counter[tuple[Any, ...]] = Counter()
        """The same for all that is known of an input, so that lines of a manifest with the same source are told apart."""
        planned = [schema.PLAN.empty_table().select(["unit", "source"])]
        for unit in plan.units(out):
            planned.append(unit.rows.select(["unit", "source"]))
            for line, first_row in zip(_lines(unit.rows), unit.rows["first_row"].to_pylist(), strict=True):
                if first_row is None or line not in self._lines:  # a table has a row for each of its ranges, and is listed once
                    self._lines[line] += 1
                    self._left[line[0]] += 1
        self._planned = pa.concat_tables(planned)

    def __bool__(self) -> bool:
        """Whether anything is planned."""
        return bool(self._left)

    def new(self, images: Iterable[ImageFile]) -> Iterator[ImageFile]:
        """The listed files that are not planned yet.

        A file with a planned source, but not as planned, has changed, or a manifest names it once more. That is known once all
        are listed, so these come last.
        """
        others: list[tuple[str, ImageFile]] = []
        for image in images:
            source = storage.to_text(image.entry.uri)
            line = (source, image.entry.size, image.entry.version, image.truth, _text(image.kept))
            if self._lines.get(line, 0) > 0:
                self._lines[line] -= 1
                self._left[source] -= 1
            elif self._left.get(source, 0) > 0:
                others.append((source, image))
            else:
                yield image
        for source, image in others:
            if self._left[source] > 0:
                self._left[source] -= 1
                self.changed.append(source)
            else:
                yield image

    def vanished(self) -> list[str]:
        """Planned sources that were not listed. It is known once all inputs are listed."""
        return [source for source, left in self._left.items() if left > 0]

    def stale(self) -> list[str]:
        """The units that hold a changed or vanished source, sorted."""
        sources = pa.array([*self.changed, *self.vanished()], pa.string())
        return sorted(self._planned.filter(pc.is_in(self._planned["source"], sources))["unit"].unique().to_pylist())

    def write_changes(self, out: str) -> dict[str, int]:
        """Write the changed and vanished sources to `changes.parquet`, and return how many there are of each."""
        found = {"changed": self.changed, "vanished": self.vanished()}
        rows = [{"source": source, "change": kind} for kind, sources in found.items() for source in sources]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema.CHANGES), sink)
        storage.write(storage.join(out, CHANGES), sink.getvalue().to_pybytes())
        return {kind: len(sources) for kind, sources in found.items()}


def _lines(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Source, size, version, true digit and kept values of rows of the plan."""
    kept = rows[schema.KEPT].to_pylist() if schema.KEPT in rows.column_names else repeat(None)
    columns = (rows[name].to_pylist() for name in ("source", "size_bytes", "version", "truth"))
    for *line, values in zip(*columns, kept, strict=False):
        yield (*line, _text(tuple(values.values()) if values else ()))


def _text(kept: tuple[Any, ...]) -> str:
    """Kept values as text, because a list cannot be counted, and NaN is not equal to itself."""
    return str(kept) if kept else ""
