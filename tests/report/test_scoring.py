"""The report of a scoring job: its facts against the tables, and its page in a browser."""

import json
import os
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.data import statistics
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from mnist_ray.report import page, scoring, sources
from mnist_ray.scoring.parts import unit_of
from tests.conftest import cli

NAMES = [
    b"<script>alert(1)</script>.png",
    b'"><img src=x onerror=alert(2)>.png',
    b"line\nbreak.png",
    b"\xff\xfe.png",
    b"a'b&c.png",
]
"""Hostile file names. The slash makes a folder of the first part."""
CheckPage = Callable[[Path], str]


def score(*inputs: Path, run: Path, out: Path, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Score without Ray; returns the facts of the report."""
    done = cli("score", *map(str, inputs), "--model", str(run), "--out", str(out), "--workers", "0", *more)
    assert "warning" not in done.stdout, done.stdout
    facts: dict[str, Any] = json.loads((out / "report.json").read_text())
    return facts


@pytest.fixture(scope="module")
def scored(run_dir: Path, digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished job over 300 digits in several parts, and the facts of its report."""
    out = tmp_path_factory.mktemp("scored") / "out"
    return out, score(digit_folder, run=run_dir, out=out, more=("--unit-rows", "64"))


@pytest.fixture
def messy(mnist5k: Splits, tmp_path: Path) -> Path:
    """Images with hostile names, a file that is no image, a damaged one, one with odd pixels, and a Parquet file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, image in zip(NAMES, mnist5k.test.images[::50], strict=False):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))
    (folder / "<b>bold.png").write_text("<script>alert(3)</script>")
    (folder / "cut.png").write_bytes(encode_png(mnist5k.test.images[0])[:90])
    rows = mnist5k.test.take(np.arange(0, 480, 12))
    cells = [*map(encode_png, rows.images), None]
    pq.write_table(pa.table({"image": cells, "label": [*rows.labels, 0]}), folder / "rows.parquet", row_group_size=16)
    return folder


def test_the_facts_are_those_of_the_table(scored: tuple[Path, dict[str, Any]], run_dir: Path) -> None:
    out, facts = scored
    table = pd.read_parquet(out / "predictions")
    assert facts["accounting"] == {"inputs": 300, "predicted": 300, "quarantined": 0, "verified": True, "problem": ""}
    right = table.label == table.truth
    assert facts["accuracy"]["value"] == right.mean()
    card = json.loads((run_dir / "model" / "card.json").read_text())
    assert facts["accuracy"]["reference"] == card["accuracy"]
    assert facts["digits"]["found"] == table.label.value_counts().reindex(range(10), fill_value=0).tolist()
    assert facts["digits"]["reference"] == card["reference"]["digits"]
    bins = pd.cut(table.confidence.astype(float), statistics.CONFIDENCE_EDGES, right=False, include_lowest=True)
    assert facts["traits"]["confidence"]["found"] == bins.value_counts(sort=False).tolist()
    assert (
        facts["confusion"]
        == pd.crosstab(table.truth, table.label).reindex(range(10), columns=range(10), fill_value=0).to_numpy().tolist()
    )
    for digit, rows in table.groupby("label"):
        least = [row["confidence"] for row in facts["examples"]["least_sure"] if row["label"] == digit]
        assert least == sorted(rows.confidence)[: scoring.LEAST_SURE]
        assert len([row for row in facts["examples"]["typical"] if row["label"] == digit]) == min(scoring.TYPICAL, len(rows))
    wrong = table[~right].sort_values("confidence", ascending=False)
    assert [row["confidence"] for row in facts["examples"]["mistakes"]] == wrong.confidence.tolist()[: scoring.MISTAKES]


def test_the_slowest_units_come_first(scored: tuple[Path, dict[str, Any]]) -> None:
    out, facts = scored
    slowest = facts["speed"]["slowest"]
    assert {unit["part"] for unit in slowest} == {path.name for path in (out / "predictions").iterdir()}
    assert sum(unit["inputs"] for unit in slowest) == 300
    seconds = [sum(unit["seconds"].values()) for unit in slowest]
    assert seconds == pytest.approx(sorted(seconds, reverse=True), abs=0.003)  # each stage is rounded
    assert sum(seconds) == pytest.approx(sum(facts["speed"]["seconds"]["workers"].values()), abs=0.1)


def test_the_reference_counts_the_test_images_of_the_model(run_dir: Path) -> None:
    card = json.loads((run_dir / "model" / "card.json").read_text())
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert card["reference"]["digits"] == np.sum(metrics["confusion"], axis=0).tolist()
    assert sum(card["reference"]["confidences"]) == metrics["num_images"]


def test_pictures_are_the_digits_as_the_network_saw_them(scored: tuple[Path, dict[str, Any]], mnist5k: Splits) -> None:
    _, facts = scored
    for row in facts["examples"]["typical"]:
        position = int(Path(row["source"]).stem)
        assert row["picture"] == page.picture(mnist5k.test.images[position])


@pytest.mark.slow
def test_the_page_opens_everywhere(scored: tuple[Path, dict[str, Any]], check_page: CheckPage) -> None:
    out, facts = scored
    text = check_page(out / "report.html")
    assert "300 inputs = 300 predicted + 0 quarantined" in text
    assert "verify has read every row again" in text
    assert facts["accuracy"]["verdict"] == "as expected"
    assert "Pass: the two intervals overlap" in text
    verdicts = {found["verdict"] for found in (facts["digits"], *facts["traits"].values())}
    assert ("no relevant drift" in text) == ("none" in verdicts)
    assert "mnist-ray score" in text
    assert (out / "report.html").read_bytes() == scoring.page(facts), "the page is made of the facts alone"


@pytest.mark.slow
def test_hostile_names_stay_text_and_quarantine_is_shown(
    messy: Path, run_dir: Path, tmp_path: Path, check_page: CheckPage
) -> None:
    facts = score(messy, run=run_dir, out=tmp_path / "out")
    assert (facts["accounting"]["predicted"], facts["accounting"]["quarantined"]) == (45, 3)
    assert {group["reason"]: group["count"] for group in facts["quarantine"]} == {
        "not_an_image": 1,
        "truncated": 1,
        "missing": 1,
    }
    file = tmp_path / "out" / "report.html"
    text = check_page(file)
    found = unescape(file.read_text())
    for shown in (
        "in/<script>alert(1)</script>.png",
        "src=x onerror=alert(2)>.png",
        "line\nbreak.png",
        "\\xff\\xfe.png",
        "in/<b>bold.png",
    ):
        assert shown in found
    assert "begins with b'<script>aler'" in text
    assert "<script" not in file.read_text().lower()
    assert "rows.parquet, row 40" in text


def test_rows_of_parquet_files_have_pictures(mnist5k: Splits, tmp_path: Path) -> None:
    """Cells of every kind, in several row groups."""
    digits = mnist5k.test.images[:30]
    cells = {
        "png": [encode_png(image) for image in digits],
        "raw": [image.tobytes() for image in digits],
        "struct": [{"bytes": encode_png(image), "path": "x"} for image in digits],
        "list": digits.reshape(30, 784).tolist(),
        "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(digits),
    }
    for name, column in cells.items():
        file = str(tmp_path / f"{name}.parquet")
        pq.write_table(pa.table({"image": column}), file, row_group_size=8)
        wanted: list[sources.Key] = [(file, row) for row in (29, 3, 8, 7)]
        assert sources.pictures(wanted, "") == {key: sources.Shown(page.picture(digits[key[1] or 0])) for key in wanted}, name
        assert sources.pictures([(file, 30)], "")[file, 30].note == "the file has no such row now"


def test_large_row_groups_are_not_read(mnist5k: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "rows.parquet")
    pq.write_table(pa.table({"image": [encode_png(image) for image in mnist5k.test.images[:20]]}), file, row_group_size=10)
    first = pq.read_metadata(file).row_group(0).column(0).total_compressed_size
    monkeypatch.setattr(sources, "MOST_TABLE_BYTES", first)
    found = sources.pictures([(file, 3), (file, 13)], "")
    assert found[file, 3].picture
    assert "row groups" in found[file, 13].note


def test_sources_that_are_gone_are_said_to_be_gone(mnist5k: Splits, tmp_path: Path) -> None:
    image, table = str(tmp_path / "0.png"), str(tmp_path / "rows.parquet")
    gone: list[sources.Key] = [(image, None), (table, 0)]
    assert {shown.note for shown in sources.pictures(gone, "").values()} == {"the source is gone"}
    Path(table).write_text("no table")
    assert "arquet" in sources.pictures(gone, "")[table, 0].note
    assert sources.previews([image]) == {image: sources.Shown()}


def test_a_rejected_file_that_can_be_decoded_has_a_picture(tmp_path: Path) -> None:
    import cv2

    file = tmp_path / "float.tiff"
    cv2.imwrite(str(file), np.linspace(-5, 5, 60 * 30, dtype=np.float32).reshape(60, 30))
    assert sources.previews([str(file)])[str(file)].picture.startswith("data:image/png")


@pytest.mark.slow
def test_a_table_without_truth_or_predictions(run_dir: Path, mnist5k: Splits, tmp_path: Path, check_page: CheckPage) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "one.png").write_bytes(encode_png(mnist5k.test.images[0]))
    facts = score(folder, run=run_dir, out=tmp_path / "out")
    assert (facts["accuracy"], facts["confusion"], facts["digits"]["verdict"]) == (None, None, "too few images")
    (folder / "one.png").write_bytes(b"")
    facts = score(folder, run=run_dir, out=tmp_path / "none")
    assert (facts["accounting"]["predicted"], facts["digits"]["verdict"]) == (0, "unknown")
    assert "0 predicted + 1 quarantined" in check_page(tmp_path / "none" / "report.html")


def test_a_defect_of_the_report_is_one_warning(
    run_dir: Path, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("a defect\nof two lines")

    monkeypatch.setattr(scoring, "page", broken)
    done = cli("score", str(digit_folder / "0"), "--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0")
    assert done.returncode == 0
    warnings = [line for line in done.stdout.splitlines() if "warning" in line]
    assert warnings == ["warning: the report could not be written: RuntimeError: a defect"]
    assert not (tmp_path / "out" / "report.html").exists()
    assert cli("verify", str(tmp_path / "out")).returncode == 0


def test_a_new_start_removes_the_old_report(
    run_dir: Path, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    score(digit_folder / "0", run=run_dir, out=out)
    monkeypatch.setattr(scoring, "write_report", lambda *_: None)
    assert (
        cli(
            "score", str(digit_folder / "1"), "--model", str(run_dir), "--out", str(out), "--workers", "0", "--overwrite"
        ).returncode
        == 0
    )
    assert not list(out.glob("report.*"))


def test_many_parts_are_sampled(scored: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(scored[0], out)
    parts = {unit_of(path.name): [pq.read_metadata(path).num_rows, 0] for path in (out / "predictions").iterdir()}
    assert scoring._searched(parts) == list(parts)
    monkeypatch.setattr(scoring, "MOST_ROWS", 130)
    few = scoring._searched(parts)
    assert 1 <= len(few) <= 2
    assert set(few) < set(parts)
    monkeypatch.setattr(scoring, "MOST_ROWS", 1)
    assert len(scoring._searched(parts)) == 1


def test_a_table_that_does_not_add_up_is_said_first(scored: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(scored[0], out)
    next((out / "predictions").iterdir()).unlink()
    summary = json.loads((out / "summary.json").read_text())
    assert "is missing" in scoring._accounting(str(out), summary)["problem"]


def test_the_stability_index() -> None:
    assert statistics.stability_index([50, 30, 20], [500, 300, 200]) == pytest.approx(0, abs=1e-4)
    # By hand, for large counts: (0.5-0.4) ln(0.5/0.4) + (0.5-0.6) ln(0.5/0.6)
    assert statistics.stability_index([500_000, 500_000], [400_000, 600_000]) == pytest.approx(0.0405465, abs=1e-5)
    random = np.random.default_rng(0)
    samples = [np.bincount(random.integers(0, 10, 400), minlength=10).tolist() for _ in range(400)]
    above = [
        statistics.stability_index(a, b) > statistics.stability_by_chance(a, b)
        for a, b in zip(samples[::2], samples[1::2], strict=True)
    ]
    assert 0.01 < np.mean(above) < 0.1
