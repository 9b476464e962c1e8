"""Temperature, likeness and the threshold for a review."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mnist_ray.artifact import bundle
from mnist_ray.artifact.confidence import Confidence, temperature
from mnist_ray.artifact.predictor import Predictor
from mnist_ray.data.digits import UNLIKE, Splits
from mnist_ray.data.images import encode_png
from mnist_ray.data.measures import PROMISE, calibration, mistakes, review_below
from tests.conftest import cli

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def predictor(run_dir: Path) -> Predictor:
    return Predictor.ready(bundle.load(str(run_dir)), CPU)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scale(scale: float) -> None:
    """Labels are drawn from the softmax of known logits, which are then scaled."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((20_000, 10), generator=generator)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
    assert temperature(scale * logits, labels) == pytest.approx(scale, rel=0.03)


def test_a_model_without_mistakes_is_not_certain() -> None:
    labels = torch.arange(100) % 10
    logits = 3.0 * torch.eye(10)[labels]
    highest = torch.softmax(logits / temperature(logits, labels), 1).max()
    assert 0.97 < highest < 0.999


def test_the_card_says_what_calibration_did(run_dir: Path, predictor: Predictor, mnist5k: Splits) -> None:
    about = bundle.load(str(run_dir)).card["confidence"]
    error = about["expected_calibration_error"]
    assert error["after"] < error["before"] / 2
    found = predictor(mnist5k.test.images)
    right = found.labels == mnist5k.test.labels
    assert calibration(found.confidence, right)["expected_error"] < error["before"] / 2
    assert about["num_images"] == 500
    assert len(about["mistakes"]) == int((~right).sum())


def test_one_percent_of_held_out_digits_and_most_other_images_look_unlike_a_digit(
    predictor: Predictor, mnist5k: Splits
) -> None:
    digits = predictor(mnist5k.test.images).likeness
    assert digits.min() >= 0
    assert digits.max() <= 1
    assert (digits < UNLIKE).mean() == pytest.approx(UNLIKE, abs=0.003)
    random = np.random.default_rng(0)
    others = {
        "noise": random.integers(0, 256, (50, 28, 28), dtype=np.uint8),
        "blank": np.zeros((1, 28, 28), np.uint8),
        "full": np.full((1, 28, 28), 255, np.uint8),
        "chequered": (255 * (np.indices((28, 28)).sum(axis=0) // 4 % 2))[None].astype(np.uint8),
    }
    for name, images in others.items():
        assert (predictor(images).likeness < UNLIKE).mean() > 0.9, name


def test_likeness_does_not_depend_on_the_batch(predictor: Predictor, mnist5k: Splits) -> None:
    images = mnist5k.test.images[:70]
    alone = [predictor(images[i : i + 1]).likeness[0] for i in range(0, 70, 10)]
    assert np.abs(predictor(images).likeness[::10] - alone).max() < 1e-3


def test_a_bundle_that_was_not_measured_has_the_probabilities_of_the_network() -> None:
    logits = torch.tensor([[2.0, 1.0]])
    found = Confidence.read({}).predictions(logits, torch.ones(1))
    assert np.allclose(found.probabilities, torch.softmax(logits, 1))
    assert found.likeness.tolist() == [1.0]


def test_mistakes_count_the_answers_that_are_more_confident() -> None:
    confidence = np.array([0.9, 0.5, 0.8, 0.8, 0.99], np.float32)
    right = np.array([True, False, False, True, True])
    assert mistakes(confidence, right) == [(pytest.approx(0.8), 2), (0.5, 4)]


@pytest.mark.parametrize(
    ("images", "target", "expected"),
    [
        (2994, 0.001, None),  # without a mistake, 2,995 answers show 0.1 %: 0.999 ** 2995 < 0.05
        (2995, 0.001, -1.0),
        (298, 0.01, None),
        (299, 0.01, -1.0),
    ],
)
def test_so_many_answers_without_a_mistake_show_a_share(images: int, target: float, expected: float | None) -> None:
    assert review_below([], images, target) == expected


def test_a_threshold_keeps_its_promise() -> None:
    """Answers are right as often as they say. The true error above the threshold exceeds the target in few trials."""
    random = np.random.default_rng(1)
    confidences = 1 - random.beta(0.05, 2, 100_000).astype(np.float32)
    broken = trials = 0
    for _ in range(300):
        sample = random.choice(confidences, 4000)
        right = random.random(4000) < sample
        threshold = review_below(mistakes(sample, right), 4000, 0.01)
        if threshold is not None:
            trials += 1
            broken += float((1 - confidences[confidences > threshold]).mean()) > 0.01
    assert trials > 250
    assert broken / trials < 1 - PROMISE + 0.03


def test_a_job_marks_what_must_be_reviewed(run_dir: Path, mnist5k: Splits, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, image in enumerate(mnist5k.test.images[::5]):
        (tmp_path / "in" / f"{i}.png").write_bytes(encode_png(image))
    (tmp_path / "in" / "noise.png").write_bytes(encode_png(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)))
    flags = ["--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0"]
    done = cli("score", str(tmp_path / "in"), *flags, "--target-error", "1%")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out" / "predictions").to_pandas()
    card = bundle.load(str(run_dir)).card["confidence"]
    threshold = review_below(card["mistakes"], 500, 0.01)
    assert threshold is not None
    assert (table.needs_review == (table.confidence <= threshold) | (table.digit_likeness < UNLIKE)).all()
    assert table[table.source.str.endswith("noise.png")].needs_review.all()
    count = int(table.needs_review.sum())
    assert f"to be reviewed: {count} ({count / len(table):.1%})" in done.stdout
    assert f"not like a digit: {int((table.digit_likeness < UNLIKE).sum())} " in done.stdout
    assert cli("verify", str(tmp_path / "out")).returncode == 0


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("0.1%", "the 500 held-out digits of {model} with their"),
        ("2", "expected a share above 0 and below 1"),
        ("many", "expected a share above 0 and below 1"),
        ("0%", "expected a share above 0 and below 1"),
    ],
)
def test_a_share_that_cannot_be_kept_is_refused(
    share: str, message: str, run_dir: Path, digit_folder: Path, tmp_path: Path
) -> None:
    flags = ["--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0", "--target-error", share]
    done = cli("score", str(digit_folder), *flags)
    assert done.returncode == 2
    assert message.format(model=run_dir) in done.stderr
    assert not (tmp_path / "out").exists()
