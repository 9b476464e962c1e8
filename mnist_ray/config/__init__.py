"""The settings of each command as frozen, validated dataclasses. A field is a flag, and its docstring is the help text.

A class with bases gets its flags from them: each base is a group of flags in the help. `EXAMPLES` are shown below the flags.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from mnist_ray.config.common import Output, Switch, flag
from mnist_ray.config.score import ScoreConfig
from mnist_ray.config.train import TrainConfig
from mnist_ray.flags import Device, Precision, ScoringPrecision, require

__all__ = [
    "CommitConfig",
    "Device",
    "DiffConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "Precision",
    "PredictConfig",
    "ReportConfig",
    "ScoreConfig",
    "ScoringPrecision",
    "TrainConfig",
    "VerifyConfig",
]


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What is measured."""

    model: Annotated[str, flag("PATH|URI")]
    """Run directory or model bundle."""
    data: Annotated[str, flag("auto|mnist|mnist5k|PATH|URI")] = "auto"
    """Dataset to measure on; the same values as for train."""
    out: Annotated[str, flag("PATH|URI", "evaluation.json in the folder that contains the bundle")] = ""
    """JSON file for the result."""
    device: Device = "auto"
    """Device that computes; auto uses a GPU if this machine has one."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Output, _Model):
    """Measure a model on the test digits of a dataset."""

    EXAMPLES: ClassVar = (
        "mnist-ray evaluate --model runs/digits",
        "mnist-ray evaluate --model runs/digits --data my-digits/ --out evaluation.json",
    )

    def __post_init__(self) -> None:
        require(bool(self.model), "--model is empty: give a run directory or a model bundle")
        require(bool(self.data), "--data is empty: give auto, mnist, mnist5k, a path or a URI")


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """Print the digit in each of a few image files, without Ray."""

    EXAMPLES: ClassVar = (
        "mnist-ray predict seven.png --model runs/digits",
        "mnist-ray predict s3://bucket/a.png s3://bucket/b.png --model s3://bucket/runs/digits",
    )

    images: Annotated[tyro.conf.Positional[tuple[str, ...]], flag("IMAGE ...", "")]
    """Image files (paths or URIs)."""
    model: Annotated[str, flag("PATH|URI")]
    """Run directory or model bundle."""

    def __post_init__(self) -> None:
        require(bool(self.images), "IMAGE is missing: give at least one image file")


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The prediction table."""

    out: Annotated[tyro.conf.Positional[str], flag("PATH|URI")]
    """Output folder of the shards: the --out of their jobs."""
    overwrite: Switch = False
    """Replace the table in the output folder, such as one that an interrupted commit has left."""


@dataclass(frozen=True, kw_only=True)
class CommitConfig(Output, _Table):
    """Merge the tables of all shards into one table. Nothing is scored again.

    All shards must be finished, and must have listed the same inputs. Their own tables stay, in OUT/shards.
    """

    EXAMPLES: ClassVar = ("mnist-ray commit s3://bucket/table", "mnist-ray commit s3://bucket/table --overwrite")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Prove that a prediction table contains every planned input exactly once. Only the output folder is read."""

    EXAMPLES: ClassVar = ("mnist-ray verify tables/scans", "mnist-ray verify s3://bucket/table")

    out: Annotated[tyro.conf.Positional[str], flag("PATH|URI")]
    """Output folder of score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Draw the report of a finished training run again, or compare several runs. Only their report.json is read."""

    EXAMPLES: ClassVar = ("mnist-ray report runs/digits", "mnist-ray report runs/a runs/b --out comparison.html")

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], flag("RUN ...", "")]
    """Run directories (paths or URIs): one to draw its report.html again, several to compare them on one page."""
    out: Annotated[str, flag("PATH|URI", "report.html in the run directory, or comparison.html for several runs")] = ""
    """HTML file for the page."""

    def __post_init__(self) -> None:
        require(bool(self.runs) and all(self.runs), "RUN is missing or empty: give at least one run directory")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffConfig:
    """Compare two prediction tables of the same inputs, for example of an old and a new model, and write a page about it.

    Inputs are matched by source and row.
    """

    EXAMPLES: ClassVar = ("mnist-ray diff tables/old tables/new", "mnist-ray diff tables/old tables/new --json")

    old: Annotated[tyro.conf.Positional[str], flag("OLD")]
    """Output folder of score (path or URI)."""
    new: Annotated[tyro.conf.Positional[str], flag("NEW")]
    """Output folder of score (path or URI) to compare with OLD."""
    out: Annotated[str, flag("PATH|URI")] = "diff.html"
    """HTML file for the page."""
    json: Switch = False
    """Print one JSON document instead of lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig:
    """Check this machine, a Ray cluster, a storage and a launch file, and say what to do about each problem.

    Nothing is started, downloaded or changed. Each check has a time limit of at most 90 s. Exit status 1 says that there is a
    problem.
    """

    EXAMPLES: ClassVar = ("mnist-ray doctor --out tables/scans", "mnist-ray doctor --address 10.0.0.5:6379 --out s3://bucket/x")

    address: Annotated[str, flag("HOST:PORT", "RAY_ADDRESS, or else only this machine is checked")] = ""
    """Ray cluster to check."""
    out: Annotated[str, flag("PATH|URI", "no storage is checked")] = ""
    """Output folder of a job. A small file is written, read and deleted there, from here and from each node."""
    launch_file: Annotated[str, flag("PATH", "cluster.yaml in the current folder, if there is one")] = ""
    """Launch file of `ray up` to check."""
    json: Switch = False
    """Print one JSON document instead of lines."""
