"""The documents: their commands exist and run, their links work, and their lists match the code."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mnist_ray.cli import main
from mnist_ray.data.containers import Reason
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))


def commands() -> list[list[str]]:
    """The command lines in the README's code blocks, without prompts, comments and output."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    known = ("make", "python", "mnist-ray", "ray")
    return [words for line in lines if line.startswith(known) and (words := shlex.split(line, comments=True))]


def test_the_readme_shows_commands() -> None:
    assert {line[0] for line in commands()} >= {"make", "python", "mnist-ray", "ray"}


@pytest.mark.parametrize("line", [line for line in commands() if line[0] == "make"], ids=" ".join)
def test_make_targets_exist(line: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *line[1:]], cwd=ROOT, check=True, capture_output=True)


def _arguments(line: list[str]) -> list[str]:
    """The arguments of mnist-ray in a command line, also after `ray job submit … --`."""
    line = line[line.index("--") + 1 :] if line[0] == "ray" else line
    return [Path(line[1]).stem, *line[2:]] if line[0] == "python" else line[1:]


@pytest.mark.parametrize(
    "line", [line for line in commands() if "jobs/" in " ".join(line) or line[0] == "mnist-ray"], ids=" ".join
)
def test_the_commands_run(line: list[str], run_dir: Path, digit_folder: Path, tmp_path: Path, small_idx: Path) -> None:
    """Each command runs on small data: paths are replaced, and flags for a small job without Ray are added."""
    args = _arguments(line)
    out = str(tmp_path / "out")
    if args[0] in ("verify", "diff"):
        assert main(["score", str(digit_folder), "--model", str(run_dir), "--out", out, "--workers", "0"]) == 0
    real = {
        "scans/": str(digit_folder),
        "seven.png": str(next(digit_folder.rglob("*.png"))),
        "runs/digits": str(run_dir),
        "$PWD/runs/digits": str(tmp_path / "run"),
        **dict.fromkeys(("tables/scans", "tables/old", "tables/new"), out),
    }
    args = [real.get(word, word) for word in args]
    small_job = {
        "diff": ["--out", str(tmp_path / "diff.html")],
        "train": ["--data", str(small_idx), "--epochs", "1", "--out", str(tmp_path / "run"), "--workers", "0"],
        "score": ["--workers", "0"],
        "evaluate": ["--data", str(small_idx), "--out", str(tmp_path / "evaluation.json")],
    }
    assert main([*args, *small_job.get(args[0], [])]) == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (document.parent / link).exists(), link
    for name in re.findall(r"`((?:tests|docs|mnist_ray|jobs|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_readme_lists_every_reason() -> None:
    assert all(f"`{reason}`" in README for reason in Reason)


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.name for path in (ROOT / "mnist_ray").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert not sorted(name for name in modules if f"── {name}" not in text)
