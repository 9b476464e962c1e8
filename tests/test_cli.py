"""The command line: its flags, its imports and its exit statuses."""

import dataclasses
import os
import shlex
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import get_type_hints

import pytest

import mnist_ray
from mnist_ray import __version__, errors
from mnist_ray.cli import _COMMANDS, DESCRIPTION, _parse, main
from mnist_ray.config import (
    CommitConfig,
    DiffConfig,
    DoctorConfig,
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    ScoreConfig,
    TrainConfig,
    VerifyConfig,
)
from mnist_ray.recipes import RECIPES
from tests.conftest import cli

FLAGS = {
    TrainConfig: (
        "data out checkpoint_every recipe epochs global_batch_size lr weight_decay label_smoothing augment precision seconds "
        "patience seed workers device address log_format quiet"
    ),
    ScoreConfig: (
        "inputs model image_column truth sample out resume extend rescore_changed overwrite keep probabilities target_error "
        "precision max_quarantined unit_rows workers processes device gpus_per_actor address "
        "shard dry_run price_per_node_hour log_format "
        "quiet"
    ),
    CommitConfig: "out overwrite log_format quiet",
    EvaluateConfig: "model data out device log_format quiet",
    PredictConfig: "images model",
    VerifyConfig: "out",
    ReportConfig: "runs out",
    DiffConfig: "old new out json",
    DoctorConfig: "address out launch_file json",
}


@pytest.mark.parametrize("config", FLAGS, ids=lambda config: config.__name__)
def test_the_list_of_flags_is_unchanged(config: type) -> None:
    assert [field.name for field in dataclasses.fields(config)] == FLAGS[config].split()


@pytest.mark.parametrize(
    "command", ["", "train", "score", "commit", "evaluate", "predict", "verify", "report", "diff", "doctor"]
)
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


@pytest.mark.parametrize(
    "command",
    [
        "train --data mnist5k --recipe fast --epochs 0.1 --workers 0 --out OUT",
        "score DIGITS --model RUN --workers 0 --out OUT",
        "evaluate --data mnist5k --model RUN --out OUT/evaluation.json",
    ],
    ids=lambda command: command.split()[0],
)
def test_pytorch_is_imported_without_its_compiler(command: str, digit_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    places = {"DIGITS": digit_folder, "RUN": run_dir, "OUT": tmp_path / "out"}
    for name, place in places.items():
        command = command.replace(name, str(place))
    env = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}  # the processes of the job say what they import, too
    done = subprocess.run(
        [sys.executable, "-m", "mnist_ray", *command.split()], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "torch.nn" in imported
    assert not imported & {"torch._decomp", "torch._dynamo", "torch._inductor"}


def test_the_process_that_scoring_processes_are_forked_from_ends_with_a_command(
    digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    """A finished job ends while that process still imports PyTorch."""
    score = ["score", str(digit_folder), "--model", str(run_dir), "--out", str(tmp_path / "out")]
    assert cli(*score).returncode == 0
    mark = f"TEST_MARK={uuid.uuid4()}"
    command = ["env", mark, sys.executable, "-m", "mnist_ray", *score, "--resume", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    left = [process for process in Path("/proc").glob("[0-9]*") if mark in _text(process / "environ")]
    assert not [process for process in left if "forkserver" in _text(process / "cmdline")]


def _text(file: Path) -> str:
    """A file of a process; empty if it has ended, or belongs to somebody else."""
    with suppress(OSError):
        return file.read_text(errors="replace")
    return ""


@pytest.mark.parametrize("kind", _COMMANDS, ids=lambda kind: kind.__name__)
def test_help_says_what_each_flag_takes(kind: type, capfd: pytest.CaptureFixture[str]) -> None:
    command = _COMMANDS[kind].__name__
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capfd.readouterr().out
    for unclear in (
        "{None}",
        "STR",
        "FLOAT",
        "INT ",
        "--no-",
        "(default: '')",
        "(default: None)",
        "(default: )",
        "(default: False)",
    ):
        assert unclear not in text, unclear
    for field in dataclasses.fields(kind):
        positional = "Positional" in str(get_type_hints(kind, include_extras=True)[field.name])
        if not positional:
            assert f"--{field.name}".replace("_", "-") in text
    examples = kind.EXAMPLES  # type: ignore[attr-defined]
    assert len(examples) >= 2
    for example in examples:
        assert example in text
        assert type(_parse(shlex.split(example)[1:])) is kind


def test_help_shows_the_values_of_the_recipes(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capfd.readouterr().out
    for name, recipe in RECIPES.items():
        assert f"{name} {recipe.epochs:g}" in text
        assert f"{name} {recipe.lr}" in text
    for group in ("run options", "recipe options", "worker options", "output options"):
        assert group in text


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"mnist-ray {__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("predit seven.png", "error: predit: is not a command; did you mean predict?"),
        ("nothing", "error: nothing: is not a command; the commands are train, "),
        ("", "error: the command is missing: give one of train, "),
        ("score x --modl y --out z", "error: --modl: score has no such flag; did you mean --model?"),
        (
            "train --global_batch_sise=64",
            "error: --global-batch-sise: train has no such flag; did you mean --global-batch-size?",
        ),
        ("train --no-augment", "error: --no-augment: train has no such flag; did you mean --augment?"),
        ("train --bogus 1", "error: --bogus: train has no such flag; `mnist-ray train --help` lists the flags"),
        ("--versoin", "error: --versoin: is not a command; did you mean --version?"),
    ],
)
def test_a_wrong_command_or_flag_gets_a_suggestion(args: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(args.split()) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(message)


def test_a_deleted_working_directory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["train", "--out", "run"]) == 2
    assert capfd.readouterr().err == "error: the working directory was deleted; change to another folder\n"


def test_what_follows_two_dashes_is_no_flag() -> None:
    assert _parse(["predict", "--model", "m", "--", "-seven.png"]).images == ("-seven.png",)


def test_augment_is_on_or_off_or_the_recipes() -> None:
    given = [_parse(["train", *flags.split()]).augment for flags in ("", "--augment on", "--augment off")]
    assert given == [None, True, False]


def test_every_exit_status_is_documented() -> None:
    statuses = {
        error.exit_status
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.MnistRayError)
    }
    assert statuses == {*range(1, 11), 143}
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
        pytest.param("train --workers 4 --global-batch-size 2", 2, "--global-batch-size 128", marks=pytest.mark.slow),
        ("train --workers 0 --device cuda --data mnist5k", 2, "--device cuda"),
        ("train --data nowhere --workers 0", 3, "nowhere: there is no such file or folder"),
        ("score x --model nowhere --out OUT", 4, "nowhere: is neither a model bundle nor a finished run"),
        ("score x --model m --out OUT --resume --overwrite", 2, "--extend adds to it, and --overwrite replaces it"),
        ("score x --model m --out OUT --sample 5 --extend", 2, "--sample and --extend: give only one"),
        (
            "score x --model m --out OUT --max-quarantined few",
            2,
            "--max-quarantined few: expected a number of inputs (100), or",
        ),
        ("score x --model m --out OUT --max-quarantined 101%", 2, "--max-quarantined 101%: expected"),
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


@pytest.mark.parametrize("args", [["train", "--epochs", "many"], ["train", "--recipe", "fastest"], ["score", "x"]])
def test_wrong_and_missing_values_exit_with_status_2(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
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


def test_predict_names_score_for_its_inputs(run_dir: Path, digit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png")
    for item in (str(digit_folder), str(tmp_path / "list.txt")):
        done = cli("predict", item, "--model", str(run_dir))
        assert done.returncode == 2
        assert f"{item}: predict takes image files" in done.stderr
        assert f"`mnist-ray score {item} --model {run_dir} --out TABLE`" in done.stderr


@pytest.mark.parametrize("form", ["--out=~/tab", "--out ~/tab"])
def test_the_home_folder_is_found_behind_a_flag(
    form: str, run_dir: Path, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0").symlink_to(digit_folder / "0")
    (tmp_path / "run").symlink_to(run_dir)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = cli("score", "~/0/*.png", "--model=~/run", *form.split(), "--workers", "0", "--sample", "5")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tab" / "commit.json").exists()
    assert not (tmp_path / "~").exists()
    assert len(mnist_ray.read_table("~/tab")) == 5
    assert len(mnist_ray.read_table(Path("~/tab"))) == 5


def test_evaluate_writes_what_it_prints(run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import json

    out = tmp_path / "evaluation.json"
    assert main(["evaluate", "--model", str(run_dir), "--data", "mnist5k", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert report["accuracy"] == metrics["accuracy"]
    assert f"accuracy {report['accuracy']:.2%}" in capfd.readouterr().out


def test_evaluate_prints_what_it_cannot_write(
    run_dir: Path, small_idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "evaluation.json"
    assert main(["evaluate", "--model", str(run_dir), "--data", str(small_idx), "--out", str(out)]) == 8
    printed = capsys.readouterr()
    assert "accuracy " in printed.out
    assert f"{out}: cannot be written" in printed.err
    assert printed.err.endswith("; give another --out\n")


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a\x1b[2J\x9b.png").write_bytes(b"no")
    assert main(["predict", str(tmp_path / "a\x1b[2J\x9b.png"), str(tmp_path / "\x07.parquet"), "--model", str(run_dir)]) == 2
    printed = capsys.readouterr()
    assert "a\\x1b[2J\\x9b.png: not_an_image" in printed.out
    assert "\\x07.parquet" in printed.err
    assert not {"\x1b", "\x9b", "\x07"} & {*printed.out, *printed.err}
