"""Settings of a scoring job."""

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import tyro

from mnist_ray.flags import Device, probabilities, require, scoring_pool

_RESOURCES = {
    *("model", "out", "workers", "device", "resume", "extend", "rescore_changed", "overwrite", "address"),
    *("dry_run", "price_per_node_hour"),
}
"""Flags that cannot change the rows of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Predict the digit in each image of folders, files, Parquet tables or manifests, and write a prediction table."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Folders, globs, image files, Parquet files, or manifests that list paths (.txt, .csv, .parquet); paths or URIs."""
    model: str
    """Run directory or model bundle (path or URI)."""
    out: str
    """Folder for the prediction table (path or URI)."""
    workers: str = "auto"
    """Number of scoring actors on Ray, or MIN:MAX to follow the amount of work. 0 uses only this machine, without Ray.
    auto is 0 for up to 200,000 inputs, and one actor per CPU or GPU of the cluster for more."""
    device: Device = "auto"
    """Device that computes; auto uses one GPU per actor if the cluster has GPUs."""
    resume: bool = False
    """Continue the unfinished job in the output folder. Finished units are skipped."""
    extend: bool = False
    """Add new inputs to the finished job in the output folder. Changed and deleted inputs are listed in changes.parquet."""
    rescore_changed: bool = False
    """With --extend: score changed files again and remove deleted files from the table."""
    overwrite: bool = False
    """Replace the job in the output folder."""
    keep: str = ""
    """Columns of Parquet inputs to copy into the table, separated by commas."""
    image_column: str = ""
    """Image column of Parquet inputs. By default it is found by its type."""
    truth_column: str = ""
    """Column of true digits in Parquet inputs and manifests. By default truth, label, labels, digit or target."""
    probabilities: str = "all"
    """Probabilities to write for each image: all (of ten digits), none, or only the highest (top1 to top9)."""
    unit_rows: int = 0
    """Images per unit of work. Each unit becomes one file of the table. By default a unit takes a fraction of a second."""
    sample: int = 0
    """Score only this many inputs, drawn at random; the same inputs are drawn each time. 0 scores all."""
    address: str = ""
    """Ray cluster to connect to. By default RAY_ADDRESS, else a local cluster is started."""
    dry_run: bool = False
    """List the inputs, score a few of them, and print how long the job would take. Nothing is written."""
    price_per_node_hour: float = 0.0
    """With --dry-run: price of a node for an hour, in any currency, to print what the job would cost."""

    def __post_init__(self) -> None:
        given = bool(self.inputs) and all(self.inputs)
        require(given, "INPUT is missing or empty: give a folder, a file, a glob or a manifest")
        require(bool(self.model), "--model is empty: give a run directory or a model bundle")
        require(bool(self.out), "--out is empty: give a folder for the prediction table")
        scoring_pool(self.workers)
        probabilities(self.probabilities)
        rows = self.unit_rows
        require(rows >= 0, f"--unit-rows {rows}: expected at least 1, or 0 to choose the size by the number of bytes")
        require(self.sample >= 0, f"--sample {self.sample}: expected a number of inputs, or 0 for all")
        require(not (self.sample and self.extend), "--sample and --extend: give only one; --extend adds all new inputs")
        num_modes = self.resume + self.extend + self.overwrite
        require(num_modes <= 1, "--resume continues a job, --extend adds to it, and --overwrite replaces it: give one of them")
        require(self.extend or not self.rescore_changed, "--rescore-changed: give --extend, too")
        price = self.price_per_node_hour
        require(0 <= price < inf, f"--price-per-node-hour {price}: expected a price of at least 0")
        require(self.dry_run or not price, "--price-per-node-hour: give --dry-run, too")

    def identity(self) -> dict[str, Any]:
        """The fields that can change the rows of the table, as values that JSON can hold."""
        fields = {name: value for name, value in asdict(self).items() if name not in _RESOURCES}
        return {**fields, "inputs": list(self.inputs)}

    def kept_columns(self) -> tuple[str, ...]:
        """The columns that `--keep` names, in order and without duplicates."""
        return tuple(dict.fromkeys(name.strip() for name in self.keep.split(",") if name.strip()))
