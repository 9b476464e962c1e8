"""The report of a training run: its facts, its page, the command `mnist-ray report`, and faults."""

import base64
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tyro.extras import subcommand_cli_from_dict

from mnist_ray.artifact import bundle
from mnist_ray.artifact.predictor import Predictor
from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.data.digits import Predictions, Splits
from mnist_ray.data.measures import calibration, selection
from mnist_ray.learn.control import RunControl
from mnist_ray.report import facts as report_facts
from mnist_ray.report import training
from mnist_ray.report.page import short_name
from mnist_ray.run.worker import work
from tests.conftest import cli

CPU = torch.device("cpu")
NUMBER = r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?"


def facts_of(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "report.json").read_text())
    return facts


@pytest.fixture(scope="module")
def predictions(run_dir: Path, mnist5k: Splits) -> Predictions:
    """The predictions of the finished run, from its bundle."""
    return Predictor.ready(bundle.load(str(run_dir)), CPU)(mnist5k.test.images)


@pytest.fixture(scope="module")
def poor_run(tmp_path_factory: pytest.TempPathFactory, small: Splits) -> Path:
    """A run of a few steps on few digits, in a folder whose name looks like HTML."""
    run = tmp_path_factory.mktemp("poor") / "a <b>run"
    assert work(str(run), TrainConfig(data="small", workers="0", epochs=0.25, seed=3), "cpu", small, RunControl())
    return run


def test_the_figures_are_those_of_the_predictions(run_dir: Path, mnist5k: Splits, predictions: Predictions) -> None:
    facts = facts_of(run_dir)
    truths, answers = mnist5k.test.labels.tolist(), predictions.labels.tolist()
    cells = Counter(zip(truths, answers, strict=True))
    assert facts["metrics"] == json.loads((run_dir / "metrics.json").read_text())
    assert facts["metrics"]["confusion"] == [[cells[i, j] for j in range(10)] for i in range(10)]
    assert facts["num_mistakes"] == sum(truth != answer for truth, answer in zip(truths, answers, strict=True)) > 0
    weights = bundle.load(str(run_dir)).model.state_dict()
    norms = ("running_mean", "running_var", "num_batches_tracked")
    assert facts["num_parameters"] == sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(norms))
    assert len(facts["filters"]) == len(weights["features.0.weight"])
    assert facts["history"][-1]["test_accuracy"] == pytest.approx(facts["metrics"]["accuracy"], abs=0.005)


def test_the_calibration_is_that_of_the_predictions(run_dir: Path, mnist5k: Splits, predictions: Predictions) -> None:
    found = facts_of(run_dir)["calibration"]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, answer, truth in zip(predictions.confidence, predictions.labels, mnist5k.test.labels, strict=True):
        number = next(i for i in range(15) if confidence <= (i + 1) / 15)
        bins.setdefault(number, []).append((float(confidence), answer == truth))
    error = 0.0
    for number, members in bins.items():
        confidence, accuracy = (sum(column) / len(members) for column in zip(*members, strict=True))
        assert found["bins"][number]["images"] == len(members)
        assert found["bins"][number]["accuracy"] == pytest.approx(accuracy)
        error += abs(confidence - accuracy) * len(members) / 500
    assert found["expected_error"] == pytest.approx(error)
    assert sum(row["images"] for row in found["bins"]) == 500


def test_the_thresholds_hold_on_the_predictions(run_dir: Path, mnist5k: Splits, predictions: Predictions) -> None:
    found = facts_of(run_dir)["selection"]
    wrong = predictions.labels != mnist5k.test.labels
    for row in [*found["curve"], *found["wanted"]]:
        accepted = predictions.confidence >= np.float32(row["threshold"])
        assert row["images"] == accepted.sum()
        assert row["mistakes"] == (accepted & wrong).sum()
        assert row["error"] == row["mistakes"] / row["images"]
        assert row["share"] == row["images"] / 500
    assert found["curve"][-1]["images"] == 500
    for row in found["wanted"]:
        assert row["error"] <= 1 - row["accuracy"] + 1e-12
        lower = [c for c in predictions.confidence if c < np.float32(row["threshold"])]
        for threshold in sorted(lower, reverse=True):  # no lower threshold is good enough
            accepted = predictions.confidence >= threshold
            assert (accepted & wrong).sum() / accepted.sum() > 1 - row["accuracy"]


def test_equal_confidences_are_accepted_together_and_a_threshold_may_not_exist() -> None:
    confidence = np.array([0.5, 0.9, 0.5, 0.9, 0.2], np.float32)
    right = np.array([True, False, True, True, True])
    found = selection(confidence, right)
    assert [(row["images"], row["mistakes"]) for row in found["curve"]] == [(2, 1), (4, 1), (5, 1)]
    assert found["wanted"] == [{"accuracy": 0.99}, {"accuracy": 0.999}, {"accuracy": 0.9999}]
    exact = selection(np.linspace(1, 0.5, 10_000, dtype=np.float32), np.arange(10_000) != 9_999)
    assert [row["images"] for row in exact["wanted"]] == [10_000] * 3
    ends = calibration(np.array([0, 1], np.float32), np.array([False, True]))
    assert [row["images"] for row in ends["bins"]] == [1, *[0] * 13, 1]
    assert ends["expected_error"] == 0


def test_the_pictures_are_those_of_the_digits(run_dir: Path, mnist5k: Splits, predictions: Predictions) -> None:
    facts = facts_of(run_dir)
    for example in [*facts["right"], *facts["mistakes"]]:
        image = base64.b64decode(example["picture"].partition("base64,")[2])
        i = example["position"]
        pixels: Any = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(pixels, mnist5k.test.images[i])
        assert (example["truth"], example["label"]) == (mnist5k.test.labels[i], predictions.labels[i])
        assert example["confidence"] == pytest.approx(predictions.confidence[i], abs=1e-5)
    assert [example["label"] for example in facts["right"]] == [digit for digit in range(10) for _ in range(2)]
    assert len(facts["mistakes"]) == facts["num_mistakes"]
    assert all(one["confidence"] >= other["confidence"] for one, other in pairwise(facts["mistakes"]))
    assert facts["doubt"]["above"] == 0.99
    assert all(one["label_in_doubt"] == (one["confidence"] > 0.99) for one in facts["mistakes"])


def numbers_in(value: Any) -> Iterator[str]:
    """All ways in which a page may write the numbers in a JSON value."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(one)
        yield str(len(value))
    elif isinstance(value, str):
        yield from re.findall(NUMBER, value)
    elif isinstance(value, int | float):
        yield from (
            f"{value:,.0f}",
            f"{value:.0f}",
            f"{value:.1f}",
            f"{value:.6f}",
            f"{value / 60:.1f}",
            f"{value / 3600:,.1f}",
        )
        yield from (f"{value:.{digits}g}" for digits in (3, 4, 5, 6))
        yield from (f"{value:.{digits}%}".rstrip("%") for digits in (0, 1, 2))


def words_of(page: bytes) -> str:
    """The text of a page, also what is closed, without its charts."""
    text = re.sub(r"<(style|svg|title)\b.*?</\1>", " ", page.decode(), flags=re.DOTALL)
    return re.sub(r"<[^>]*>", " ", text)


def test_every_figure_on_the_page_is_in_the_facts(run_dir: Path) -> None:
    facts = facts_of(run_dir)
    known = {*numbers_in({**facts, "run": "", "command": ""}), "95", *map(str, range(1, len(facts["filters"]) + 1))}
    text = words_of((run_dir / "report.html").read_bytes())
    for own in (facts["run"], short_name(facts["run"]), facts["command"]):
        text = text.replace(own, "")
    found = re.findall(NUMBER, text)
    assert len(found) > 200
    assert not sorted(set(found) - known)


@pytest.mark.slow
def test_the_page_opens_everywhere(run_dir: Path, check_page: Callable[[Path], str]) -> None:
    facts, text = facts_of(run_dir), check_page(run_dir / "report.html")
    assert f"The network reads {facts['metrics']['accuracy']:.2%}".replace("%", " %") in text
    headings = re.findall(r"<h2>(.*?)</h2>", (run_dir / "report.html").read_text())
    assert headings == [
        *("Learning curves", "Confusion matrix", "Confidence", "Sample predictions", "Which answers to accept"),
        *("What the first layer learned", "Speed and machine", "How to repeat this run"),
    ]


def test_a_number_of_the_matrix_leads_to_its_images(run_dir: Path, browser: Any) -> None:
    mistake = facts_of(run_dir)["mistakes"][0]
    page = browser.new_page()
    page.goto((run_dir / "report.html").as_uri())
    place = f"#read-{mistake['truth']}-as-{mistake['label']}"
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = false)")
    page.click(f"a[href='{place}']")
    assert page.is_visible(f"{place} img")
    page.close()


@pytest.mark.slow
def test_a_poor_run_is_called_poor_and_its_name_stays_text(poor_run: Path, check_page: Callable[[Path], str]) -> None:
    facts, text = facts_of(poor_run), check_page(poor_run / "report.html")
    assert facts["metrics"]["accuracy"] < 0.88
    assert f"Training run {poor_run.parent.name}/a <b>run" in text
    assert "This is a poor result." in text or "has not learned to read" in text
    assert "Training was probably too short: it saw 150 samples, which is 0.25 epochs." in text
    cells = Counter((one["truth"], one["label"]) for one in facts["mistakes"])
    confusion = facts["metrics"]["confusion"]
    assert all(confusion[i][j] >= cells[i, j] >= min(8, confusion[i][j]) for i in range(10) for j in range(10) if i != j)
    assert len(facts["mistakes"]) < facts["num_mistakes"]


@pytest.mark.parametrize(
    ("losses", "settings", "words"),
    [
        ((0.9, 0.5, 0.3), {}, "Training may have been too short"),
        ((0.9, 0.3, 0.29), {}, ""),
        ((0.9,), {}, "The network was measured only once"),
        ((0.9, 0.5, 0.3), {"patience": 1}, "The model is that of epoch 2"),
    ],
)
def test_the_verdict_says_whether_the_curve_still_falls(
    run_dir: Path, losses: tuple[float, ...], settings: dict[str, Any], words: str
) -> None:
    facts = facts_of(run_dir)
    history = [{**row, "test_loss": loss} for row, loss in zip(facts["history"], losses, strict=False)]
    for row, accuracy in zip(history, (0.5, 0.7, 0.7), strict=False):
        row |= {"validation_accuracy": accuracy} if settings else {}
    facts["history"], facts["verdict"] = history, report_facts._verdict(TrainConfig(**settings), facts["metrics"], history)
    text = " ".join(words_of(training.draw(facts)).split())
    assert words in text
    assert bool(words) == any(one in text for one in ("too short", "The model is that of", "measured only once"))
    assert ("validation accuracy" in text) == bool(settings)


def test_the_schedule_is_the_one_that_was_used(run_dir: Path) -> None:
    facts = facts_of(run_dir)
    for row in facts["history"]:
        middle = row["samples_seen"] - (row["samples_seen"] % 128 or 128) / 2  # of the last batch
        x, y = ([point[name] for point in facts["schedule"]] for name in ("samples_seen", "lr"))
        assert row["lr"] == pytest.approx(np.interp(middle, x, y), abs=2e-4)


@pytest.mark.parametrize("flags", ["--data auto", "--augment off --seed 5 --epochs 0.5 --workers 1:4", "--data 'my digits'"])
def test_the_command_repeats_the_run(flags: str, mnist5k: Splits) -> None:
    def parse(words: list[str]) -> TrainConfig:
        config = subcommand_cli_from_dict({"train": TrainConfig, "other": TrainConfig}, args=["train", *words])
        assert isinstance(config, TrainConfig)
        return config

    given = parse(shlex.split(flags))
    program, command, *words = shlex.split(report_facts._command("/runs/my run", given, mnist5k))
    assert (program, command) == ("mnist-ray", "train")
    again = parse(words)
    assert again.out == "/runs/my run-again"
    assert again.data == {"auto": "mnist5k", "my digits": str(Path("my digits").absolute())}.get(given.data, given.data)
    assert {**again.identity(), "data": ""} == {**given.identity(), "data": ""}
    assert again.workers == given.workers


def test_a_page_is_redrawn_byte_by_byte_without_torch(run_dir: Path, tmp_path: Path) -> None:
    shutil.copy(run_dir / "report.json", tmp_path)
    program = (
        "import sys\nfrom mnist_ray.cli import main\n"
        f"assert main(['report', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert (tmp_path / "report.html").read_bytes() == (run_dir / "report.html").read_bytes()


def test_a_page_is_redrawn_in_a_bucket(run_dir: Path) -> None:
    bucket = "memory://reports/run"
    storage.write(f"{bucket}/report.json", (run_dir / "report.json").read_bytes())
    done = cli("report", bucket)
    assert done.stdout == f"written to {bucket}/report.html\n"
    assert storage.read(f"{bucket}/report.html") == (run_dir / "report.html").read_bytes()


@pytest.mark.slow
def test_runs_are_compared(run_dir: Path, poor_run: Path, tmp_path: Path, check_page: Callable[[Path], str]) -> None:
    page = tmp_path / "runs.html"
    done = cli("report", str(run_dir), str(poor_run), "--out", str(page))
    assert (done.returncode, done.stdout) == (0, f"written to {page}\n")
    text = check_page(page)
    for run in (run_dir, poor_run):
        assert str(run) in text
        assert f"{facts_of(run)['metrics']['accuracy']:.2%}".replace("%", " %") in text
    assert "measured on different test images" in text
    rows = dict(re.findall(r'<tr><th scope="row">([\w: ]+)</th>((?:<td>.*?</td>)+)</tr>', page.read_text()))
    assert rows["epochs"] == "<td>3</td><td>0.25</td>"
    assert rows["seed"] == "<td>0</td><td>3</td>"
    assert "global_batch_size" not in rows


def test_a_comparison_names_the_best_run_and_overlapping_intervals(run_dir: Path, tmp_path: Path) -> None:
    facts = facts_of(run_dir)
    worse = {**facts, "metrics": {**facts["metrics"], "accuracy": 0.5, "interval_95": [0.4, 0.6]}}
    for name, one in (("b", worse), ("a", facts), ("c", facts)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(one))
    page = tmp_path / "all.html"
    assert cli("report", *(str(tmp_path / name) for name in "bac"), "--out", str(page)).returncode == 0
    text = " ".join(words_of(page.read_bytes()).split())
    assert "Runs B and C read most" in text
    assert "The 95 % intervals of B and C overlap" in text
    assert "All settings, data, machines and versions are the same." in text


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (None, 3, "has no report.json, which training writes at its end; delete its metrics.json if it has one"),
        ("{", 3, "report.json: is damaged, or of another version"),
        ("[]", 3, "report.json: is damaged, or of another version"),
        ('{"format": 99}', 3, "expected format 1"),
        ('{"accounting": {}}', 3, "holds a prediction table, whose report is"),
    ],
)
def test_a_run_without_facts_is_refused(content: str | None, status: int, message: str, tmp_path: Path, run_dir: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    done = cli("report", str(run_dir), str(tmp_path))
    assert done.returncode == status
    assert message in done.stderr
    assert str(tmp_path) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done = cli("report", str(tmp_path / "none"))
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith(f"error: {tmp_path}/none: has no report.json: there is no such folder")


def test_too_many_runs_are_refused(run_dir: Path) -> None:
    done = cli("report", *[str(run_dir)] * 13)
    assert (done.returncode, done.stderr) == (2, "error: 13 runs: a comparison shows at most 12\n")


def test_a_fault_of_the_report_does_not_fail_the_run(small_idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of `mnist-ray report` then tells how to get the report, without training again."""
    run = tmp_path / "run"
    (run / "report.json" / "in the way").mkdir(parents=True)
    command = ("train", "--data", str(small_idx), "--workers", "0", "--epochs", "1", "--out", str(run))
    done = cli(*command)
    assert done.returncode == 0
    assert done.stdout.count("warning: the training report was not written: StorageError: ") == 1
    assert "report:" not in done.stdout
    metrics = json.loads((run / "metrics.json").read_text())
    shutil.rmtree(run / "report.json")
    assert "delete its metrics.json" in cli("report", str(run)).stderr
    (run / "metrics.json").unlink()

    seen = []
    outputs = Predictor.outputs

    def count(self: Predictor, digits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(digits))
        return outputs(self, digits)

    monkeypatch.setattr(Predictor, "outputs", count)
    again = cli(*command)
    assert seen == [20, 100], "after the self-test, the test images are evaluated once"
    assert f"report: {run}/report.html" in again.stdout
    assert facts_of(run)["metrics"] == {**metrics, "train_seconds": facts_of(run)["metrics"]["train_seconds"]}
    assert facts_of(run)["metrics"]["samples_seen"] == 600


def test_a_defect_of_the_report_is_a_warning(tmp_path: Path, small: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []

    class Control(RunControl):
        def show(self, record: dict[str, Any]) -> None:
            warnings[:] = record["warnings"]

    def fail(facts: dict[str, Any]) -> bytes:
        raise KeyError("curves")

    monkeypatch.setattr(training, "draw", fail)
    assert work(str(tmp_path), TrainConfig(data="small", workers="0", epochs=0.25), "cpu", small, Control())
    assert warnings == ["the training report was not written: KeyError: 'curves'"]
    assert (tmp_path / "report.json").exists()


def test_the_labels_in_doubt_are_those_of_the_source(mnist: Splits) -> None:
    """The labels of these images in the published answers, in the order of their positions."""
    published = [8, 0, 9, 4, 2, 5, 6, 6, 5, 5, 0, 1, 4, 6, 5]
    assert mnist.test.labels[list(report_facts.MISLABELLED)].tolist() == published
