"""The settings of each command as frozen, validated dataclasses. A field is a flag, and its docstring is the help text."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from mnist_ray.config.score import ScoreConfig
from mnist_ray.config.train import TrainConfig
from mnist_ray.flags import Device, require

__all__ = [
    "Device",
    "DiffConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "PredictConfig",
    "ReportConfig",
    "ScoreConfig",
    "TrainConfig",
    "VerifyConfig",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Measure a model on the test digits of a dataset."""

    model: str
    """Run directory or model bundle (path or URI)."""
    data: str = "auto"
    """Dataset to measure on; the same values as for train."""
    out: str = ""
    """JSON file for the result (path or URI). By default evaluation.json in the folder that contains the bundle."""
    device: Device = "auto"
    """Device that computes; auto uses a GPU if this machine has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """Print the digit in each of a few image files, without Ray."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files (paths or URIs)."""
    model: Annotated[str, tyro.conf.arg(metavar="RUN_OR_BUNDLE")]
    """Run directory or model bundle (path or URI)."""

    def __post_init__(self) -> None:
        require(bool(self.images), "IMAGE is missing: give at least one image file")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Prove that a prediction table contains every planned input exactly once. Only the output folder is read."""

    out: tyro.conf.Positional[str]
    """Output folder of score (path or URI)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Draw the report of a finished training run again, or compare several runs. Only their report.json is read."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories (paths or URIs): one to draw its report.html again, several to compare them on one page."""
    out: str = ""
    """HTML file for the page (path or URI). Default: report.html in the run directory, or comparison.html for several runs."""

    def __post_init__(self) -> None:
        require(bool(self.runs) and all(self.runs), "RUN is missing or empty: give at least one run directory")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffConfig:
    """Compare two prediction tables of the same inputs, for example of an old and a new model, and write a page about it.

    Inputs are matched by source and row.
    """

    old: tyro.conf.Positional[str]
    """Output folder of score (path or URI)."""
    new: tyro.conf.Positional[str]
    """Output folder of score (path or URI) to compare with OLD."""
    out: str = "diff.html"
    """File for the page (path or URI)."""
    json: bool = False
    """Print one JSON document instead of lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig:
    """Check this machine, a Ray cluster, a storage and a launch file, and say what to do about each problem.

    Nothing is started, downloaded or changed. Each check has a time limit of at most 90 s. Exit status 1 says that there is a
    problem.
    """

    address: str = ""
    """Ray cluster to check. Default: RAY_ADDRESS, or else only this machine is checked."""
    out: str = ""
    """Output folder of a job (path or URI). A small file is written, read and deleted there, from here and from each node."""
    launch_file: str = ""
    """Launch file of `ray up` to check. Default: cluster.yaml in the current folder, if there is one."""
    json: bool = False
    """Print one JSON document instead of lines."""
