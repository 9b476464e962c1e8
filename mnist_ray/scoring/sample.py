"""A random sample of the inputs. Drawing it again gives the same sample."""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count

from mnist_ray.data.listing import ImageFile
from mnist_ray.scoring.tables import SAMPLE_RUN, TableRange


def draw(number: int, images: Iterable[ImageFile], ranges: Iterable[TableRange]) -> tuple[list[ImageFile], list[TableRange]]:
    """`number` inputs, in the order of the listing: image files one by one and rows of tables in runs.

    There are as many of each as their shares of all inputs. `ranges` is read after `images`. Only drawn images stay in memory.
    """
    chance = random.Random(0)
    positions = count()
    keyed = ((chance.random(), next(positions), image) for image in images)
    shuffled = [image for _, _, image in heapq.nsmallest(number, keyed)]
    num_images = next(positions)
    runs = [run for part in ranges for run in _runs(part)]
    num_rows = sum(run.num_rows for run in runs)
    number = min(number, num_images + num_rows)
    rows_left = min(num_rows, max(number - num_images, round(number * num_rows / max(1, num_images + num_rows))))
    files = sorted(shuffled[: number - rows_left], key=lambda image: image.entry)
    chance.shuffle(runs)
    drawn: list[TableRange] = []
    while rows_left > 0:
        run = runs[len(drawn)]
        drawn.append(replace(run, num_rows=min(rows_left, run.num_rows)))
        rows_left -= run.num_rows
    return files, sorted(drawn, key=lambda run: (run.entry, run.first_row or 0))


def _runs(part: TableRange) -> Iterator[TableRange]:
    if part.first_row is None or part.num_rows <= SAMPLE_RUN:
        yield part
        return
    end = part.first_row + part.num_rows
    for first in range(part.first_row, end, SAMPLE_RUN):
        yield TableRange(part.entry, first, min(SAMPLE_RUN, end - first))
