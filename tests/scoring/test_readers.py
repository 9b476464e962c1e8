"""What others see of a table: the programs that open it in one line, and the inputs that jobs on it open again."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray import score_job as scoring_job
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from mnist_ray.scoring.verify import verify
from tests.scoring.conftest import Run

SPARK_READS = {
    ("BYTE_ARRAY", "String"),
    ("INT64", "None"),
    ("INT32", "Int(bitWidth=8, isSigned=false)"),
    ("FLOAT", "None"),
    ("BOOLEAN", "None"),
}
"""Physical and logical Parquet types of the table, among those that Spark 3.2 and later read."""


def test_a_table_opens_in_one_line(run: Run, digit_folder: Path, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    """Files with and without a row number, kept values that are null, and a true digit in one part of the table only."""
    images = [encode_png(image) for image in mnist5k.test.images[:50]]
    pq.write_table(pa.table({"image": images, "site": ["a", "b"] * 25}), tmp_path / "t.parquet")
    run(digit_folder, tmp_path / "t.parquet", out=out, unit_rows=100, keep="site", target_error="10%")
    rows = pq.read_table(out / "predictions").to_pylist()
    labels = Counter(row["label"] for row in rows)

    table = pandas.read_parquet(out / "predictions")
    assert table["label"].value_counts().to_dict() == labels
    assert (table["label"].dtype, table["confidence"].dtype, table["needs_review"].dtype) == ("uint8", "float32", "bool")

    frame = polars.read_parquet(out / "predictions")
    assert dict(frame["label"].value_counts().iter_rows()) == labels
    types = {"source": polars.String, "site": polars.String, "row": polars.Int64, "label": polars.UInt8, "truth": polars.UInt8}
    types |= {"confidence": polars.Float32, "needs_review": polars.Boolean}
    assert types.items() <= dict(frame.schema).items()

    found = duckdb.execute(f"SELECT label, count(*), sum(len(probabilities)) FROM '{out}/predictions/*.parquet' GROUP BY label")
    assert sorted(found.fetchall()) == [(label, count, 10 * count) for label, count in sorted(labels.items())]
    described = duckdb.execute(f"DESCRIBE SELECT * FROM '{out}/predictions/*.parquet'").fetchall()
    kinds = {"source": "VARCHAR", "row": "BIGINT", "site": "VARCHAR", "label": "UTINYINT", "confidence": "FLOAT"}
    kinds |= {"needs_review": "BOOLEAN", "probabilities": "FLOAT[]", "truth": "UTINYINT"}
    assert kinds.items() <= {name: kind for name, kind, *_ in described}.items()

    for part in (out / "predictions").iterdir():
        found = pq.ParquetFile(part).schema
        columns = [found.column(place) for place in range(len(found))]
        assert {(column.physical_type, str(column.logical_type)) for column in columns} == SPARK_READS


def test_sources_are_stored_once_and_floats_without_a_dictionary(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    table = pa.table({"image": [encode_png(image) for image in mnist5k.test.images]})
    pq.write_table(table, tmp_path / "t.parquet")
    run(tmp_path / "t.parquet", out=out)
    (part,) = (out / "predictions").iterdir()
    group = pq.read_metadata(part).row_group(0)
    columns = {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}
    assert columns["source"].total_uncompressed_size < group.num_rows, "less than a byte a row"
    assert {name for name, column in columns.items() if "RLE_DICTIONARY" in column.encodings} == {
        *("source", "row", "label", "truth")
    }


_folder: list[Path] = []
_opened: set[str] = set()


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _folder and isinstance(args[0], str | bytes) and os.fsdecode(args[0]).startswith(str(_folder[0])):
        _opened.add(os.fsdecode(args[0]))


sys.addaudithook(_note)


@contextmanager
def opened_below(folder: Path) -> Iterator[set[str]]:
    """The files in a folder that this process opens inside this block."""
    _opened.clear()
    _folder.append(folder)
    try:
        yield _opened
    finally:
        _folder.clear()


def test_finished_inputs_are_never_opened_again(
    monkeypatch: pytest.MonkeyPatch, run: Run, digit_folder: Path, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    """Of 2,000 image files and a table, and then of 30 more image files."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = shutil.copy(next(digit_folder.rglob("*.png")), tmp_path / "image.png")

    def add(numbers: range) -> set[str]:
        paths = [str(folder / f"{number:04d}.png") for number in numbers]
        for path in paths:
            os.link(image, path)
        return {*paths}

    first = add(range(2000))
    table = pa.table({"image": [encode_png(image) for image in mnist5k.test.images[:20]], "id": np.arange(20)})
    pq.write_table(table, folder / "t.parquet")
    with opened_below(folder) as opened:
        run(folder, out=out)
    assert opened == {*first, str(folder / "t.parquet")}
    with opened_below(folder) as opened:
        assert run(folder, out=out, resume=True)["scored_now"] == 0
    assert opened == set()
    new = add(range(2000, 2030))
    monkeypatch.setattr(scoring_job, "_report", lambda *_: None)  # it shows pictures of some inputs of the whole table
    with opened_below(folder) as opened:
        assert run(folder, out=out, extend=True)["scored_now"] == 30
    assert opened == new
    assert verify(str(out)).inputs == 2050
