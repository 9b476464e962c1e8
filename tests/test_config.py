from __future__ import annotations

from dataclasses import replace

import pytest

from mnist_ray.config import ScoreConfig, TrainConfig
from mnist_ray.errors import UsageError


def test_the_fingerprint_names_results_and_not_resources() -> None:
    config = TrainConfig()
    assert replace(config, workers="7", out="x", device="cpu", checkpoint_every="0.5").fingerprint() == config.fingerprint()
    for change in ({"seed": 1}, {"epochs": 6}, {"lr": 0.02}, {"data": "mnist5k"}, {"augment": False}):
        assert replace(config, **change).fingerprint() != config.fingerprint()


def test_runs_with_other_settings_get_other_folders() -> None:
    assert TrainConfig(epochs=1).run_directory() != TrainConfig(epochs=2).run_directory()
    assert TrainConfig(data="s3://bucket/digits").run_directory().startswith("runs/digits-")
    assert TrainConfig(out="here").run_directory() == "here"


def test_kept_columns_are_named_once() -> None:
    config = ScoreConfig(inputs=("x",), model="m", out="o", keep="a, b,a,")
    assert config.kept_columns() == ("a", "b")


@pytest.mark.parametrize(
    "wrong", [{"inputs": ()}, {"inputs": ("",)}, {"unit_rows": 0}, {"workers": -1}, {"model": ""}, {"out": ""}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ScoreConfig(**{"inputs": ("x",), "model": "m", "out": "o", **wrong})  # type: ignore[arg-type]
