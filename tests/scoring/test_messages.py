"""What a scoring job says and how it ends, for inputs as people have them."""

import io
import shutil
from pathlib import Path

import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.errors import AccountingError, DataError, QuarantineError
from mnist_ray.scoring import schema
from mnist_ray.scoring.verify import verify
from tests.conftest import cli
from tests.scoring.conftest import Run, parts, rows


@pytest.fixture
def mixed(digit_folder: Path, tmp_path: Path) -> Path:
    """Six images, one of them a HEIC photo and one without a suffix, and two files that are ignored."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    images = sorted(digit_folder.rglob("*.png"))[::50]
    for path in images[:4]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "scan").write_bytes(images[4].read_bytes())
    photo = io.BytesIO()
    pillow_heif.from_pillow(Image.open(images[5]).convert("RGB").resize((280, 280))).save(photo)
    (folder / "IMG_0001.HEIC").write_bytes(photo.getvalue())
    (folder / "notes.txt").write_text("mine")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def test_ignored_files_are_counted_and_named(mixed: Path, run_dir: Path, run: Run, out: Path) -> None:
    command = ["score", str(mixed), "--model", str(run_dir), "--out", str(out), "--workers", "0"]
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert "6 inputs = 6 predicted + 0 quarantined" in done.stdout
    assert f"2 other files were ignored: {out}/ignored.parquet lists them" in done.stdout
    assert [Path(row["source"]).name for row in pq.read_table(out / "ignored.parquet").to_pylist()] == [
        ".DS_Store",
        "notes.txt",
    ]
    assert {Path(row["source"]).name: row["label"] for row in rows(out)}["IMG_0001.HEIC"] == 5
    verify(str(out))
    (mixed / "notes.txt").unlink()
    (mixed / ".DS_Store").unlink()
    assert "other files were ignored" not in cli(*command, "--extend").stdout
    assert not (out / "ignored.parquet").exists()
    verify(str(out))


@pytest.mark.parametrize("form", ["txt", "csv"])
def test_relative_paths_of_a_manifest(
    form: str, digit_folder: Path, run_dir: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the folder of the manifest, else against the working directory. The quarantine says what was tried."""
    images = sorted(digit_folder.rglob("*.png"))
    for name, place in (("lists/both.png", 0), ("work/both.png", 299), ("work/sub/here.png", 299)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(images[place].read_bytes())
    manifest = tmp_path / "lists" / f"list.{form}"
    manifest.write_text("path\n" * (form == "csv") + "both.png\nsub/here.png\nsub/gone.png\n/gone.png\n")
    monkeypatch.chdir(tmp_path / "work")
    done = cli("score", f"../lists/list.{form}", "--model", str(run_dir), "--out", str(out), "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert [(row["source"], row["label"]) for row in rows(out)] == [
        (str(tmp_path / "lists/both.png"), 0),
        (str(tmp_path / "work/sub/here.png"), 5),
    ]
    assert [(row["source"], row["detail"]) for row in rows(out, "quarantine")] == [
        ("/gone.png", "there is no such file"),
        (str(tmp_path / "lists/sub/gone.png"), f"there is no such file, and no {tmp_path / 'work/sub/gone.png'}"),
    ]
    verify(str(out))


@pytest.fixture
def damaged(digit_folder: Path, tmp_path: Path) -> Path:
    """200 inputs, of which the first 20 are no images."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for number, path in enumerate(sorted(digit_folder.rglob("*.png"))[:200]):
        (folder / path.name).write_bytes(b"no" if number < 20 else path.read_bytes())
    return folder


@pytest.mark.parametrize(("allowed", "done"), [("5", 10), ("4%", 10), ("15", 20), ("19", 20), ("20", 200), ("10%", 200)])
def test_a_job_stops_early_if_too_many_inputs_are_quarantined(
    allowed: str, done: int, run: Run, damaged: Path, out: Path
) -> None:
    if done == 200:
        assert run(damaged, out=out, unit_rows=10, max_quarantined=allowed)["quarantined"] == 20
        return
    with pytest.raises(QuarantineError, match=rf"{done} of the first {done} inputs .* --max-quarantined {allowed} allows"):
        run(damaged, out=out, unit_rows=10, max_quarantined=allowed)
    kept = parts(out)
    assert len(kept) >= done // 10
    summary = run(damaged, out=out, unit_rows=10, max_quarantined="10%", resume=True)
    assert (summary["predicted"], summary["quarantined"]) == (180, 20)
    assert kept.items() <= parts(out).items()
    verify(str(out))


def test_the_last_inputs_do_not_hide_that_too_many_are_quarantined(run: Run, damaged: Path, out: Path) -> None:
    with pytest.raises(QuarantineError, match=r"20 of 200 inputs .* allows \(not_an_image: 20\); .* The table is complete"):
        run(damaged, out=out, unit_rows=1000, max_quarantined="1%")
    verify(str(out))


def test_a_job_that_scored_nothing_has_a_status_of_its_own(run_dir: Path, run: Run, tmp_path: Path, out: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    done = cli("score", str(tmp_path / "bad.png"), "--model", str(run_dir), "--out", str(out), "--workers", "0")
    assert done.returncode == 9
    assert "none of 1 inputs could be scored (not_an_image: 1)" in done.stderr
    verify(str(out))


@pytest.mark.parametrize("probabilities", ["all", "top3"])
def test_every_column_carries_its_unit_and_meaning(
    probabilities: str, run: Run, damaged: Path, tmp_path: Path, out: Path
) -> None:
    paths = [str(path) for path in sorted(damaged.iterdir())[15:25]]
    pq.write_table(pa.table({"path": paths, "why": range(10)}), tmp_path / "list.parquet")
    run(tmp_path / "list.parquet", out=out, keep="why", probabilities=probabilities)
    for table in ("predictions", "quarantine"):
        for field in pq.read_schema(next((out / table).iterdir())):
            about = {name.decode(): text.decode() for name, text in field.metadata.items()}
            copied = ("as in the input", "copied from the input, as `--keep` says")
            expected = copied if field.name == "why" else schema.MEANINGS[field.name]
            assert (about["unit"], about["description"]) == expected
    verify(str(out))


def test_repaired_inputs_no_longer_count_as_quarantined(run: Run, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    """Their units have other ids than those that were scored before, whose parts are still there."""
    folder = tmp_path / "in"
    shutil.copytree(digit_folder / "1", folder)
    images = sorted(folder.iterdir())[:8]
    contents = [image.read_bytes() for image in images]
    for image in images:
        image.write_text("no image")
    with pytest.raises(QuarantineError, match="8 of the first"):
        run(folder, out=out, unit_rows=4, max_quarantined="5")
    for image, content in zip(images, contents, strict=True):
        image.write_bytes(content)
    summary = run(folder, out=out, unit_rows=4, max_quarantined="5", resume=True)
    assert (summary["inputs"], summary["quarantined"]) == (len(list(folder.iterdir())), 0)


def test_a_table_below_an_input_is_named(run: Run, digit_folder: Path, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(digit_folder / "1", folder)
    run(folder, out=folder / "table")
    with pytest.raises(DataError, match=f"{folder}/table: holds a prediction table, and is below an input; move it away"):
        run(folder, out=out)


def test_a_foreign_file_in_a_table_is_refused_before_anything_is_changed(
    run: Run, digit_folder: Path, tmp_path: Path, out: Path
) -> None:
    run(digit_folder / "1", out=out)
    (out / "predictions" / "mine.txt").touch()
    with pytest.raises(AccountingError, match=r"mine\.txt: is no part of this table; move it to another place"):
        run(digit_folder / "1", out=out, extend=True)
    assert (out / "commit.json").exists()
    with pytest.raises(AccountingError, match=r"mine\.txt: belongs to no unit of the plan; move it to another place"):
        verify(str(out))
    (out / "predictions" / "mine.txt").unlink()
    assert verify(str(out))


def test_a_file_of_a_table_is_no_table(run: Run, digit_folder: Path, out: Path) -> None:
    run(digit_folder / "1", out=out)
    done = cli("verify", str(out / "summary.json"))
    assert (done.returncode, "holds no scoring job" in done.stderr) == (5, True), done.stderr
    (out / "report.json").unlink()
    done = cli("report", str(out))
    assert (done.returncode, "holds a prediction table; expected a training run" in done.stderr) == (3, True), done.stderr
