"""What is in memory while inputs are listed and read has a limit, whatever they are."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.data.listing import walk
from tests.conftest import ROOT

READ = """
import re, sys
from pathlib import Path
import pyarrow as pa
from mnist_ray.scoring import schema
from mnist_ray.scoring.job import Job
from mnist_ray.scoring.plan import WorkUnit
from mnist_ray.scoring.read import read_unit

def peak():  # `ru_maxrss` starts with that of the process that starts this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

sources, size, first, rows = sys.argv[4:], *map(int, sys.argv[1:4])
lines = [("unit", source, size, "", None, None if first < 0 else first, rows, None) for source in sources]
plan = pa.table(list(zip(*lines)), schema=schema.PLAN)
early = peak()
inputs = sum(len(chunk.digits) for chunk in read_unit(WorkUnit("unit", plan), Job("", "", "none", 0, schema.NOTHING, "", "")))
print(inputs, peak() - early)
"""
"""Reads a unit: files of a size, or a range of rows. Prints the number of inputs, and by how many KiB the memory grew."""


def read(*sources: object, size: int = -1, first: int = -1, rows: int = 1) -> int:
    """By how many MB a process grows that reads a unit."""
    command = [sys.executable, "-c", READ, *map(str, (size, first, rows, *sources))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    inputs, grown_kib = map(int, done.stdout.split())
    assert inputs == rows * len(sources)
    return grown_kib >> 10


def make_files(folder: Path, number: int, size: int) -> list[str]:
    """Files without content, which take no room on the disk."""
    paths = [folder / f"{position}.png" for position in range(number)]
    for path in paths:
        with path.open("wb") as stream:
            stream.truncate(size)
    return [str(path) for path in paths]


def test_large_files_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """Local files one by one; others as many as fit. `local` is a file system of fsspec, which like a bucket is read ahead."""
    files = make_files(tmp_path, 12, 30 << 20)
    assert read(*files, size=30 << 20) < 150
    for size in (30 << 20, -1):
        assert read(*(f"local://{file}" for file in files), size=size) < 200


def test_a_photo_that_many_rows_repeat_is_not_decoded_for_all_at_once(tmp_path: Path) -> None:
    """The file has a megabyte, and its cells have 400."""
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array([b"x" * 1_000_000]))
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet", store_schema=False)
    assert read(tmp_path / "t.parquet", first=0, rows=400) < 200


def test_a_huge_row_group_is_not_read_as_a_whole(tmp_path: Path) -> None:
    cells = pa.array([np.random.default_rng(0).bytes(3000)] * 40_000)
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet", use_dictionary=False, compression="none")
    assert pq.read_metadata(tmp_path / "t.parquet").num_row_groups == 1
    assert read(tmp_path / "t.parquet", first=0, rows=5000) < 80


def test_of_the_files_of_a_folder_only_the_names_are_held(tmp_path: Path) -> None:
    make_files(tmp_path, 5000, 0)
    tracemalloc.start()
    try:
        assert sum(1 for _ in walk(str(tmp_path))) == 5000
        assert tracemalloc.get_traced_memory()[1] < 100 * 5000
    finally:
        tracemalloc.stop()
