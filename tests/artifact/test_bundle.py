import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_ray.artifact import bundle, seal
from mnist_ray.artifact.evaluate import evaluate
from mnist_ray.artifact.predictor import Predictor, pick_device
from mnist_ray.data.digits import Splits
from mnist_ray.data.statistics import wilson_interval
from mnist_ray.errors import ModelError

CPU = torch.device("cpu")


@pytest.fixture
def model(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir / "model", tmp_path / "model"))


def test_a_bundle_describes_itself(run_dir: Path, mnist5k: Splits) -> None:
    loaded = bundle.load(str(run_dir))
    assert loaded.digest == bundle.load(str(run_dir / "model")).digest
    card = loaded.card
    assert card["classes"] == [str(digit) for digit in range(10)]
    assert card["input"]["shape"] == ["N", 28, 28]
    assert card["data"]["name"] == "mnist5k"
    assert card["data"]["train_sha256"] == mnist5k.train.digest
    assert "CC BY-SA 3.0" in card["data"]["terms"]
    low, high = card["accuracy"]["interval_95"]
    assert low < card["accuracy"]["value"] < high
    assert card["accuracy"]["num_images"] == 500
    assert {"torch", "python", "mnist_ray"} <= set(card["versions"])


def test_the_card_and_the_metrics_hold_the_accuracy_of_the_predictor(run_dir: Path, mnist5k: Splits) -> None:
    loaded = bundle.load(str(run_dir))
    report = evaluate(mnist5k.test, Predictor.ready(loaded, CPU))
    assert report.accuracy == loaded.card["accuracy"]["value"] == json.loads((run_dir / "metrics.json").read_text())["accuracy"]
    assert report.accuracy > 0.93


@pytest.mark.parametrize("name", [*seal.FILES, "digest.json"])
@pytest.mark.parametrize("kind", ["changed", "cut", "missing"])
def test_a_damaged_file_is_named(name: str, kind: str, model: Path) -> None:
    data = (model / name).read_bytes()
    if kind == "missing":
        (model / name).unlink()
    else:
        (model / name).write_bytes(data[:-9] if kind == "cut" else data.replace(b"1", b"2", 1) if b"1" in data else data[::-1])
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        bundle.load(str(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"classes": ["A", "B"]}, r"the classes of this model are \['A', 'B'\]; this program has \['0', "),
    ],
)
def test_a_bundle_of_another_format_or_other_classes_is_refused(model: Path, change: dict[str, object], message: str) -> None:
    files, _ = seal.read(str(model))
    card = {**json.loads(files["card.json"]), **change}
    seal.write(str(model), {**files, "card.json": json.dumps(card).encode()})
    with pytest.raises(ModelError, match=message):
        bundle.load(str(model))


def test_wrong_weights_fail_the_self_test(model: Path) -> None:
    loaded = bundle.load(str(model))
    with torch.no_grad():
        next(loaded.model.parameters()).add_(0.1)
    with pytest.raises(ModelError, match="self-test differs"):
        Predictor.ready(loaded, CPU)


def test_a_bundle_contains_no_pickle(model: Path) -> None:
    assert sorted(path.suffix for path in model.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]


def test_predictions_do_not_depend_on_the_batch(run_dir: Path, mnist5k: Splits) -> None:
    predict = Predictor.ready(bundle.load(str(run_dir)), pick_device("cpu"))
    whole = predict(mnist5k.test.images)
    assert whole.labels.dtype == np.uint8
    assert whole.probabilities.shape == (500, 10)
    assert np.allclose(whole.probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(whole.confidence, whole.probabilities.max(axis=1))
    for part in (slice(0, 1), slice(3, 70)):
        assert np.array_equal(predict(mnist5k.test.images[part]).labels, whole.labels[part])
    assert predict(mnist5k.test.images[:0]).probabilities.shape == (0, 10)


def test_wilson_interval() -> None:
    """Reference values: Newcombe 1998, table I (81 of 263 and 0 of 20)."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_the_numbers_of_a_report_agree(mnist5k: Splits, run_dir: Path) -> None:
    report = evaluate(mnist5k.test, Predictor.ready(bundle.load(str(run_dir)), CPU))
    values = report.to_json()
    assert values["num_images"] == 500 == sum(map(sum, values["confusion"]))
    assert sum(row["recall"] * row["images"] for row in values["per_class"]) == pytest.approx(report.correct)
    assert f"{report.accuracy:.2%}" in report.to_text()
