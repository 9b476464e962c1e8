"""Jobs say in words when their inputs look unlike the digits of the model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.artifact import seal
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import Digits
from mnist_ray.data.traits import PICTURED
from tests.conftest import cli
from tests.scoring.conftest import KilledError, Run

pytestmark = pytest.mark.usefixtures("run")  # jobs work in a thread of this process, also those of the command line
SQUARE = np.ones((2, 2), np.uint8)


def table(images: Digits, folder: Path) -> Path:
    """The images as a Parquet file."""
    pq.write_table(pa.table({"image": [image.tobytes() for image in images]}), folder / "digits.parquet")
    return folder / "digits.parquet"


def said(summary: dict[str, Any]) -> dict[str, str]:
    return {name: found["words"] for name, found in summary["drift"].items() if found["words"]}


def test_the_card_holds_the_traits_of_training_digits(run_dir: Path, mnist5k: Splits) -> None:
    card = json.loads((run_dir / "model" / "card.json").read_text())
    assert {name: sum(counts) for name, counts in card["reference"]["traits"].items()} == dict.fromkeys(PICTURED, 2250)
    assert card["format"] == 2


def test_nothing_is_said_of_usual_digits(run_dir: Path, digit_folder: Path, mnist5k: Splits, tmp_path: Path) -> None:
    for name, inputs in (("files", digit_folder), ("table", table(mnist5k.test.images, tmp_path))):
        out = tmp_path / name
        done = cli("score", str(inputs), "--model", str(run_dir), "--out", str(out), "--workers", "0")
        assert done.returncode == 0, done.stderr
        assert "drift" not in done.stdout
        summary = json.loads((out / "summary.json").read_text())
        assert said(summary) == {}
        assert {found["verdict"] for found in summary["drift"].values()} <= {"none", "too few images", "moderate"}


@pytest.mark.parametrize(
    ("change", "trait", "words"),
    [
        (lambda image: cv2.dilate(image, SQUARE), "stroke_width", "strokes are thicker than those the model was trained on"),
        (lambda image: cv2.erode(image, SQUARE), "stroke_width", "strokes are thinner than those the model was trained on"),
        (lambda image: image // 5 * 3, "ink_share", "digits have less ink than those the model was trained on"),
        (
            lambda image: np.roll(image, (2, -3), (0, 1)),
            "centre_distance",
            "digits are further from the middle than those the model was trained on",
        ),
    ],
    ids=["dilated", "eroded", "faint", "shifted"],
)
def test_a_change_of_the_digits_is_named(
    change: Callable[[Digits], Digits], trait: str, words: str, run_dir: Path, mnist5k: Splits, tmp_path: Path
) -> None:
    images = np.stack([change(image) for image in mnist5k.test.images[::2]])
    flags = ["--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0"]
    done = cli("score", str(table(images, tmp_path)), *flags)
    assert done.returncode == 0, done.stderr
    assert f"  drift: {words}\n" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["drift"][trait]["words"] == words
    assert summary["drift"][trait]["index"] > 0.25
    assert words in (tmp_path / "out" / "report.html").read_text()


def test_a_bundle_without_traits_is_not_compared(run_dir: Path, mnist5k: Splits, tmp_path: Path) -> None:
    model = Path(shutil.copytree(run_dir / "model", tmp_path / "model"))
    files, _ = seal.read(str(model))
    card = json.loads(files["card.json"])
    del card["reference"]["traits"]
    seal.write(str(model), {**files, "card.json": json.dumps(card).encode()})
    inputs = table(np.roll(mnist5k.test.images[:200], 5, 2), tmp_path)
    done = cli("score", str(inputs), "--model", str(model), "--out", str(tmp_path / "out"), "--workers", "0")
    assert (done.returncode, "warning" in done.stdout) == (0, False), done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {summary["drift"][name]["verdict"] for name in PICTURED} == {"unknown"}
    assert not said(summary).keys() & set(PICTURED)


def test_a_resumed_job_finds_the_same_drift(run: Run, digit_folder: Path, tmp_path: Path) -> None:
    undisturbed = run(digit_folder, out=tmp_path / "one", unit_rows=50)
    with pytest.raises(KilledError):
        run(digit_folder, out=tmp_path / "two", unit_rows=50, kill_after=3)
    assert run(digit_folder, out=tmp_path / "two", unit_rows=50, resume=True)["drift"] == undisturbed["drift"]
    assert sum(undisturbed["drift"]["ink_share"]["found"]) == 300
