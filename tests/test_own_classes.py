"""docs/how-to/own-classes.md: what the page says is done on drawn letters, in a copy of the package if a line must change."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_ray.data.digits import LabelledDigits, Splits
from mnist_ray.data.images import to_digits
from tests.conftest import ROOT, cli, write_idx

PAGE = (ROOT / "docs" / "how-to" / "own-classes.md").read_text()
LETTERS, CLOTHES = re.findall(r"^CLASSES = .*$", PAGE, re.MULTILINE)
COMMANDS = [shlex.split(line)[1:] for line in PAGE.splitlines() if line.startswith("mnist-ray ")]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)


def draw(letter: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """A letter in dark ink on light paper, uint8[72, 72], in a random font, size, weight and place."""
    image = np.full((72, 72), random.integers(200, 256), np.uint8)
    font = int(random.choice(FONTS)) + int(random.choice([0, cv2.FONT_ITALIC]))
    left, bottom, ink = (int(random.integers(low, high)) for low, high in ((8, 20), (48, 60), (0, 80)))
    cv2.putText(image, letter, (left, bottom), font, random.uniform(1, 1.6), (ink,), int(random.integers(1, 4)), cv2.LINE_AA)
    return image


def write_letters(folder: Path, names: Iterable[str], each: int, seed: int) -> None:
    """Write the first letter of each name as PNG files to a folder of this name: `A/001.png` is the first."""
    random = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(1, each + 1):
            cv2.imwrite(str(folder / name / f"{number:03d}.png"), draw(name[0], random))


def copy_with(line: str, folder: Path) -> None:
    """Copy the package to a folder, with this line in place of its classes."""
    shutil.copytree(ROOT / "mnist_ray", folder / "mnist_ray", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "mnist_ray" / "data" / "digits.py"
    text, count = re.subn(r"^CLASSES = .*$", line, file.read_text(), flags=re.MULTILINE)
    assert count == 1
    file.write_text(text)


def run_copy(folder: Path, program: str) -> str:
    """Run a program with the package in this folder, and return what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_letters_need_one_changed_line(tmp_path: Path) -> None:
    copy_with(LETTERS, tmp_path)
    write_letters(tmp_path / "letters", ALPHABET, each=40, seed=0)
    write_letters(tmp_path / "scans", ALPHABET, each=10, seed=1)
    commands = [words for words in COMMANDS if "fashion/" not in words]
    output = run_copy(tmp_path, f"from mnist_ray.cli import main\nfor words in {commands}:\n    assert main(words) == 0, words")
    summary = json.loads((tmp_path / "tables" / "letters" / "summary.json").read_text())
    assert (summary["predicted"], summary["with_truth"]) == (260, 260)
    assert summary["accuracy"] > 0.9
    assert f"predicted as {'     '.join(ALPHABET)}" in output
    assert "scans/A/001.png: A (confidence" in output
    training, scoring = (tmp_path / page / "report.html" for page in ("runs/letters", "tables/letters"))
    assert all(f'<th scope="col">{letter}</th>' in training.read_text() for letter in ALPHABET)
    assert all(f'<th scope="col">as {letter}</th>' in scoring.read_text() for letter in ALPHABET)
    assert "<h3>Z: least sure</h3>" in scoring.read_text()
    refused = cli("predict", str(tmp_path / "scans/A/001.png"), "--model", str(tmp_path / "runs/letters"))
    assert refused.returncode == 4
    assert "the classes of this model are ['A', " in refused.stderr
    assert "this program has ['0', " in refused.stderr


@pytest.mark.slow
def test_ten_classes_in_idx_files_need_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    labels = (np.arange(1500) % 10).astype(np.uint8)
    letters = LabelledDigits(to_digits([draw(ALPHABET[label], random) for label in labels]), labels)
    train, test = letters.take(np.arange(1300)), letters.take(np.arange(1300, 1500))
    write_idx(tmp_path / "fashion", Splits("letters", "", "", train, test))
    monkeypatch.chdir(tmp_path)
    (command,) = (words for words in COMMANDS if "fashion/" in words)
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "fashion" / "metrics.json").read_text())["accuracy"] > 0.9


def test_folders_have_the_names_of_classes(tmp_path: Path) -> None:
    copy_with(CLOTHES, tmp_path)
    names = ast.literal_eval(CLOTHES.removeprefix("CLASSES = "))
    write_letters(tmp_path / "clothes", names, each=2, seed=0)
    program = "from mnist_ray.data.datasets import load\nprint(load('clothes').train.labels.tolist())"
    assert ast.literal_eval(run_copy(tmp_path, program)) == [names.index(name) for name in sorted(names)]
