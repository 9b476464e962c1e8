"""The inputs that a plan holds already, to find those that are new, changed or gone."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.data.listing import FileEntry
from mnist_ray.scoring import schema
from mnist_ray.scoring.plan import Plan

CHANGES = "changes.parquet"


class Known:
    """The sources of a plan, each as often as it is planned. They stay in memory: about 200 bytes for each."""

    def __init__(self, plan: Plan, out: str) -> None:
        """Read the plan. Raises AccountingError if it is damaged."""
        self.changed: list[str] = []
        """Listed sources that have another size or version than planned."""
        rows = pa.concat_tables([schema.PLAN.empty_table(), *(unit.rows.select(schema.PLAN.names) for unit in plan.units(out))])
        self._planned = rows.select(["unit", "source"])
        last = [("size_bytes", "last"), ("version", "last")]
        files = [("first_row", "count", pc.CountOptions(mode="only_null"))]
        sources = rows.group_by("source", use_threads=False).aggregate([*files, *last])
        columns = [sources[name].to_pylist() for name in ("source", "first_row_count", "size_bytes_last", "version_last")]
        # A Parquet file has a row for each of its ranges, and is listed once.
        self._left = {source: max(1, count) for source, count in zip(*columns[:2], strict=True)}
        self._versions = {source: version for source, *version in zip(columns[0], *columns[2:], strict=True)}

    def __bool__(self) -> bool:
        """Whether anything is planned."""
        return bool(self._left)

    def is_new(self, entry: FileEntry) -> bool:
        """Whether a listed file is not planned yet. Each call counts as one listing of the file."""
        source = storage.to_text(entry.uri)
        if self._left.get(source, 0) <= 0:
            return True
        self._left[source] -= 1
        if self._versions[source] != [entry.size, entry.version]:
            self.changed.append(source)
        return False

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
