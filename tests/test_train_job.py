"""What the training job does with the content of its run directory."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.artifact import bundle
from mnist_ray.config import TrainConfig
from mnist_ray.console import Quiet
from mnist_ray.data import datasets, storage
from mnist_ray.data.digits import LabelledDigits, Splits
from mnist_ray.errors import OutputError
from mnist_ray.scoring.plan import PLAN
from mnist_ray.train_job import finished, train
from tests.conftest import cli, write_idx

pytestmark = pytest.mark.usefixtures("no_charts")


def _next_digits(digits: LabelledDigits) -> LabelledDigits:
    """The same images, each with the label of the next digit."""
    return replace(digits, labels=(digits.labels + 1) % 10)


def _short(data: Path, out: Path | str) -> TrainConfig:
    return TrainConfig(data=str(data), workers="0", epochs=0.2, out=str(out))


@pytest.fixture(scope="module")
def ended(small_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `small_idx`."""
    run = tmp_path_factory.mktemp("ended")
    train(_short(small_idx, run), Quiet())
    return run


def _cut(weights: str) -> None:
    storage.write(weights, storage.read(weights)[:-100])


@pytest.mark.parametrize("root", ["", "memory://bucket"])
@pytest.mark.parametrize("damage", [_cut, storage.delete])
def test_a_damaged_model_of_a_finished_run_is_written_again(
    damage: Callable[[str], None], root: str, ended: Path, small_idx: Path, tmp_path: Path
) -> None:
    run = f"{root}{tmp_path}"
    config, before = _short(small_idx, run), json.loads((ended / "metrics.json").read_text())
    for file in filter(Path.is_file, ended.rglob("*")):
        storage.write(f"{run}/{file.relative_to(ended)}", file.read_bytes())
    assert finished(run, config, datasets.load(config.data)) == before
    damage(f"{run}/model/weights.safetensors")
    metrics = train(config, Quiet())
    assert bundle.load(run).digest == metrics["model_digest"]
    assert metrics["train_seconds"] == before["train_seconds"], "it was trained again"


def test_a_finished_run_is_not_done_for_other_digits(small: Splits, tmp_path: Path) -> None:
    config = _short(write_idx(tmp_path / "idx", small), tmp_path / "run")
    train(config, Quiet())
    write_idx(tmp_path / "idx", replace(small, test=_next_digits(small.test)))
    with pytest.raises(OutputError, match=r"run: was trained on other digits than .*idx holds now; give another --out"):
        train(config, Quiet())
    shutil.rmtree(tmp_path / "idx")
    assert train(config, Quiet())["num_images"] == len(small.test), "a finished run needs no digits"


def test_a_run_that_learned_nothing_is_finished(small: Splits, tmp_path: Path) -> None:
    """Its network is worse than chance, because the test digits have wrong labels."""
    data = write_idx(tmp_path / "idx", replace(small, test=_next_digits(small.test)))
    train(replace(_short(data, tmp_path / "run"), epochs=6.0), Quiet())
    assert json.loads((tmp_path / "run" / "report.json").read_text())["verdict"]["level"] == "chance"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (PLAN, {}, "holds a prediction table; give another --out"),
        ("digest.json", {}, "holds a model bundle; give another --out"),
        ("metrics.json", {}, "holds metrics.json, and no run; give another --out"),
        ("config.json", {"meaning": None}, "/config.json: is damaged; give another --out"),
        ("config.json", [], "/config.json: is damaged; give another --out"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(
    name: str, content: Any, message: str, small_idx: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    done = cli("train", "--data", str(small_idx), "--workers", "0", "--out", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert f"error: {tmp_path}" in done.stderr
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_digits_at_a_path_that_is_not_utf_8_are_trained_on(small_idx: Path, tmp_path: Path) -> None:
    data = tmp_path / os.fsdecode(b"digits-\xff")
    shutil.copytree(small_idx, data)
    train(_short(data, tmp_path / "run"), Quiet())
    assert bundle.load(str(tmp_path / "run")).card["data"]["name"] == str(data)


def test_epochs_with_patience_are_those_of_the_digits_that_are_learned(small_idx: Path, tmp_path: Path) -> None:
    metrics = train(replace(_short(small_idx, tmp_path), epochs=2.0, patience=5), Quiet())
    assert metrics["epochs"] == 2


def test_a_run_without_its_settings_goes_on_although_another_was_refused(small_idx: Path, tmp_path: Path) -> None:
    """Also one whose settings are damaged, once they are deleted, as the message says."""
    config = _short(small_idx, tmp_path)
    before = train(config, Quiet())
    (tmp_path / "config.json").write_text("")
    with pytest.raises(OutputError, match="delete this file to continue from the checkpoints"):
        train(config, Quiet())
    (tmp_path / "config.json").unlink()
    with pytest.raises(OutputError, match="holds a run with other settings or data"):
        train(replace(config, lr=0.5), Quiet())
    assert train(config, Quiet())["model_digest"] == before["model_digest"]


def test_a_finished_run_without_a_report_says_how_to_get_one(small_idx: Path, tmp_path: Path) -> None:
    command = ("train", "--data", str(small_idx), "--workers", "0", "--epochs", "1", "--out", str(tmp_path))
    assert cli(*command).returncode == 0
    (tmp_path / "report.html").unlink()
    assert "warning: it has no report; delete its metrics.json" in cli(*command).stdout
