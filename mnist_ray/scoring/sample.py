"""A random sample of the inputs. Drawing it again gives the same sample."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mnist_ray.data.listing import ImageFile
from mnist_ray.scoring.tables import TableRange

RUN = 256
"""Rows of a Parquet file that are drawn together. To read a single row costs as much as to read its page."""


class Sample:
    """Draws `number` inputs: image files one by one and rows of Parquet files in runs, in proportion to how many there are."""

    def __init__(self, number: int) -> None:
        self._number, self._num_images = number, 0
        self._random = random.Random(0)

    def images(self, images: Iterable[ImageFile]) -> list[ImageFile]:
        """As many image files as the sample may need, in random order. Lists all of them; only those drawn stay in memory."""

        def draws() -> Iterator[tuple[float, int, ImageFile]]:
            for self._num_images, image in enumerate(images, 1):
                yield self._random.random(), self._num_images, image

        return [image for _, _, image in heapq.nsmallest(self._number, draws())]

    def part(self, images: list[ImageFile], ranges: list[TableRange]) -> tuple[list[ImageFile], list[TableRange]]:
        """The sample, in the order of the listing, from what `images` returned and from all row ranges of Parquet files."""
        rows = sum(part.num_rows for part in ranges)
        wanted = min(self._number, self._num_images + rows)
        left = min(rows, max(wanted - self._num_images, round(wanted * rows / max(1, self._num_images + rows))))
        files = sorted(images[: wanted - left])
        runs = [run for part in ranges for run in _runs(part)]
        self._random.shuffle(runs)
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
