"""What a plan holds already: tells new inputs from those that are planned, have changed, or are gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.data import storage
from mnist_ray.data.listing import FileEntry
from mnist_ray.scoring.plan import UnitRef, load_unit

CHANGES = "changes.parquet"


class Known:
    """The sources of planned units, each as often as it is planned. They are held in memory, some 200 bytes for each."""

    def __init__(self, out: str, refs: Iterable[UnitRef]) -> None:
        self.changed: list[str] = []
        """Listed sources of another size or version than planned."""
        self._left: Counter[str] = Counter()
        self._versions: dict[str, tuple[int, str]] = {}
        self._units: dict[str, set[str]] = {}
        for ref in refs:
            rows = load_unit(out, ref).rows.select(["source", "size_bytes", "version", "first_row"]).to_pydict()
            for source, *version, first_row in zip(*rows.values(), strict=True):
                if first_row is None or source not in self._left:  # a table has many ranges, and is listed once
                    self._left[source] += 1
                self._versions[source] = (version[0], version[1])
                self._units.setdefault(source, set()).add(ref.id)

    def __bool__(self) -> bool:
        """Whether anything is planned."""
        return bool(self._units)

    def is_new(self, entry: FileEntry) -> bool:
        """Whether a listed file is not planned yet."""
        source = storage.to_text(entry.uri)
        if self._left[source] <= 0:
            return True
        self._left[source] -= 1
        if self._versions[source] != (entry.size, entry.version):
            self.changed.append(source)
        return False

    def vanished(self) -> list[str]:
        """Planned sources that were not listed; to be asked when all is listed."""
        return [source for source, left in self._left.items() if left > 0]

    def stale(self) -> set[str]:
        """The units that hold a changed or vanished source."""
        return {unit for source in [*self.changed, *self.vanished()] for unit in self._units[source]}

    def write_changes(self, out: str) -> dict[str, int]:
        """Put the names of changed and vanished sources beside the tables, and return how many there are."""
        found = {"changed": self.changed, "vanished": self.vanished()}
        names = [source for sources in found.values() for source in sources]
        kinds = [kind for kind, sources in found.items() for _ in sources]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"source": pa.array(names, pa.string()), "change": pa.array(kinds, pa.string())}), sink)
        storage.write(storage.join(out, CHANGES), sink.getvalue().to_pybytes())
        return {kind: len(sources) for kind, sources in found.items()}
