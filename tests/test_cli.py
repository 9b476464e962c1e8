"""The command line: its flags, its imports and its exit statuses."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray import errors
from mnist_ray.cli import DESCRIPTION, main
from mnist_ray.config import (
    DiffConfig,
    DoctorConfig,
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    ScoreConfig,
    TrainConfig,
    VerifyConfig,
)

FLAGS = {
    TrainConfig: (
        "data out recipe workers device epochs global_batch_size lr weight_decay label_smoothing augment seconds patience seed "
        "checkpoint_every address"
    ),
    ScoreConfig: (
        "inputs model out workers device resume extend rescore_changed overwrite keep image_column truth_column probabilities "
        "unit_rows sample address dry_run price_per_node_hour"
    ),
    EvaluateConfig: "model data out device",
    PredictConfig: "images model",
    VerifyConfig: "out",
    ReportConfig: "runs out",
    DiffConfig: "old new out json",
    DoctorConfig: "address out launch_file json",
}


@pytest.mark.parametrize("config", FLAGS, ids=lambda config: config.__name__)
def test_the_list_of_flags_is_unchanged(config: type) -> None:
    assert [field.name for field in dataclasses.fields(config)] == FLAGS[config].split()


@pytest.mark.parametrize("command", ["", "train", "score", "evaluate", "predict", "verify", "report", "diff", "doctor"])
def test_help_imports_neither_torch_nor_ray(command: str) -> None:
    program = (
        "import sys\nfrom mnist_ray.cli import main\n"
        f"try:\n    main([*{command.split()!r}, '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'cv2', 'torchvision', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: mnist-ray" in done.stdout


def test_every_exit_status_is_documented() -> None:
    statuses = {
        error.exit_status
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.MnistRayError)
    }
    assert statuses == {*range(1, 9), 143}
    assert set(errors.EXIT_STATUSES) == statuses | {0, 130}
    for status in errors.EXIT_STATUSES:
        assert f"{status} " in DESCRIPTION


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ("train --epochs 0", 2, "--epochs 0.0: expected passes above 0"),
        ("train --workers -1", 2, "--workers -1"),
        ("train --lr 0", 2, "--lr 0.0"),
        ("train --checkpoint-every 0", 2, "--checkpoint-every 0"),
        ("train --workers 4 --global-batch-size 2", 2, "--global-batch-size 128"),
        ("train --workers 0 --device cuda --data mnist5k", 2, "--device cuda"),
        ("train --data nowhere --workers 0", 3, "nowhere: there is no such file or folder"),
        ("score x --model nowhere --out OUT", 4, "nowhere: is neither a model bundle nor a finished run"),
        ("score x --model m --out OUT --resume --overwrite", 2, "--extend adds to it, and --overwrite replaces it"),
        ("score x --model m --out OUT --sample 5 --extend", 2, "--sample and --extend: give only one"),
        ("score x --model m --out OUT --sample -1", 2, "--sample -1: expected a number of inputs"),
        ("evaluate --model nowhere", 4, "nowhere: is neither"),
        ("verify nowhere", 5, "holds no scoring job"),
        ("report nowhere", 3, "nowhere: has no report.json"),
        ("diff nowhere elsewhere", 5, "nowhere: holds no scoring job"),
    ],
)
def test_user_errors_print_one_line(
    args: str, status: int, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = ["--out", str(tmp_path / "run")] if args.startswith("train") else []
    assert main([*args.replace("OUT", str(tmp_path / "out")).split(), *run]) == status
    printed = capfd.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    assert message in printed[0]
    assert not list(tmp_path.iterdir()), "a refused command must not write anything"


@pytest.mark.parametrize("args", [["train", "--bogus", "1"], ["train", "--epochs", "many"], ["nothing"], []])
def test_unknown_flags_and_values_exit_with_status_2(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert "Traceback" not in capfd.readouterr().err


def test_predict_prints_every_image(
    run_dir: Path, digit_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seven = str(next((digit_folder / "0").iterdir()))
    (tmp_path / "empty.png").touch()
    assert main(["predict", seven, "--model", str(run_dir)]) == 0
    assert f"{seven}: 0 (confidence" in capfd.readouterr().out
    assert main(["predict", str(tmp_path / "empty.png"), seven, str(tmp_path / "no.png"), "--model", str(run_dir)]) == 3
    out, err = capfd.readouterr()
    assert "empty.png: empty: 0 bytes" in out
    assert f"{seven}: 0" in out
    assert "no.png: missing" in out
    assert err == "error: 2 of 3 images could not be read; the reasons are printed above\n"


def test_evaluate_writes_what_it_prints(run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import json

    out = tmp_path / "evaluation.json"
    assert main(["evaluate", "--model", str(run_dir), "--data", "mnist5k", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert report["accuracy"] == metrics["accuracy"]
    assert f"accuracy {report['accuracy']:.2%}" in capfd.readouterr().out
