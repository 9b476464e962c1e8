"""Standard streams that are closed, full or without a reader, and locales that are not UTF-8."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

FAULTS = {
    "full": ">/dev/full",
    "closed": ">&-",
    "no reader": "1>&3 3>&-",
    "error full": "2>/dev/full",
    "error closed": "2>&-",
    "all closed": "<&- >&- 2>&-",
}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}


def run(args: Iterable[str], redirection: str = "", **variables: str) -> tuple[int, str, str]:
    """Run the command line with its streams redirected. Descriptor 3 is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    shell = ["bash", "-c", f'exec 3>&{writer}; exec "$0" "$@" {redirection}', sys.executable, "-m", "mnist_ray", *args]
    env = {**os.environ, **variables}
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=env, cwd=ROOT, pass_fds=[writer], timeout=240)
    os.close(writer)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("redirection", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize(
    ("args", "status", "status_if_full"),
    [
        pytest.param(["--version"], 0, 0, marks=pytest.mark.long),
        (["score", "--help"], 0, 0),
        pytest.param(["scor"], 2, 2, marks=pytest.mark.long),
        pytest.param(["train", "--epochs", "many"], 2, 2, marks=pytest.mark.long),
        pytest.param(["doctor", "--json"], 0, 8, marks=pytest.mark.long),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_survives_streams_that_cannot_be_written(
    args: list[str], status: int, status_if_full: int, redirection: str
) -> None:
    found, out, err = run(args, redirection)
    assert found == (status_if_full if redirection == ">/dev/full" else status), out + err
    assert "Traceback" not in out + err
    assert "Exception ignored" not in out + err
    if found == 8:
        assert err == "error: standard output: cannot be written: No space left on device; a part of its output is lost\n"


@pytest.mark.parametrize(
    "redirection",
    [
        pytest.param(text, id=name, marks=pytest.mark.slow if name in ("full", "all closed") else pytest.mark.long)
        for name, text in FAULTS.items()
    ],
)
def test_a_job_is_done_although_nobody_can_read_what_it_prints(
    redirection: str, digit_folder: Path, run_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ["--model", str(run_dir), "--out", str(out), "--workers", "0", "--processes", "1"]
    status, said, errors = run(["score", str(digit_folder), *flags], redirection)
    assert status == 0, errors
    assert ("the results are complete" in errors) == (redirection == ">/dev/full")
    assert "Traceback" not in said + errors
    assert run(["verify", str(out)])[0] == 0


@pytest.mark.slow
def test_a_locale_without_utf8_changes_no_table(digit_folder: Path, run_dir: Path, tmp_path: Path) -> None:
    """One image is in a folder, the other in a manifest."""
    folder = tmp_path / "é"
    folder.mkdir()
    images = [folder / "é😀.png", tmp_path / "ü.png"]
    for image, source in zip(images, digit_folder.rglob("*.png"), strict=False):
        image.write_bytes(source.read_bytes())
    (tmp_path / "list.txt").write_text(f"{images[1]}\n", encoding="utf-8")
    inputs, out = [str(folder), str(tmp_path / "list.txt")], tmp_path / "täble"
    flags = ["--model", str(run_dir), "--out", str(out), "--workers", "0", "--processes", "1", "--log-format", "json"]
    status, said, errors = run(["score", *inputs, *flags], **ASCII)
    assert (status, errors) == (0, "")
    result = json.loads(said.splitlines()[-1])
    assert (result["predicted"], result["quarantined"], result["out"]) == (2, 0, str(out))
    assert sorted(pq.read_table(out / "predictions")["source"].to_pylist()) == sorted(map(str, images))
    status, said, errors = run(["predict", str(images[0]), "--model", str(run_dir)], **ASCII)
    assert (status, errors) == (0, "")
    assert "\\xe9/\\xe9\\U0001f600.png: " in said


def test_the_jobs_take_names_for_utf8_too() -> None:
    command = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--model", "é"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ASCII})
    assert done.returncode == 4
    assert "\\xe9" in done.stderr


def test_a_program_without_utf8_does_not_take_a_file_that_it_cannot_name_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "é.png").touch()
    program = (
        "import sys\nfrom mnist_ray.data.bulk import read_many\nfrom mnist_ray.errors import StorageError\n"
        "try:\n    print(list(read_many([sys.argv[1] + '/\\xe9.png'], 9)))\n"
        "except StorageError as error:\n    print(ascii(error))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, **ASCII})
    assert "file names are ascii in this process, because of its locale; set PYTHONUTF8=1" in done.stdout
