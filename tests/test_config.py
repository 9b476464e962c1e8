from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.config import EvaluateConfig, ScoreConfig, TrainConfig
from mnist_ray.errors import OutputError, UsageError
from mnist_ray.flags import checkpoint_interval, output_folder, output_path, worker_range
from mnist_ray.recipes import RECIPES


def test_the_fingerprint_ignores_resources() -> None:
    config = TrainConfig()
    assert replace(config, workers="7", out="x", device="cpu", checkpoint_every="0.5").fingerprint() == config.fingerprint()
    for change in ({"seed": 1}, {"epochs": 6}, {"lr": 0.02}, {"data": "mnist5k"}, {"augment": False}, {"precision": "float32"}):
        assert replace(config, **change).fingerprint() != config.fingerprint()


def test_different_settings_get_different_run_directories() -> None:
    assert TrainConfig(epochs=1).run_directory() != TrainConfig(epochs=2).run_directory()
    assert TrainConfig(data="s3://bucket/digits").run_directory().startswith("runs/digits-")
    assert TrainConfig(out="here").run_directory() == "here"


def test_duplicate_kept_columns_are_dropped() -> None:
    config = ScoreConfig(inputs=("x",), model="m", out="o", keep="a, b,a,")
    assert config.kept_columns() == ("a", "b")


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": ()},
        {"inputs": ("",)},
        {"unit_rows": -1},
        {"workers": "-1"},
        {"workers": "many"},
        {"probabilities": "top10"},
        {"resume": True, "extend": True},
        {"rescore_changed": True},
        {"model": ""},
        {"out": ""},
        {"inputs": "x"},
        {"device": "gpu"},
        {"precision": "auto"},
        {"sample": 1.5},
        {"resume": "no"},
    ],
)
def test_wrong_scoring_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ScoreConfig(**{"inputs": ("x",), "model": "m", "out": "o", **wrong})  # type: ignore[arg-type]


def test_flags_override_the_recipe() -> None:
    recipe = TrainConfig(recipe="fast", epochs=2, lr=0.5, augment=False).settings()
    assert (recipe.epochs, recipe.lr, recipe.affine) == (2, 0.5, None)
    assert recipe.layers == RECIPES["fast"].layers
    same = TrainConfig(recipe="fast", global_batch_size=RECIPES["fast"].global_batch_size)
    assert same.fingerprint() == TrainConfig(recipe="fast").fingerprint()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", (1, "epochs")), ("0.5epochs", (0.5, "epochs")), ("200 steps", (200, "steps")), ("30s", (30, "seconds"))],
)
def test_checkpoint_intervals_are_parsed(text: str, expected: tuple[float, str]) -> None:
    assert checkpoint_interval(text) == expected


def test_worker_ranges_are_parsed() -> None:
    assert [worker_range(text) for text in ("0", "3", "1:4")] == [(0, 0), (3, 3), (1, 4)]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"workers": text} for text in ("-1", "a", "4:1", "0:2", "1:2:3", "")),
        *({"checkpoint_every": text} for text in ("0", "-1", "5m", "often", "", "9" * 400)),
        {"seconds": 5.0, "epochs": 1.0},
        {"patience": -1},
        {"label_smoothing": 1.0},
    ],
)
def test_wrong_training_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "bounds"),
    [
        ({"lr": 1000.0}, "--lr 1000.0: expected a learning rate above 0, below 100"),
        ({"weight_decay": 10.0}, "--weight-decay 10.0: expected 0 or more, below 10"),
        ({"epochs": 1e6}, "--epochs 1000000.0: expected passes above 0, below 1e6"),
        ({"seconds": 1e9}, "--seconds 1000000000.0: expected seconds, 0 or more, below 1e9"),
    ],
)
def test_a_refused_value_is_told_both_bounds(wrong: dict[str, Any], bounds: str) -> None:
    with pytest.raises(UsageError, match=bounds):
        TrainConfig(**wrong)


@pytest.mark.parametrize("uri", ["s3://", "memory://", "s3:///"])
def test_a_uri_of_nothing_is_refused(uri: str) -> None:
    """It is what an unset variable makes of s3://$BUCKET."""
    with pytest.raises(UsageError, match=f"{uri}: names no folder"):
        output_path(uri)


def test_a_slash_at_the_end_of_a_uri_is_left_out() -> None:
    assert output_path("s3://bucket/run/") == "s3://bucket/run"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "fastest"}, "--recipe 'fastest': expected one of fast, standard, best"),
        ({"device": "gpu"}, "--device 'gpu': expected one of auto, cpu, cuda"),
        ({"precision": "float16"}, "--precision 'float16': expected one of auto, float32, bfloat16"),
        ({"augment": "off"}, "--augment 'off': expected True or False, or None"),
        ({"epochs": "many"}, "--epochs 'many': expected a number, or None"),
        ({"global_batch_size": 64.7}, "--global-batch-size 64.7: expected a whole number, or None"),
        ({"seed": 1.5}, "--seed 1.5: expected a whole number"),
        ({"seed": True}, "--seed True: expected a whole number"),
        ({"seconds": None}, "--seconds None: expected a number"),
        ({"address": None}, "--address None: expected text"),
    ],
)
def test_a_value_of_another_type_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(**wrong)
    assert str(error.value) == message


def test_whole_numbers_and_those_of_numpy_are_numbers() -> None:
    assert TrainConfig(epochs=2, lr=np.float64(0.01)).fingerprint() == TrainConfig(epochs=2.0, lr=0.01).fingerprint()
    assert TrainConfig(seconds=30).fingerprint() == TrainConfig(seconds=30.0).fingerprint()


def test_a_trailing_slash_does_not_make_another_run() -> None:
    assert TrainConfig(data="digits/").fingerprint() == TrainConfig(data="digits").fingerprint()


def test_nothing_is_no_dataset() -> None:
    with pytest.raises(UsageError, match="--data is empty"):
        EvaluateConfig(model="m", data="")
    with pytest.raises(UsageError, match="--model is empty"):
        EvaluateConfig(model="")


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_an_output_folder_that_is_a_file_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"^--out .*/file{below}: {tmp_path}/file is no folder; expected one"):
        output_folder(f"{tmp_path}/file{below}")
    assert output_folder(f"{tmp_path}/none/a") == f"{tmp_path}/none/a"
    assert output_folder("s3://bucket/a/") == "s3://bucket/a"
