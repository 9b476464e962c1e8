"""Finds the inputs of a unit that end the process that reads them, such as a file that meets a fault of a decoder.

The inputs are read one by one in a process of their own. It prints the position of each before it reads it.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple
from itertools import islice, repeat
from typing import Any

from mnist_ray.data import csv_table, storage
from mnist_ray.errors import MnistRayError
from mnist_ray.scoring.job import Job
from mnist_ray.scoring.plan import UnitRef, WorkUnit, load_plan, load_unit
from mnist_ray.scoring.read import read_unit

_END = "end"
MOST_IN_A_ROW = 3
"""Rows of a table that crash one after the other. Then all later rows of the unit count as crashed, too."""


def crashing_inputs(out: str, ref: UnitRef) -> frozenset[int]:
    """The positions of a unit's inputs that end a process twice. Raises AccountingError if the plan is damaged."""
    unit = load_unit(out, ref)
    is_table = not unit.rows["first_row"].null_count
    crashed: list[int] = []
    position = 0
    while (found := _first_crash(out, ref, position, unit.num_inputs)) is not None:
        if _first_crash(out, ref, found, found + 1) is not None:
            crashed.append(found)
        position = found + 1
        if is_table and crashed[-MOST_IN_A_ROW:] == list(range(position - MOST_IN_A_ROW, position)):
            return frozenset([*crashed, *range(position, unit.num_inputs)])
    return frozenset(crashed)


def _first_crash(out: str, ref: UnitRef, start: int, stop: int) -> int | None:
    """The position of the first input from `start` to `stop` that ends the process; None if there is none."""
    if start >= stop:
        return None
    command = [sys.executable, "-m", __name__, out, *map(str, astuple(ref)), str(start), str(stop)]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout.split()
    return None if not said or said[-1] == _END else int(said[-1])


def _inputs(unit: WorkUnit) -> Iterator[WorkUnit]:
    """Each input of a unit, as a unit."""
    if unit.rows["first_row"].null_count:
        for position in range(unit.rows.num_rows):
            yield WorkUnit(unit.id, unit.rows.slice(position, 1))
        return
    row = unit.rows.to_pylist()[0]
    for position, first_byte in zip(range(row["num_rows"]), _first_bytes(row), strict=False):
        one = row | {"first_row": row["first_row"] + position, "num_rows": 1, "first_byte": first_byte}
        yield WorkUnit(unit.id, unit.rows.from_pylist([one], schema=unit.rows.schema))


def _first_bytes(row: dict[str, Any]) -> Iterator[int | None]:
    """Where the rows of a unit begin in a CSV file."""
    if row["first_byte"] is None:
        yield from repeat(None)
    with storage.open_lines(storage.from_text(row["source"])) as stream:
        yield from (position for position, _ in csv_table.lines(stream, row["first_byte"]))


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main(out: str, unit_id: str, part: str, row_group: str, num_inputs: str, start: str, stop: str) -> None:
    """Read the inputs at these positions of a unit, and print each position before."""
    unit = load_unit(out, UnitRef(unit_id, part, int(row_group), int(num_inputs)))
    job = Job.of(load_plan(out), out)
    for position, one in islice(enumerate(_inputs(unit)), int(start), int(stop)):
        _say(str(position))
        for _ in read_unit(one, job):
            pass


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MnistRayError:  # the storage or the plan, not the input: who reads the unit next reports it
        pass
    finally:
        _say(_END)
