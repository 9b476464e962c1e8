"""The scoring job, from plan to proof. Jobs run through `score()`, with a thread of this process as their only worker."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray import score_job as scoring_job
from mnist_ray.artifact import bundle, seal
from mnist_ray.artifact.predictor import Predictor
from mnist_ray.config import ScoreConfig
from mnist_ray.data import columns, patience, storage
from mnist_ray.data.digits import Predict, Splits
from mnist_ray.data.images import Digits, encode_png
from mnist_ray.data.listing import FileEntry, stat_file
from mnist_ray.errors import AccountingError, ClusterError, DataError, NothingScoredError, OutputError, StorageError, UsageError
from mnist_ray.run import processes
from mnist_ray.scoring import planner as planner_module
from mnist_ray.scoring import read
from mnist_ray.scoring.known import CHANGES, Known
from mnist_ray.scoring.plan import Plan
from mnist_ray.scoring.planner import Planner
from mnist_ray.scoring.tables import row_ranges
from mnist_ray.scoring.units import Units
from mnist_ray.scoring.verify import verify
from tests.conftest import thread_pool
from tests.scoring.conftest import KilledError, Run, killed, parts, rows


@pytest.fixture(scope="module")
def predict(run_dir: Path) -> Predict:
    """The model of `run_dir` as a function of digits."""
    return Predictor.ready(bundle.load(str(run_dir)), torch.device("cpu"))


def test_every_image_has_a_row(predict: Predict, run: Run, digit_folder: Path, out: Path, mnist5k: Splits) -> None:
    summary = run(digit_folder, out=out, unit_rows=64)
    table = pq.read_table(out / "predictions")
    assert (summary["inputs"], summary["predicted"], summary["quarantined"], summary["units"]) == (300, 300, 0, 5)
    by_source = {row["source"]: row for row in table.to_pylist()}
    for position in (0, 150, 299):
        label = mnist5k.test.labels[position]
        row = by_source[str(digit_folder / str(label) / f"{position:05d}.png")]
        assert row["label"] == predict(mnist5k.test.images[position : position + 1]).labels[0]
        assert (row["truth"], row["row"]) == (label, None)
        assert row["probabilities"][row["label"]] == row["confidence"]
    assert summary["accuracy"] == np.mean([row["truth"] == row["label"] for row in by_source.values()])
    assert sum(summary["digits"]) == 300
    assert table.schema.field("probabilities").type == pa.list_(pa.float32(), 10)
    proof = verify(str(out))
    assert (proof.inputs, proof.predicted, proof.quarantined, proof.units) == (300, 300, 0, 5)


def test_bad_images_are_quarantined_and_cost_nobody_else(run: Run, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    good = sorted(digit_folder.rglob("*.png"))[:10]
    folder = tmp_path / "in"
    folder.mkdir()
    for path in good:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("hello\n")
    (folder / "cut.png").write_bytes(good[0].read_bytes()[:100])
    (folder / "list.txt").write_text("gone.png\n")
    os.mkfifo(folder / "pipe")
    (folder / "list.lst").write_text("pipe\n")
    summary = run(folder, folder / "list.txt", folder / "list.lst", out=out)
    assert (summary["inputs"], summary["predicted"], summary["quarantined"]) == (15, 10, 5)
    found = {Path(row["source"]).name: (row["reason"], row["size_bytes"]) for row in rows(out, "quarantine")}
    assert found == {
        "empty.png": ("empty", 0),
        "text.png": ("not_an_image", 6),
        "cut.png": ("truncated", 100),
        "gone.png": ("missing", -1),
        "pipe": ("unreadable", -1),
    }
    assert summary["reasons"] == dict.fromkeys(("empty", "not_an_image", "truncated", "missing", "unreadable"), 1)
    assert verify(str(out)).quarantined == 5


def write_table(path: Path, images: Digits, labels: Digits, row_group_size: int = 40, **more: Any) -> None:
    table = pa.table({"id": np.arange(len(images)), "image": [encode_png(i) for i in images], "label": labels, **more})
    pq.write_table(table, path, row_group_size=row_group_size)


@pytest.mark.parametrize("row_group_size", [7, 40, 1000])
@pytest.mark.parametrize("unit_rows", [10, 64, 5000])
def test_parquet_rows_are_keyed_by_position(
    predict: Predict, run: Run, row_group_size: int, unit_rows: int, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    images, labels = mnist5k.test.images[:150], mnist5k.test.labels[:150]
    write_table(tmp_path / "t.parquet", images, labels, row_group_size)
    summary = run(tmp_path / "t.parquet", out=out, unit_rows=unit_rows, keep="id,id")
    found = rows(out)
    assert [row["row"] for row in found] == [row["id"] for row in found] == list(range(150))
    assert [row["label"] for row in found] == predict(images).labels.tolist()
    assert [row["truth"] for row in found] == labels.tolist()
    assert summary["accuracy"] is not None
    assert verify(str(out)).inputs == 150


def test_huge_row_groups_are_cut_and_small_ones_joined() -> None:
    assert list(row_ranges([100_000], 2048)) == [(0, 32768), (32768, 32768), (65536, 32768), (98304, 1696)]
    assert list(row_ranges([10] * 10, 25)) == [(0, 20), (20, 20), (40, 20), (60, 20), (80, 20)]
    assert list(row_ranges([0, 5, 0], 4)) == [(0, 5)]


@given(st.lists(st.integers(0, 90_000), max_size=20), st.integers(1, 50_000))
def test_ranges_cover_every_row_once(sizes: list[int], unit_rows: int) -> None:
    position = 0
    for first, number in row_ranges(sizes, unit_rows):
        assert first == position
        assert number > 0
        position += number
    assert position == sum(sizes)


def test_damaged_parquet_costs_its_own_rows_alone(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    images, labels = mnist5k.test.images[:90], mnist5k.test.labels[:90]
    for name in ("a", "b", "c"):
        write_table(tmp_path / f"{name}.parquet", images, labels, 30)
    data = bytearray((tmp_path / "b.parquet").read_bytes())
    middle = pq.read_metadata(tmp_path / "b.parquet").row_group(1).column(1)
    for position in range(middle.data_page_offset, middle.data_page_offset + 40):
        data[position] = 0xFF
    (tmp_path / "b.parquet").write_bytes(data)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    summary = run(tmp_path, out=out, unit_rows=30)
    assert (summary["predicted"], summary["quarantined"]) == (150, 31)
    spoiled = rows(out, "quarantine")
    assert [row["row"] for row in spoiled if row["source"].endswith("b.parquet")] == list(range(30, 60))
    assert {row["reason"] for row in spoiled} == {"corrupt"}
    assert verify(str(out)).inputs == 181


def test_null_cells_are_quarantined_by_row(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    cells = [encode_png(mnist5k.test.images[0]), None, b"", b"no"]
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), tmp_path / "t.parquet")
    assert run(tmp_path, out=out)["accuracy"] is None
    assert [(row["row"], row["reason"]) for row in rows(out, "quarantine")] == [
        (1, "missing"),
        (2, "empty"),
        (3, "not_an_image"),
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": "nope"}, DataError, r"has no column 'nope' for --keep; its columns: id \(int64\)"),
        ({"keep": "label"}, UsageError, "--keep label: the tables have a column of this name"),
        ({"image_column": "id"}, DataError, "column 'id' is int64; expected image bytes"),
        ({"truth": "nope"}, DataError, "has no column 'nope'"),
    ],
)
def test_wrong_columns_are_named_before_anything_is_written(
    run: Run, options: dict[str, Any], error: type[Exception], message: str, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    write_table(tmp_path / "t.parquet", mnist5k.test.images[:5], mnist5k.test.labels[:5])
    with pytest.raises(error, match=message):
        run(tmp_path / "t.parquet", out=out, **options)
    assert not out.exists()


def test_kept_columns_must_agree(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    images, labels = mnist5k.test.images[:5], mnist5k.test.labels[:5]
    write_table(tmp_path / "a.parquet", images, labels, site=["x"] * 5)
    write_table(tmp_path / "b.parquet", images, labels, site=[1] * 5)
    with pytest.raises(DataError, match=r"b.parquet: its columns for --keep are site \(int64\); .* site \(string\)"):
        run(tmp_path, out=out, keep="site")
    (tmp_path / "x.png").touch()
    with pytest.raises(UsageError, match="no input has columns"):
        run(tmp_path / "x.png", out=out, keep="site")


def test_a_resumed_job_does_only_what_is_missing(run: Run, digit_folder: Path, out: Path) -> None:
    run(digit_folder, out=out, unit_rows=50)
    for part in sorted((out / "predictions").iterdir())[:3]:
        part.unlink()
    before = parts(out)
    with pytest.raises(AccountingError, match="is missing"):
        verify(str(out))
    assert run(digit_folder, out=out, unit_rows=50, resume=True)["scored_now"] == 150
    assert len(parts(out)) == 6
    assert before.items() <= parts(out).items(), "a finished unit was scored again"
    assert verify(str(out)).inputs == 300
    assert run(digit_folder, out=out, unit_rows=50, resume=True)["scored_now"] == 0


def test_a_damaged_part_is_done_again(run: Run, digit_folder: Path, out: Path) -> None:
    run(digit_folder, out=out, unit_rows=50)
    part = next((out / "predictions").iterdir())
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(AccountingError, match="cannot be used"):
        verify(str(out))
    assert run(digit_folder, out=out, unit_rows=50, resume=True)["scored_now"] == 50
    assert verify(str(out)).inputs == 300


def test_what_killed_processes_have_left_is_deleted(run: Run, digit_folder: Path, out: Path) -> None:
    run(digit_folder, out=out, unit_rows=100)
    left = [out / "predictions" / f".{0:032x}.tmp", out / f".{1:032x}.tmp"]
    left[0].write_bytes(b"half a part")
    (left[1] / "folder").mkdir(parents=True)
    mine = out / ".mine.tmp"
    mine.write_text("not ours")
    run(digit_folder, out=out, unit_rows=100, resume=True)
    assert [path.exists() for path in (*left, mine)] == [False, False, True]


@pytest.mark.parametrize(("asked", "limit", "expected"), [(0, "1", 1), (3, "1", 3)])
def test_containers_limit_the_processes_and_a_flag_sets_them(
    asked: int, limit: str, expected: int, run: Run, digit_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """loky's variable stands for the limit of a container, which loky reads as well."""
    made: list[int] = []

    def make(number: int, *_: object, **__: object) -> ThreadPoolExecutor:
        made.append(number)
        return thread_pool(1)()

    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", limit)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", make)
    run(digit_folder, out=out, processes=asked)
    assert made == [expected]


def test_parts_are_the_same_bytes_each_time(run: Run, digit_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(digit_folder, out=tmp_path / name, unit_rows=100)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n / "predictions").iterdir()} for n in ("a", "b"))
    assert first == second


def test_what_an_earlier_attempt_rejected_is_not_counted_twice(run: Run, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    """A job dies after it has written the quarantine part of a unit. Then the file that it rejected becomes readable."""
    images = tmp_path / "images"
    images.mkdir()
    good = next(digit_folder.rglob("*.png")).read_bytes()
    (images / "a.png").write_bytes(bytes(len(good)))
    (images / "b.png").write_bytes(good)
    run(images, out=out)
    next((out / "predictions").iterdir()).unlink()
    (images / "a.png").write_bytes(good)
    assert run(images, out=out, resume=True)["predicted"] == 2
    assert not list((out / "quarantine").iterdir())
    assert verify(str(out)).predicted == 2


def test_the_output_of_another_job_is_never_mixed(
    run: Run, run_dir: Path, digit_folder: Path, tmp_path: Path, out: Path
) -> None:
    other_model = tmp_path / "model"
    files, _ = seal.read(str(run_dir / "model"))
    seal.write(str(other_model), {**files, "card.json": files["card.json"] + b"\n"})
    run(digit_folder / "1", out=out)
    with pytest.raises(OutputError, match=r"is not empty; give --resume .* --overwrite"):
        run(digit_folder / "1", out=out)
    for change, message in (
        ({"model": other_model}, "model [0-9a-f]{64} -> "),
        ({"unit_rows": 9}, "unit_rows 0 -> 9"),
        ({"keep": "a"}, "keep  -> a"),
    ):
        with pytest.raises(OutputError, match=message):
            run(digit_folder / "1", out=out, resume=True, **change)
    with pytest.raises(OutputError, match="inputs"):
        run(digit_folder / "2", out=out, resume=True)
    (out / "mine.txt").touch()
    assert run(digit_folder / "2", out=out, overwrite=True)["inputs"] == len(list((digit_folder / "2").iterdir()))
    assert (out / "mine.txt").exists(), "a file that is not the job's was deleted"
    with pytest.raises(OutputError, match="holds other files and no scoring job"):
        run(digit_folder / "1", out=tmp_path, resume=True)


def test_inputs_and_output_never_meet(run: Run, digit_folder: Path, tmp_path: Path) -> None:
    """--overwrite would delete an input in the output folder. Tables in the input folder are not inputs."""
    folder = tmp_path / "in"
    (folder / "predictions").mkdir(parents=True)
    image = folder / "predictions" / "a.png"
    image.write_bytes(next(digit_folder.rglob("*.png")).read_bytes())
    with pytest.raises((UsageError, OutputError)):
        run(folder, out=folder, overwrite=True)
    assert image.exists()
    for _ in range(2):
        assert run(folder, out=folder / "out", overwrite=(folder / "out").exists())["inputs"] == 1


def test_a_file_that_changed_is_quarantined(run: Run, mnist5k: Splits, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    image, parquet = tmp_path / "a.png", tmp_path / "t.parquet"
    image.write_bytes(next(digit_folder.rglob("*.png")).read_bytes())
    write_table(parquet, mnist5k.test.images[:20], mnist5k.test.labels[:20], 10)
    run(image, parquet, out=out, unit_rows=10)
    of_image, of_rows = sorted((out / "predictions").iterdir(), key=lambda path: pq.read_metadata(path).num_rows)[:2]
    of_image.unlink()
    of_rows.unlink()
    image.write_bytes(image.read_bytes() + b"more")
    write_table(parquet, mnist5k.test.images[:40], mnist5k.test.labels[:40], 10)
    summary = run(image, parquet, out=out, unit_rows=10, resume=True)
    assert (summary["predicted"], summary["reasons"]) == (10, {"changed": 11})


def test_a_lost_quarantine_part_is_noticed(run: Run, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    inputs = (tmp_path / "bad.png", next(digit_folder.rglob("*.png")))
    run(*inputs, out=out)
    next((out / "quarantine").iterdir()).unlink()
    with pytest.raises(AccountingError, match=r"quarantine/part-.* is missing; run again with --resume"):
        verify(str(out))
    assert run(*inputs, out=out, resume=True)["scored_now"] == 2
    assert verify(str(out)).quarantined == 1


def test_a_job_that_could_score_nothing_is_an_error(run: Run, tmp_path: Path, out: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(
        NothingScoredError, match=r"none of 1 inputs could be scored \(not_an_image: 1\); .*/quarantine says why"
    ):
        run(tmp_path / "bad.png", out=out)
    assert verify(str(out)).quarantined == 1


def test_kept_views_and_huge_labels(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    table = pa.table(
        {
            "image": [encode_png(image) for image in mnist5k.test.images[:3]],
            "label": pa.array([2**64 - 1, 0, 3], pa.uint64()),
            "site": pa.array(["a", "b", None], pa.string_view()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    run(tmp_path / "t.parquet", out=out, keep="site")
    assert [(row["site"], row["truth"]) for row in rows(out)] == [("a", None), ("b", 0), (None, 3)]


@pytest.mark.parametrize("form", ["table", "manifest"])
def test_kept_columns_of_extension_types(form: str, run: Run, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    paths = sorted(digit_folder.rglob("*.png"))[:2]
    inputs = {"path": list(map(str, paths))} if form == "manifest" else {"image": [path.read_bytes() for path in paths]}
    stored = {"id": (pa.uuid(), [b"x" * 16, None]), "meta": (pa.json_(), ["{}", "[]"]), "flag": (pa.bool8(), [1, 0])}
    if form == "table":  # a manifest with tensors is a table of images
        stored["place"] = (pa.fixed_shape_tensor(pa.float32(), (2,)), [[1, 2], [3, 4]])
    kept = pa.table({name: pa.array(values, kind.storage_type).cast(kind) for name, (kind, values) in stored.items()})
    pq.write_table(pa.table({**inputs, **dict(zip(kept.column_names, kept.columns, strict=True))}), tmp_path / "t.parquet")
    for extend in (False, True):
        assert run(tmp_path / "t.parquet", out=out, keep=",".join(stored), extend=extend)["scored_now"] == 2 * (not extend)
    assert [{name: row[name] for name in stored} for row in rows(out)] == kept.to_pylist()
    assert pq.read_table(out / CHANGES).num_rows == 0


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([2**62], pa.timestamp("us")), "t.parquet: cannot be read as a manifest: date value out of range"),
        (pa.array([2**30], pa.date32()), "t.parquet: cannot be read as a manifest: days=1073741824"),
        (pa.array([["a"]], pa.list_(pa.string_view())), r"--keep k: values of the type list<.*string_view> cannot be copied"),
        (pa.nulls(1, pa.struct([("id", pa.uuid())])), r"--keep k: values of the type struct<id: .*uuid>> cannot be copied"),
    ],
    ids=["time", "date", "views", "struct"],
)
def test_kept_columns_of_a_manifest_that_cannot_be_copied_are_named(
    column: pa.Array, message: str, run: Run, tmp_path: Path, out: Path
) -> None:
    pq.write_table(pa.table({"path": ["a.png"], "k": column}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        run(tmp_path / "t.parquet", out=out, keep="k")


def test_an_empty_table_has_nothing_to_score(run: Run, tmp_path: Path, out: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="have no rows"):
        run(tmp_path / "t.parquet", out=out)


def test_a_repeated_manifest_line_is_an_input_of_its_own(run: Run, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    path = next(digit_folder.rglob("*.png"))
    (tmp_path / "list.txt").write_text(f"{path}\n" * 10)
    assert run(tmp_path / "list.txt", out=out, unit_rows=5)["inputs"] == 10
    assert len(list((out / "predictions").iterdir())) == 2
    assert verify(str(out)).inputs == 10


def planned(config: ScoreConfig) -> set[str]:
    plan = Plan({**config.identity(), "inputs": []}, "")
    return {unit.id for unit in Units(config, Known(plan, config.out), plan.job_id)}


def test_a_plan_does_not_depend_on_the_order_of_the_listing(digit_folder: Path) -> None:
    config = ScoreConfig(inputs=(str(digit_folder / "1"), str(digit_folder / "2")), model="m", out="o", unit_rows=20)
    one = planned(config)
    assert one == planned(replace(config, inputs=config.inputs[::-1]))
    assert not one & planned(replace(config, image_column="x"))


def test_a_job_whose_planning_was_cut_short_is_planned_again(
    monkeypatch: pytest.MonkeyPatch, run: Run, digit_folder: Path, tmp_path: Path, out: Path
) -> None:
    """Parts of the first plan count if their inputs are planned again, and are deleted if not."""
    folder = tmp_path / "in"
    shutil.copytree(digit_folder, folder)
    with monkeypatch.context() as patch:
        patch.setattr(Planner, "complete", killed)
        with pytest.raises(KilledError):
            run(folder, out=out, unit_rows=50)
    assert len(list((out / "predictions").iterdir())) == 6
    with pytest.raises(AccountingError, match="not all listed yet"):
        verify(str(out))
    max(folder.rglob("*.png")).unlink()
    summary = run(folder, out=out, unit_rows=50, resume=True)
    assert (summary["inputs"], summary["scored_now"]) == (299, 49)
    assert verify(str(out)).units == len(list((out / "predictions").iterdir())) == 6


def test_the_room_needs_no_torch() -> None:
    program = (
        "import sys, pkgutil, importlib, mnist_ray.scoring as room\n"
        "for module in pkgutil.iter_modules(room.__path__): importlib.import_module(f'mnist_ray.scoring.{module.name}')\n"
        "assert not {'torch', 'ray', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("wanted", "columns"), [("none", []), ("top3", ["top_labels", "top_probabilities"])])
def test_fewer_probabilities_are_written(
    run: Run, wanted: str, columns: list[str], digit_folder: Path, tmp_path: Path, out: Path
) -> None:
    run(digit_folder, out=out, probabilities=wanted)
    table = pq.read_table(out / "predictions")
    assert table.column_names == ["source", "row", "label", "confidence", "digit_likeness", *columns, "truth"]
    if columns:
        run(digit_folder, out=tmp_path / "all")
        for row, full in zip(rows(out), rows(tmp_path / "all"), strict=True):
            best = sorted(range(10), key=lambda digit: -full["probabilities"][digit])[:3]
            assert row["top_labels"] == best
            assert row["top_probabilities"] == [full["probabilities"][digit] for digit in best]
    assert verify(str(out)).inputs == 300
    with pytest.raises(OutputError, match=f"probabilities {wanted} -> all"):
        run(digit_folder, out=out, resume=True)


def test_the_least_confident_rows_are_found_without_reading_the_rest(
    run: Run, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    """Rows are sorted by confidence within a part, and row groups have statistics."""
    write_table(tmp_path / "t.parquet", mnist5k.train.images, mnist5k.train.labels, 5000)
    run(tmp_path / "t.parquet", out=out)
    (part,) = (out / "predictions").iterdir()
    metadata = pq.read_metadata(part)
    column = metadata.schema.names.index("confidence")
    bounds = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    assert len(bounds) > 3
    assert all(before.max <= after.min for before, after in pairwise(bounds))
    assert sorted(pq.read_table(part)["row"].to_pylist()) == list(range(4500))


def test_raw_pixels_need_no_decoding(predict: Predict, run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    images = mnist5k.test.images[:30]
    cells = [image.tobytes() for image in images]
    cells[7] = encode_png(images[7])
    cells[9] = b"\xff" * 784
    for kind, column in (("any", pa.array(cells, pa.binary())), ("fixed", pa.array(cells[10:], pa.binary(784)))):
        pq.write_table(pa.table({"image": column}), tmp_path / f"{kind}.parquet")
    run(tmp_path, out=out)
    found = {(Path(row["source"]).stem, row["row"]): row["label"] for row in rows(out)}
    expected = predict(images).labels.tolist()
    assert [found["any", i] for i in range(30) if i != 9] == expected[:9] + expected[10:]
    assert [found["fixed", i] for i in range(20)] == expected[10:]


@pytest.fixture
def growing(run: Run, digit_folder: Path, tmp_path: Path) -> Path:
    """A folder of 200 scored digits, to which 50 were added, of which one was changed and one was deleted."""
    folder = tmp_path / "in"
    images = sorted(digit_folder.rglob("*.png"))
    folder.mkdir()
    for path in images[:200]:
        shutil.copy(path, folder)
    run(folder, out=tmp_path / "out", unit_rows=40)
    for path in images[200:250]:
        shutil.copy(path, folder)
    shutil.copy(images[299], folder / images[10].name)
    os.utime(folder / images[10].name, ns=(1, 1))
    (folder / images[90].name).unlink()
    return folder


def test_only_what_is_new_is_added(run: Run, growing: Path, out: Path) -> None:
    before = parts(out)
    summary = run(growing, out=out, unit_rows=40, extend=True)
    assert (summary["scored_now"], summary["inputs"], summary["changed"], summary["vanished"]) == (50, 250, 1, 1)
    assert before.items() <= parts(out).items(), "a finished unit was touched"
    listed = {row["change"]: Path(row["source"]) for row in pq.read_table(out / CHANGES).to_pylist()}
    assert (listed["changed"].stat().st_mtime_ns, listed["vanished"].exists()) == (1, False)
    assert verify(str(out)).inputs == 250
    again = run(growing, out=out, unit_rows=40, extend=True)
    assert (again["scored_now"], again["inputs"]) == (0, 250)


def test_what_has_changed_is_scored_anew_when_asked(run: Run, growing: Path, out: Path) -> None:
    before = parts(out)
    summary = run(growing, out=out, unit_rows=40, extend=True, rescore_changed=True)
    assert (summary["inputs"], summary["predicted"]) == (249, 249)
    assert len(before.items() & parts(out).items()) == 3, "units without a change were touched"
    assert {Path(row["source"]).name for row in rows(out)} == {path.name for path in growing.iterdir()}
    assert verify(str(out)).inputs == 249
    assert run(growing, out=out, unit_rows=40, extend=True)["changed"] == 0


def test_the_list_of_changes_is_empty_when_every_unit_was_scored_anew(run: Run, growing: Path, out: Path) -> None:
    for path in growing.iterdir():
        os.utime(path, ns=(2, 2))
    assert run(growing, out=out, unit_rows=40, extend=True)["changed"] == 200 - 1
    assert run(growing, out=out, unit_rows=40, extend=True, rescore_changed=True)["changed"] == 0
    assert pq.read_table(out / CHANGES).num_rows == 0
    assert verify(str(out)).inputs == len(list(growing.iterdir()))


def test_a_rescoring_that_was_killed_before_its_sweep_is_resumed(
    monkeypatch: pytest.MonkeyPatch, run: Run, growing: Path, out: Path
) -> None:
    """The plan is complete, and the parts of dropped units are still there."""
    with monkeypatch.context() as patch:
        patch.setattr(scoring_job, "sweep", killed)
        with pytest.raises(KilledError):
            run(growing, out=out, unit_rows=40, extend=True, rescore_changed=True)
    summary = run(growing, out=out, unit_rows=40, resume=True)
    assert (summary["inputs"], summary["scored_now"]) == (249, 0)
    assert verify(str(out)).units == len(parts(out))


def test_an_extension_that_was_cut_short_goes_on(run: Run, growing: Path, out: Path) -> None:
    before = parts(out)
    with pytest.raises(KilledError):
        run(growing, out=out, unit_rows=40, extend=True, kill_after=1)
    with pytest.raises(AccountingError, match="not all listed yet"):
        verify(str(out))
    assert run(growing, out=out, unit_rows=40, resume=True)["inputs"] == 250
    assert before.items() <= parts(out).items()
    assert verify(str(out)).inputs == 250


def test_a_manifest_that_repeats_more_lines_is_extended_by_them(
    run: Run, digit_folder: Path, tmp_path: Path, out: Path
) -> None:
    path = next(digit_folder.rglob("*.png"))
    for lines, new in ((5, 5), (15, 10), (15, 0)):
        (tmp_path / "list.txt").write_text(f"{path}\n" * lines)
        summary = run(tmp_path / "list.txt", out=out, unit_rows=5, extend=True)
        assert (summary["scored_now"], summary["inputs"]) == (new, lines)
    assert verify(str(out)).units == 3


def test_a_column_without_a_true_digit_is_told(
    run: Run, digit_folder: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(digit_folder.rglob("*.png"))[:3]
    lines = (f"{path},{number + 10}" for number, path in enumerate(paths))
    (tmp_path / "list.csv").write_text("\n".join(["path,number", *lines]))
    summary = run(tmp_path / "list.csv", out=out, truth="number")
    assert (summary["predicted"], summary["accuracy"]) == (3, None)
    assert "--truth number: no input has a class there (0, 1, 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "changes"),
    [
        (["1,a,3", "2,b,4", "3,a,3", "4,c,5"], {("b", "changed")}),
        (["1,a,7", "2,b,4", "3,a,3", "5,c,5"], {("a", "changed"), ("b", "changed"), ("c", "changed")}),
        (["0,a,3", "1,a,3", "2,b,4", "3,a,3", "4,c,5"], {("b", "changed")}),
        (["3,a,3", "2,b,4", "4,c,5"], {("a", "vanished"), ("b", "changed")}),
    ],
    ids=["file", "columns", "more lines", "fewer lines"],
)
def test_the_lines_of_an_extended_manifest_are_told_apart(
    lines: list[str], changes: set[tuple[str, str]], run: Run, digit_folder: Path, tmp_path: Path, out: Path
) -> None:
    """Several lines have the same path. One file always changes."""
    digits = sorted(digit_folder.rglob("*.png"))

    def score(manifest: list[str], **options: bool) -> int:
        (tmp_path / "list.csv").write_text("\n".join(["id,path,label", *manifest]))
        scored: int = run(tmp_path / "list.csv", out=out, unit_rows=2, keep="id", **options)["scored_now"]
        return scored

    for name, digit in zip("abc", digits, strict=False):
        shutil.copy(digit, tmp_path / name)
    score(["1,a,3", "2,b,4", "3,a,3", "4,c,5"])
    os.utime(tmp_path / "b", ns=(1, 1))
    assert score(lines, extend=True) == max(0, len(lines) - 4)
    assert {(Path(row["source"]).name, row["change"]) for row in pq.read_table(out / CHANGES).to_pylist()} == changes
    score(lines, extend=True, rescore_changed=True)
    assert sorted(f"{row['id']},{Path(row['source']).name},{row['truth']}" for row in rows(out)) == sorted(lines)
    assert verify(str(out)).inputs == len(lines)


def test_a_sample_is_random_exact_and_the_same_each_time(
    run: Run, digit_folder: Path, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    """Of 300 image files and 700 rows, a sample of 100 holds 30 files and 70 rows."""
    write_table(tmp_path / "t.parquet", mnist5k.train.images[:700], mnist5k.train.labels[:700], 200)
    summary = run(digit_folder, tmp_path / "t.parquet", out=out, sample=100)
    found = rows(out)
    assert (summary["inputs"], len(found)) == (100, 100)
    files = [row["source"] for row in found if row["row"] is None]
    assert len(set(files)) == len(files) == 30
    assert len({Path(name).parent for name in files}) > 5, "not all from the beginning"
    assert len({row["row"] for row in found} - {None}) == 70
    run(digit_folder, tmp_path / "t.parquet", out=tmp_path / "again", sample=100)
    assert rows(tmp_path / "again") == found
    assert verify(str(out)).inputs == 100
    with pytest.raises(OutputError, match="sample 100 -> 0"):
        run(digit_folder, tmp_path / "t.parquet", out=out, resume=True)
    assert run(digit_folder, tmp_path / "t.parquet", out=tmp_path / "all", sample=5000)["inputs"] == 1000


def test_units_grow_with_the_job(tmp_path: Path) -> None:
    """A small job has even units, a large one has few parts."""
    lines = "\n".join(f"{number}.png" for number in range(60_000))
    (tmp_path / "list.txt").write_text(lines)
    config = ScoreConfig(inputs=(str(tmp_path / "list.txt"),), model="m", out="o")
    sizes = [unit.num_inputs for unit in Units(config, Known(Plan({}, ""), "o"), "job")]
    assert sum(sizes) == 60_000
    assert sizes[:3] == [513, 513, 513]
    assert all(a <= b for a, b in pairwise(sizes[:-1]))
    assert 3000 < max(sizes) < 60_000 / 12


def test_new_tables_are_added(run: Run, mnist5k: Splits, tmp_path: Path, out: Path) -> None:
    images, labels = mnist5k.test.images, mnist5k.test.labels
    write_table(tmp_path / "a.parquet", images[:100], labels[:100], 30)
    run(tmp_path, out=out, unit_rows=30, keep="id")
    write_table(tmp_path / "b.parquet", images[:50], labels[:50], 30)
    assert run(tmp_path, out=out, unit_rows=30, keep="id", extend=True)["scored_now"] == 50
    assert verify(str(out)).inputs == 150


def test_an_overwrite_that_was_killed_can_start_again(
    monkeypatch: pytest.MonkeyPatch, run: Run, digit_folder: Path, out: Path
) -> None:
    """The job dies while it deletes the parts of the job before it."""
    run(digit_folder / "1", out=out)
    delete = storage.delete

    def delete_or_die(uri: str, patience_s: float | None = None) -> None:
        if uri.endswith("/predictions"):
            raise KilledError
        delete(uri, patience_s)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", delete_or_die)
        with pytest.raises(KilledError):
            run(digit_folder / "2", out=out, overwrite=True)
    assert run(digit_folder / "2", out=out, overwrite=True)["inputs"] == len(list((digit_folder / "2").iterdir()))
    assert verify(str(out))


def test_a_table_whose_storage_fails_is_not_quarantined(
    monkeypatch: pytest.MonkeyPatch, run: Run, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    """The disk fails when the rows are read, after the plan is made."""
    write_table(tmp_path / "t.parquet", mnist5k.test.images[:20], mnist5k.test.labels[:20])

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:

        def look_up_and_fail(uri: str) -> FileEntry:
            patch.setattr(os, "pread", fail)
            return stat_file(uri)

        patch.setattr(patience, "PATIENCE_S", 0)
        patch.setattr(read, "stat_file", look_up_and_fail)
        with pytest.raises(StorageError, match=r"t.parquet: cannot be read: Input/output error"):
            run(tmp_path / "t.parquet", out=out)
    assert run(tmp_path / "t.parquet", out=out, resume=True)["predicted"] == 20


def test_a_folder_that_is_gone_is_not_quarantined(run: Run, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    """The folder is no longer mounted, or a worker on another machine does not have it."""
    folder = shutil.copytree(digit_folder / "1", tmp_path / "1")
    (folder / "link.png").symlink_to("nowhere")  # without a size in the listing
    assert run(folder, out=out)["reasons"] == {"missing": 1}
    next((out / "predictions").iterdir()).unlink()
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"The job listed \d+ such files, and none can be read there"):
        run(folder, out=out, resume=True)
    (tmp_path / "elsewhere").rename(folder)
    next(folder.iterdir()).unlink()
    assert run(folder, out=out, resume=True)["reasons"] == {"missing": 2}


@pytest.mark.parametrize("why", [errno.ENOENT, errno.EACCES])
def test_a_folder_that_is_gone_for_a_moment_is_read_again(
    monkeypatch: pytest.MonkeyPatch, run: Run, digit_folder: Path, tmp_path: Path, out: Path, why: int
) -> None:
    """A mount that is lost and comes back while a unit is read. One file is really missing."""
    folder = shutil.copytree(digit_folder / "1", tmp_path / "1")
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[3]).unlink()
    (folder / names[3]).symlink_to("nowhere")
    reads, open_file = 0, os.open

    def lose_mount(path: str, *flags: int) -> int:
        nonlocal reads
        reads += str(folder) in str(path)
        if 5 < reads <= len(names) and str(folder) in str(path):
            raise OSError(why, os.strerror(why))
        return open_file(path, *flags)

    monkeypatch.setattr(os, "open", lose_mount)
    summary = run(folder, out=out)
    assert reads > len(names)
    assert (summary["predicted"], summary["reasons"]) == (len(names) - 1, {"missing": 1})


def test_a_table_that_is_gone_for_a_moment_is_not_quarantined(
    monkeypatch: pytest.MonkeyPatch, run: Run, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    table, open_file = tmp_path / "t.parquet", os.open
    write_table(table, mnist5k.test.images[:20], mnist5k.test.labels[:20])
    planned, refusals = False, 1

    def lose_mount(path: str, *flags: int) -> int:
        nonlocal refusals
        if planned and refusals and str(path) == str(table):
            refusals -= 1
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return open_file(path, *flags)

    def look_up(uri: str) -> FileEntry:
        nonlocal planned
        planned = True
        return stat_file(uri)

    monkeypatch.setattr(os, "open", lose_mount)
    monkeypatch.setattr(read, "stat_file", look_up)
    with pytest.raises(StorageError, match=r"t.parquet: cannot be read: there is no such file, but only for a moment"):
        run(table, out=out)
    assert run(table, out=out, resume=True)["predicted"] == 20


@pytest.mark.parametrize(
    ("why", "message"),
    [
        (errno.ENOENT, r"t.parquet: was listed, and is not there any more"),
        (
            errno.EACCES,
            r"can be opened now, and could not when the plan was made; --resume keeps this plan, so give --overwrite$",
        ),
    ],
    ids=["gone", "denied"],
)
def test_a_table_that_cannot_be_opened_for_a_moment_is_not_quarantined(
    why: int, message: str, monkeypatch: pytest.MonkeyPatch, run: Run, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    write_table(tmp_path / "t.parquet", mnist5k.test.images[:20], mnist5k.test.labels[:20])
    open_input = storage.open_input
    refusals = [OSError(why, os.strerror(why))]

    def refuse_once(uri: str) -> pa.NativeFile:
        if refusals:
            raise refusals.pop()
        return open_input(uri)

    monkeypatch.setattr(storage, "open_input", refuse_once)
    with pytest.raises(StorageError, match=message):
        run(tmp_path, out=out)
    assert run(tmp_path, out=out, overwrite=True)["predicted"] == 20


def test_a_table_that_changes_while_it_is_read_has_no_rows_of_two_versions(
    monkeypatch: pytest.MonkeyPatch, run: Run, mnist5k: Splits, tmp_path: Path, out: Path
) -> None:
    table, read_rows = tmp_path / "t.parquet", columns.read_rows
    write_table(table, mnist5k.test.images[:20], mnist5k.test.labels[:20])

    def read_and_touch(*args: Any) -> Iterator[pa.RecordBatch]:
        os.utime(table, ns=(1, 1))
        yield from read_rows(*args)

    with monkeypatch.context() as patch:
        patch.setattr(columns, "read_rows", read_and_touch)
        with pytest.raises(StorageError, match=r"t.parquet: has changed while it was read; run again with --resume"):
            run(table, out=out)
    assert run(table, out=out, resume=True)["predicted"] == 20


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (480_032_512, ClusterError, r"memory ran out in unit \w+: malloc of size 480032512 failed; use fewer workers"),
        (1 << 40, NothingScoredError, r"corrupt: 20"),
    ],
)
def test_too_little_memory_is_not_taken_for_damage(
    size: int,
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    mnist5k: Splits,
    tmp_path: Path,
    out: Path,
) -> None:
    """A page of a damaged file may ask for more memory than any page can need."""
    write_table(tmp_path / "t.parquet", mnist5k.test.images[:20], mnist5k.test.labels[:20])

    def fail(*_: object) -> Iterator[pa.RecordBatch]:
        raise pa.ArrowMemoryError(f"malloc of size {size} failed")

    monkeypatch.setattr(columns, "read_rows", fail)
    with pytest.raises(error, match=message):
        run(tmp_path, out=out)


def test_all_units_are_scored_although_all_that_wait_end_at_once(
    monkeypatch: pytest.MonkeyPatch, run: Run, digit_folder: Path, out: Path
) -> None:
    """As if the driver was suspended for a while."""
    monkeypatch.setattr(processes, "wait", lambda running, *_, **__: wait(running))
    summary = run(digit_folder, out=out, unit_rows=5)
    assert summary["predicted"] == len(list(digit_folder.rglob("*.png")))
    verify(str(out))


def test_a_stopped_planner_plans_no_more_until_it_completes_the_plan(
    monkeypatch: pytest.MonkeyPatch, digit_folder: Path, out: Path
) -> None:
    monkeypatch.setattr(planner_module, "FIRST_PART", 10)
    config = ScoreConfig(inputs=(str(digit_folder),), model="m", out=str(out), unit_rows=5)
    planner = Planner(config, Plan(config.identity(), "digest"), {})
    units = planner.pending()
    next(units)
    planner.stop()
    assert len(list(units)) < 2, "the part of the plan that was written already has two units"
    assert not planner.listed
    files = len(list(digit_folder.rglob("*.png")))
    assert 10 == planner.num_inputs < planner.complete().num_inputs == files


def test_a_process_that_dies_while_it_loads_the_model_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, run: Run, digit_folder: Path, out: Path
) -> None:
    def die(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(processes, "predictor", die)
    with pytest.raises(ClusterError, match="the first scoring process ended while it started"):
        run(digit_folder, out=out)
