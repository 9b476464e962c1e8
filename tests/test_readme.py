"""The documents: their commands exist and run, their links lead somewhere, and what they list is the code's."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mnist_ray.cli import main
from mnist_ray.data.containers import Reason
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").rglob("*.md"))


def commands() -> list[list[str]]:
    """The command lines of the README's blocks, without prompts, comments and output."""
    lines = [line for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    known = ("make", "python", "mnist-ray", "ray")
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.removeprefix("$ ").startswith(known)]
    return [line for line in words if line]


def test_the_readme_shows_commands() -> None:
    assert {line[0] for line in commands()} >= {"make", "python", "mnist-ray", "ray"}


@pytest.mark.parametrize("line", [line for line in commands() if line[0] == "make"], ids=" ".join)
def test_make_targets_exist(line: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *line[1:]], cwd=ROOT, check=True, capture_output=True)


def _program(line: list[str]) -> list[str]:
    """A command of ours as arguments of the command line, also behind `ray job submit … --`."""
    line = line[line.index("--") + 1 :] if line[0] == "ray" else line
    return [Path(line[1]).stem, *line[2:]] if line[0] == "python" else line[1:]


@pytest.mark.parametrize(
    "line", [line for line in commands() if "jobs/" in " ".join(line) or line[0] == "mnist-ray"], ids=" ".join
)
def test_the_commands_parse_and_run(
    line: list[str], run_dir: Path, digit_folder: Path, tmp_path: Path, small_idx: Path
) -> None:
    """Each command on small data: the README's names are replaced by real ones, nothing else."""
    args = _program(line)
    if args[0] == "verify":
        assert (
            main(["score", str(digit_folder), "--model", str(run_dir), "--out", str(tmp_path / "out"), "--workers", "0"]) == 0
        )
    real = {
        "scans/": str(digit_folder),
        "seven.png": str(next(digit_folder.rglob("*.png"))),
        "runs/digits": str(run_dir),
        "$PWD/runs/digits": str(tmp_path / "run"),
        "tables/scans": str(tmp_path / "out"),
        "INPUT…": str(digit_folder),
        "RUN_OR_BUNDLE": str(run_dir),
        "FOLDER": str(tmp_path / "out"),
    }
    args = [real.get(word, word) for word in args if word != "--help"]
    if args[0] == "train":
        args += ["--data", str(small_idx), "--epochs", "1", "--out", str(tmp_path / "run"), "--workers", "0"]
    if args[0] == "score":
        args += ["--workers", "0"]
    if args[0] == "evaluate":
        args += ["--data", str(small_idx), "--out", str(tmp_path / "evaluation.json")]
    assert main(args) == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (document.parent / link).exists(), link
    for name in re.findall(r"`((?:tests|docs|mnist_ray|jobs)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_lists_every_reason() -> None:
    assert all(f"`{reason}`" in README for reason in Reason)


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "mnist_ray"
    modules = {path.name for path in package.rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert not sorted(name for name in modules if f"── {name}" not in text)
