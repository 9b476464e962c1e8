"""What a scoring job is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import tyro

from mnist_ray.config.base import Device, Fingerprinted, require
from mnist_ray.flags import probabilities, scoring_pool


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(Fingerprinted):
    """Score folders, files, Parquet tables or manifests of digit images into a prediction table."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Folders, globs, image files, Parquet files, or manifests of paths (.txt, .csv, .parquet); paths or URIs."""
    model: str
    """Run directory or model bundle (path or URI)."""
    out: str
    """Folder of the prediction table (path or URI)."""
    workers: str = "auto"
    """Scoring actors on Ray, or MIN:MAX as the work asks for; 0 scores on this machine without Ray; auto does so for up to
    200,000 inputs, and takes an actor for each CPU or GPU of the cluster for more."""
    device: Device = "auto"
    """Where actors compute; auto takes one GPU per actor where the cluster has them."""
    resume: bool = False
    """Continue the job that the output folder holds: finished units are skipped."""
    extend: bool = False
    """Add to the finished job that the output folder holds what is new in its inputs; what has changed or is gone is listed."""
    rescore_changed: bool = False
    """With --extend: score changed files anew, and take those that are gone out of the table."""
    overwrite: bool = False
    """Replace the job that the output folder holds."""
    keep: str = ""
    """Columns of Parquet inputs to pass through, separated by commas."""
    image_column: str = ""
    """Image column of Parquet inputs; found by its type by default."""
    truth_column: str = ""
    """Column of true digits in Parquet inputs and manifests; by default truth, label, labels, digit or target."""
    probabilities: str = "all"
    """Probabilities of each digit in the table: all, none, or those of the likeliest few (top3)."""
    unit_rows: int = 0
    """Images per unit of work, and rows per file of the table; by default as many as make a fraction of a second of work."""
    sample: int = 0
    """Score so many of the inputs, drawn at random, the same ones each time; 0 scores all."""
    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, else a local cluster is started."""

    _resources: ClassVar[frozenset[str]] = frozenset(
        {"model", "out", "workers", "device", "resume", "extend", "rescore_changed", "overwrite", "address"}
    )

    def __post_init__(self) -> None:
        require(bool(self.inputs) and all(self.inputs), "INPUT is missing: give a folder, a file, a glob or a manifest")
        require(bool(self.model), "--model is empty: give a run directory or a model bundle")
        require(bool(self.out), "--out is empty: give a folder for the prediction table")
        scoring_pool(self.workers)
        probabilities(self.probabilities)
        require(
            self.unit_rows >= 0,
            f"--unit-rows {self.unit_rows}: expected at least 1, or 0 for a size that follows from the bytes",
        )
        require(self.sample >= 0, f"--sample {self.sample}: expected a number of inputs, or 0 for all")
        require(not (self.sample and self.extend), "--extend adds all that is new: it does not go with --sample")
        ways = self.resume + self.extend + self.overwrite
        require(ways <= 1, "--resume continues a job, --extend adds to it, and --overwrite replaces it: give one of them")
        require(self.extend or not self.rescore_changed, "--rescore-changed: goes with --extend")

    def kept_columns(self) -> tuple[str, ...]:
        """The columns named by `--keep`, in order and once each."""
        return tuple(dict.fromkeys(name.strip() for name in self.keep.split(",") if name.strip()))
