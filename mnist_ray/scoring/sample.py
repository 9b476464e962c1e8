"""A random part of the inputs, the same one each time it is drawn."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mnist_ray.data.listing import ImageFile
from mnist_ray.scoring.tables import TableRange

RUN = 256
"""Rows of a Parquet file that are drawn together: single ones would cost a page each."""


class Sample:
    """Draws `number` of all inputs: image files one by one, rows of tables in runs, each kind by its share."""

    def __init__(self, number: int) -> None:
        self._number, self._images = number, 0
        self._chance = random.Random(0)

    def images(self, images: Iterable[ImageFile]) -> list[ImageFile]:
        """As many of these as may be needed, in a random order. All are looked at; those drawn are held in memory."""

        def draws() -> Iterator[tuple[float, int, ImageFile]]:
            for self._images, image in enumerate(images, 1):
                yield self._chance.random(), self._images, image

        return [image for _, _, image in heapq.nsmallest(self._number, draws())]

    def part(self, images: list[ImageFile], ranges: list[TableRange]) -> tuple[list[ImageFile], list[TableRange]]:
        """The inputs drawn, in the order of the listing, of what `images` returned and of all ranges of the tables."""
        rows = sum(part.num_rows for part in ranges)
        wanted = min(self._number, self._images + rows)
        left = min(rows, max(wanted - self._images, round(wanted * rows / max(1, self._images + rows))))
        files = sorted(images[: wanted - left])
        runs = [run for part in ranges for run in _runs(part)]
        self._chance.shuffle(runs)
        drawn: list[TableRange] = []
        for run in runs:
            if left <= 0:
                break
            drawn.append(replace(run, num_rows=min(left, run.num_rows)))
            left -= run.num_rows
        return files, sorted(drawn, key=lambda run: (run.entry, run.first_row or 0))


def _runs(part: TableRange) -> Iterator[TableRange]:
    if part.first_row is None:
        yield part
        return
    end = part.first_row + part.num_rows
    for first in range(part.first_row, end, RUN):
        yield TableRange(part.entry, first, min(RUN, end - first))
