"""What a scoring job says and how it ends, for inputs as people have them."""

import io
from pathlib import Path

import pillow_heif
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.scoring.verify import verify
from tests.conftest import cli
from tests.scoring.conftest import Run, rows


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
