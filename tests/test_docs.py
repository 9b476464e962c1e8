"""The documentation: the site builds, links work, commands and code run, and lists match the code.

A page runs from top to bottom, in a folder with small data (`Reader`). Commands that need a cluster are only parsed.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mnist_ray.cli import _COMMANDS, _parse
from mnist_ray.data import datasets
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import encode_png
from mnist_ray.errors import EXIT_STATUSES
from tests.conftest import ROOT, cli

DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(path for path in sorted(DOCS.rglob("*.md")) if "decisions" not in path.parts and not path.is_symlink()),
]
DOCUMENTS = [*PAGES, *sorted((DOCS / "decisions").glob("*.md"))]
DOCUMENTS += [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
LAUNCH_FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "deploy").rglob("*.yaml"))]
OTHER_FLAGS = {"help", "version", "runtime-env-json"}
"""Flags in the text that are not those of a command."""
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"(?:(?:\bmnist-ray|python -m mnist_ray) +|python jobs/)([a-z][^#;&]*)")
PLACES = ("s3://BUCKET/", "gs://BUCKET/", "$PWD/")
"""Places for which the working directory stands in."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _lines(path: Path) -> list[str]:
    """The command lines in the blocks of a page, or in the comment at the top of a launch file."""
    if path.suffix == ".yaml":
        return [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    return [line for language, text in BLOCK.findall(path.read_text()) for line in _commands(language, text)]


def _commands(language: str, text: str) -> list[str]:
    """The command lines in a block. In a console, they begin with a prompt, and the other lines are output."""
    lines = text.replace("\\\n", " ").splitlines() if language in ("sh", "console") else []
    return [line.strip().removeprefix("$ ") for line in lines if language == "sh" or line.startswith("$ ")]


def _arguments(line: str) -> list[str]:
    """The arguments that a command line gives to this project's command line; empty if there are none."""
    found = OURS.search(line)
    return shlex.split(re.sub(r"^(\w+)\.py", r"\1", found[1])) if found else []


def _prose(path: Path) -> list[str]:
    """The code spans of a page outside its blocks."""
    return re.findall(r"`([^`]+)`", BLOCK.sub("", path.read_text()))


class Reader:
    """Follows a page as a reader does, but in a short time: with small data, one epoch and no Ray."""

    ran: ClassVar[set[str]] = set()
    """Command lines that the pages so far have run."""

    def __init__(self, data: Path) -> None:
        self.data = str(data)
        self.names: dict[str, Any] = {}
        self.made: set[str] = set()
        self.executed: list[str] = []

    def follow(self, path: Path) -> None:
        """Run the blocks of a page. Each example of the reference stands alone: those that a guide has run are left out."""
        known = self.ran if path.name == "commands.md" else set()
        for language, text in BLOCK.findall(path.read_text()):
            if language == "python":
                exec(compile(self.local(text), path.name, "exec"), self.names)
            for line in _commands(language, text):
                self.enter(self.local(line), known)

    @staticmethod
    def local(text: str) -> str:
        for place in PLACES:
            text = text.replace(place, "")
        return text

    def enter(self, line: str, known: set[str]) -> None:
        """Run a command line, if it is one of this project and needs no cluster. Repeated lines run once."""
        args = _arguments(line)
        if line.startswith("tensorboard"):
            assert Path(shlex.split(line)[-1]).is_dir()
        if not args or not runs_here(line) or line in self.executed:
            return
        self.executed.append(line)
        if args[0] == "write_digits":
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
                patch.setattr(sys, "argv", args)
                runpy.run_path(str(ROOT / "jobs" / "write_digits.py"), run_name="__main__")
            return
        if line in known:
            return
        self._make_room(args)
        done = cli(*args, *self._shorter(args))
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        self.ran.add(line)

    def _make_room(self, args: list[str]) -> None:
        """Delete what the folder holds before, if a new job writes there."""
        out = args[args.index("--out") + 1] if "--out" in args else ""
        if args[0] in ("train", "score") and out not in self.made and not {"--resume", "--extend", "--overwrite"} & {*args}:
            shutil.rmtree(out, ignore_errors=True)
        self.made.add(out)

    def _shorter(self, args: list[str]) -> list[str]:
        """Flags that override those of the page."""
        data = [] if "my-digits/" in args else ["--data", self.data]
        if args[0] == "train":
            return [*data, "--workers", "0", *(["--seconds", "0.2"] if "--seconds" in args else ["--epochs", "1"])]
        return {"score": ["--workers", "0"], "evaluate": data}.get(args[0], [])


def runs_here(line: str) -> bool:
    """Whether a command line runs without a cluster, a bucket and a launch file that is filled in."""
    args = _arguments(line)
    elsewhere = "://" in Reader.local(" ".join(args)) or {"--address", "--launch-file"} & {*args}
    return not elsewhere and not (args[0] == "doctor" and line.startswith("ray"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, run_dir: Path, digit_folder: Path) -> Path:
    """A prediction table."""
    out = tmp_path_factory.mktemp("table") / "table"
    assert cli("score", str(digit_folder), "--model", str(run_dir), "--out", str(out)).returncode == 0
    return out


@pytest.fixture
def reader(place: Path, run_dir: Path, table: Path, small: Splits, small_idx: Path) -> Reader:
    """A reader in a working directory with the files that the pages name."""
    for run in ("runs/first", "runs/a", "runs/b", "demo/run"):
        shutil.copytree(run_dir, run)
    for copy in ("my-digit.png", "demo/digits/7/00350.png"):
        Path(copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("seven.png", copy)
    digits = small.train.take(np.arange(0, 600, 2))
    datasets.write_folder(digits, "my-digits")
    files = [encode_png(image) for image in digits.images[:50]]
    pq.write_table(pa.table({"image": files, "label": digits.labels[:50], "id": range(50)}), "digits.parquet")
    Path("scans.csv").write_text("path,label\nscans/7/seven.png,7\nscans/3/three.png,3\n")
    pixels = digits.images[:50].reshape(50, 784)
    kaggle = pa.table({"label": digits.labels[:50]} | {f"pixel{i}": pixels[:, i] for i in range(784)})
    pyarrow.csv.write_csv(kaggle, "train.csv")
    shutil.copytree("scans", "digits")
    for copy in ("tables/scans", "tables/old", "tables/new"):
        shutil.copytree(table, copy)
    return Reader(small_idx)


RUN = [
    path
    for path in PAGES
    if _name(path) not in ("docs/reference/library.md", "docs/how-to/own-classes.md")
    and re.search("```(sh|console|python)", path.read_text())
]
"""Pages that this module follows. tests/test_library.py and tests/test_own_classes.py follow the two others."""


QUICK = ("README.md", "first-run.md")


@pytest.mark.parametrize(
    "path", [path if path.name in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in RUN], ids=_name
)
def test_a_page_runs(path: Path, reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    reader.follow(path)
    wanted = {Reader.local(line) for line in _lines(path) if _arguments(line) and runs_here(line)}
    assert wanted == {*reader.executed}


@pytest.mark.parametrize("path", [*PAGES, *LAUNCH_FILES], ids=_name)
def test_the_command_line_knows_every_command(path: Path) -> None:
    kinds = {command.__name__: kind for kind, command in _COMMANDS.items()}
    for line in _lines(path):
        args = _arguments(line)
        assert not args or args[0] == "write_digits" or type(_parse(args)) is kinds[args[0]], line


def test_most_commands_run() -> None:
    """Guards against a form of block or command that the tests do not see."""
    every = {line for path in [*PAGES, *LAUNCH_FILES] for line in _lines(path) if _arguments(line)}
    assert len([line for line in every if runs_here(line)]) > len(every) / 2 > 25
    blocks = [block for path in PAGES for block in BLOCK.findall(path.read_text())]
    others = [text for language, text in blocks if language not in ("sh", "console", "python")]
    assert not [text for text in others if re.search(r"^(\$ )?(mnist-ray|python|make|ray) ", text, re.MULTILINE)]


@cache
def _flags(command: str) -> set[str]:
    (kind,) = (kind for kind, function in _COMMANDS.items() if function.__name__ == command)
    return {field.name.replace("_", "-") for field in fields(kind)}


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_flags_in_the_text_exist(path: Path) -> None:
    every = set.union(*(_flags(command.__name__) for command in _COMMANDS.values())) | OTHER_FLAGS
    for span in _prose(path):
        found = re.match(r"(?:mnist-ray|python -m mnist_ray) ([a-z]+)", span)
        known = _flags(found[1]) | OTHER_FLAGS if found else every
        if found or span.startswith("--"):
            assert {*re.findall(r"(?<!\S)--([a-z-]+)", span)} <= known, span


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=_name)
def test_make_targets_exist(path: Path) -> None:
    blocks = [line for _, text in BLOCK.findall(path.read_text()) for line in text.splitlines()]
    for line in blocks:
        words = shlex.split(line.strip().removeprefix("$ "), comments=True) if re.match(r" *(\$ )?make ", line) else []
        if words:
            # A reader has none of the variables that a `make` around these tests hands down, as VENV and MAKEFLAGS.
            environ = {"PATH": os.environ["PATH"]}
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, env=environ, check=True, capture_output=True)


def test_the_tutorial_shows_the_steps_of_the_demo() -> None:
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    steps = re.findall(r"^\t\$\(BIN\)/(.*)$", recipe[1], re.MULTILINE)
    assert steps == [line for line in _lines(DOCS / "tutorials" / "first-run.md") if _arguments(line)][: len(steps)]


def _anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and the site make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(BLOCK, "", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_and_named_files_exist(path: Path) -> None:
    text = BLOCK.sub("", path.read_text())
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link
    for name in re.findall(r"`((?:tests|docs|deploy|mnist_ray|jobs|benchmarks)/[\w/.-]+|cluster\.yaml)`", text):
        assert (ROOT / name).exists(), name


def test_the_home_page_links_every_page() -> None:
    linked = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", (DOCS / "index.md").read_text())}
    assert {path for path in PAGES if path.is_relative_to(DOCS)} - linked == {DOCS / "index.md"}


@pytest.mark.slow
def test_the_site_builds_without_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="Sphinx is not installed: make docs installs it")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--nitpicky", "--fail-on-warning", "--keep-going"]
    done = subprocess.run([*command, str(DOCS), str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    home = (tmp_path / "index.html").read_text()
    for shown in (
        "training-report.png",
        "What you get",
        "How-to guides",
        'href="benchmarks.html"',
        'href="notebooks/reading_a_table.html"',
    ):
        assert shown in home, shown
    assert "mnist_ray.read_table" in (tmp_path / "reference" / "api.html").read_text()
    assert "0001-rooms-and-imports.html" in (tmp_path / "decisions" / "README.html").read_text()


def test_generated_pages_are_current() -> None:
    pages: dict[Path, str] = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
    old = [_name(path) for path, text in pages.items() if path.read_text() != text]
    assert not old, f"{', '.join(old)}: run `python docs/generate.py`, and look at what changed"


def _variables() -> Iterator[str]:
    """The environment variables that the code reads or sets."""
    for path in [*(ROOT / "mnist_ray").rglob("*.py"), *(ROOT / "deploy").glob("*.py")]:
        code = path.read_text()
        yield from re.findall(r'environ(?:\.get|\.setdefault)?[\[(]"(\w+)"', code)
        yield from re.findall(r'"(\w+)" in os\.environ', code)
        yield from re.findall(r"MNIST_RAY_[A-Z_]+", code)


def test_every_environment_variable_is_described() -> None:
    text = (DOCS / "reference" / "environment.md").read_text()
    described, read = {*re.findall(r"`(\w{4,})`", text)}, {*_variables()}
    assert {"MNIST_RAY_DATA", "RAY_ADDRESS", "TERM"} <= read
    assert read - described == set()
    assert {name for name in described if name.startswith("MNIST_RAY_")} <= read


def test_every_exit_status_says_what_to_do() -> None:
    text = (DOCS / "how-to" / "troubleshooting.md").read_text()
    found = [int(status) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for status in row.split(", ")]
    assert found == [status for status in EXIT_STATUSES if status]


def test_the_architecture_names_every_module() -> None:
    text = (DOCS / "architecture.md").read_text()
    modules = {path.name for path in (ROOT / "mnist_ray").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert not sorted(name for name in modules if f"── {name}" not in text)
