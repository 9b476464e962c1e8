"""Tables with a column for each pixel, as Kaggle and OpenML have them: CSV and Parquet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.data import csv_table, datasets
from mnist_ray.data.csv_table import Refused
from mnist_ray.data.digits import Splits
from mnist_ray.errors import DataError, UsageError
from mnist_ray.run.probe import _inputs
from mnist_ray.scoring.job import Job
from mnist_ray.scoring.plan import load_plan
from mnist_ray.scoring.read import read_unit
from mnist_ray.scoring.verify import verify
from tests.conftest import cli
from tests.scoring.conftest import KilledError, Run, parts, rows


def pixel_table(splits: Splits, number: int = 150, scale: float = 1, **more: Any) -> pa.Table:
    """The first test digits as a table like Kaggle's."""
    digits = splits.test.take(np.arange(number) * (500 // number))
    pixels = digits.images.reshape(number, 784) * scale
    return pa.table({"label": digits.labels} | {f"pixel{i}": pixels[:, i] for i in range(784)} | more)


@pytest.fixture
def labels(run: Run, mnist5k: Splits, tmp_path: Path) -> list[tuple[int, int]]:
    """The predicted and the true label of each row of `pixel_table`, scored from an image column."""
    digits = mnist5k.test.take(np.arange(150) * 3)
    table = {"image": pa.FixedSizeListArray.from_arrays(pa.array(digits.images.reshape(-1)), 784), "label": digits.labels}
    pq.write_table(pa.table(table), tmp_path / "images.parquet")
    run(tmp_path / "images.parquet", out=tmp_path / "images")
    return [(row["label"], row["truth"]) for row in rows(tmp_path / "images")]


@pytest.mark.parametrize("form", ["csv", "tsv of windows", "csv from 0 to 1", "parquet"])
def test_tables_of_pixels_are_scored_like_image_columns(
    form: str, labels: list[tuple[int, int]], run: Run, run_dir: Path, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    name, _, scale = form.partition(" ")
    table, file = pixel_table(mnist5k, scale=1 / 255 if scale == "from 0 to 1" else 1), tmp_path / f"train.{name}"
    if name == "parquet":
        pq.write_table(table, file, row_group_size=40)
    else:
        pa_csv.write_csv(table, file, pa_csv.WriteOptions(delimiter=csv_table.delimiter(str(file))))
    if scale == "of windows":
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b'"', b"").replace(b"\n", b"\r\n") + b"\r\n\r\n")
    done = cli("score", str(file), "--model", str(run_dir), "--out", str(out), "--workers", "0", "--unit-rows", "64")
    assert done.returncode == 0, done.stderr
    assert "150 inputs = 150 predicted + 0 quarantined, accuracy 9" in done.stdout
    assert [(row["label"], row["truth"]) for row in rows(out)] == labels
    assert [row["row"] for row in rows(out)] == list(range(150))
    assert verify(str(out)).units == (3 if name != "parquet" else 4)
    shown = json.loads((out / "report.json").read_text())["examples"]["least_sure"]
    assert shown
    assert all(example["picture"] for example in shown)


def test_rows_of_a_csv_file_that_cannot_be_read_are_named(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    file = tmp_path / "train.csv"
    pa_csv.write_csv(pixel_table(mnist5k, 50, id=[f"a, {row}" for row in range(50)]), file)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4][:500] + b"\n"
    lines[8] = lines[8].replace(b",0,", b",x,", 1)
    lines[12] = lines[12].replace(b",0,", b",,", 1)
    lines[16] = lines[16].replace(b",0,", b',"0,', 1)
    lines[20] = lines[20].replace(b",0,", b",256,", 1)
    lines.insert(30, b"\n")
    file.write_bytes(b"".join(lines).rstrip(b"\n"))
    summary = run(file, out=out, unit_rows=20, keep="id")
    assert (summary["predicted"], summary["reasons"]) == (45, {"bad_pixels": 4, "wrong_shape": 1})
    found = {row["row"]: row["detail"] for row in rows(out, "quarantine")}
    assert list(found) == [3, 7, 11, 15, 19]
    assert found[7] == ("the line cannot be read: In CSV column #1: Row #1: CSV conversion error to float: invalid value 'x'")
    assert {row["row"]: row["id"] for row in rows(out)} == {row: f"a, {row}" for row in range(50) if row not in found}
    assert verify(str(out)).inputs == 50


@pytest.mark.slow
def test_a_csv_job_is_resumed_and_its_changed_file_noticed(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    file = tmp_path / "train.csv"
    pa_csv.write_csv(pixel_table(mnist5k, 100), file)
    with pytest.raises(KilledError):
        run(file, out=out, unit_rows=25, kill_after=2)
    before = parts(out)
    run(file, out=out, unit_rows=25, resume=True)
    assert len(parts(out)) == 4
    assert before.items() <= parts(out).items()
    assert verify(str(out)).predicted == 100
    with file.open("ab") as stream:
        stream.write(file.read_bytes().splitlines(keepends=True)[1])
    assert run(file, out=out, unit_rows=25, extend=True)["changed"] == 1
    summary = run(file, out=out, unit_rows=25, extend=True, rescore_changed=True)
    assert (summary["inputs"], summary["predicted"]) == (101, 101)
    next((out / "predictions").iterdir()).unlink()
    file.write_bytes(file.read_bytes() + b"\n")
    assert run(file, out=out, unit_rows=25, resume=True)["reasons"].keys() == {"changed"}


def test_a_sample_of_a_csv_file(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    pa_csv.write_csv(pixel_table(mnist5k, 100), tmp_path / "train.csv")
    assert run(tmp_path / "train.csv", out=out, sample=30)["predicted"] == 30
    assert verify(str(out)).predicted == 30


def test_each_row_of_a_csv_unit_can_be_read_alone(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    """To find one that ends its process."""
    pa_csv.write_csv(pixel_table(mnist5k, 25), tmp_path / "train.csv")
    run(tmp_path / "train.csv", out=out, unit_rows=10)
    plan = load_plan(str(out))
    job = Job.of(plan, str(out))
    ones = [one for unit in plan.units(str(out)) for one in _inputs(unit)]
    digits = [chunk.digits[0] for one in ones for chunk in read_unit(one, job)]
    assert np.array_equal(np.stack(digits), mnist5k.test.images[::20])


LINES = [b"1,2\n", b"\n", b"\r\n", b"3,4\r\n", b'"5,6\n', b"7\n", b'"8","9"\n']


@given(st.lists(st.sampled_from(LINES), max_size=30), st.integers(1, 9))
def test_ranges_of_a_csv_file_hold_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], most: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_bytes(b"a,b\n" + b"".join(lines))
    header = csv_table.read_header(str(file))
    found: list[Any] = []
    for first, number, first_byte in csv_table.ranges(str(file), header, most, 1 << 20):
        assert first == len(found)
        with file.open("rb") as stream:
            for batch in csv_table.read(stream, header, first_byte, number, ["b"]):
                found += [None] * batch.num_rows if isinstance(batch, Refused) else batch.column(0).to_pylist()
        assert len(found) == first + number
    expected = {b"1,2\n": "2", b"3,4\r\n": "4", b'"8","9"\n': "9"}
    assert found == [expected.get(line) for line in lines if line.strip()]


def test_a_model_is_trained_on_tables_of_pixels(small: Splits, tmp_path: Path) -> None:
    for part, digits in (("train", small.train), ("test", small.test)):
        pixels = digits.images.reshape(len(digits), 784)
        classes = pa.array(map(str, digits.labels)).dictionary_encode()
        table = {f"pixel{i + 1}": pixels[:, i] for i in range(784)} | {"class": classes}
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet")
    loaded = datasets.load(str(tmp_path))
    assert np.array_equal(loaded.train.images, small.train.images)
    assert np.array_equal(loaded.test.labels, small.test.labels)


def test_a_model_is_trained_on_a_csv_file(small: Splits, tmp_path: Path) -> None:
    digits, file = small.train, tmp_path / "train.csv"
    pixels = digits.images.reshape(len(digits), 784)
    pa_csv.write_csv(pa.table({"label": digits.labels} | {f"pixel{i}": pixels[:, i] for i in range(784)}), file)
    loaded = datasets.load(str(file))
    assert len(loaded.train) + len(loaded.test) == len(digits)
    assert {image.tobytes() for image in loaded.train.images} <= {image.tobytes() for image in digits.images}
    assert sorted([*loaded.train.labels, *loaded.test.labels]) == sorted(digits.labels)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[588] = b"5,0,0\n"
    file.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"train.csv, row 587: wrong_shape: the line has 3 values; expected 785"):
        datasets.load(str(file))


def test_a_csv_file_beside_images_is_no_input(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    pa_csv.write_csv(pixel_table(mnist5k, 10), tmp_path / "train.csv")
    with pytest.raises(DataError, match="holds nothing to score"):
        run(tmp_path, out=out)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns_of_a_manifest_are_kept(
    form: str, run: Run, run_dir: Path, digit_folder: Path, tmp_path: Path, out: Path
) -> None:
    images = sorted(digit_folder.rglob("*.png"))[:40]
    site = pa.array(["Bonn", 'a "b", c', None, ""] * 10)
    table = pa.table({"path": [str(image) for image in images], "site": site, "taken": pa.array(range(40), pa.timestamp("ms"))})
    if form == "csv":
        pa_csv.write_csv(table, tmp_path / "list.csv")
    else:
        table = table.set_column(1, "site", site.dictionary_encode())
        pq.write_table(table, tmp_path / "list.parquet")
    command = ["score", str(tmp_path / f"list.{form}"), str(digit_folder / "5"), "--model", str(run_dir), "--out", str(out)]
    assert cli(*command, "--workers", "0", "--keep", "taken,site", "--unit-rows", "16").returncode == 0
    found = {row["source"]: row for row in rows(out)}
    number = len(list((digit_folder / "5").iterdir()))
    assert len(found) == verify(str(out)).inputs == 40 + number
    for image, name, taken in zip(images, site.to_pylist(), table["taken"].to_pylist(), strict=True):
        expected = (name or "", f"{taken}.{taken.microsecond // 1000:03d}"[:23]) if form == "csv" else (name, taken)
        assert (found[str(image)]["site"], found[str(image)]["taken"]) == expected
    assert {found[str(image)]["site"] for image in (digit_folder / "5").iterdir()} == {None}


def test_kept_columns_of_tables_and_manifests_must_agree(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    pq.write_table(pa.table({"path": ["a.png"], "id": [1]}), tmp_path / "list.parquet")
    pa_csv.write_csv(pixel_table(mnist5k, 10, id=range(10)), tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train.csv: its columns for --keep are id \(string\); .* id \(int64\)"):
        run(tmp_path / "list.parquet", tmp_path / "train.csv", out=out, keep="id")
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(UsageError, match="--keep id: copies columns of tables and manifests"):
        run(tmp_path / "list.txt", out=out, keep="id")
    with pytest.raises(DataError, match=r"list.parquet: has no column 'site' for --keep; its columns: path \(string\), id"):
        run(tmp_path / "list.parquet", out=out, keep="site")
    assert not out.exists()
