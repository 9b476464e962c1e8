"""Settings of a scoring job."""

import os
from dataclasses import asdict, dataclass
from math import inf
from typing import Annotated, Any, ClassVar

import tyro

from mnist_ray.config.common import Output, Switch, flag, require_types
from mnist_ray.flags import Device, ScoringPrecision, most_quarantined, probabilities, require, scoring_pool, shard, share

_RESOURCES = {
    *("model", "out", "workers", "processes", "device", "gpus_per_actor", "address", "shard"),
    *("resume", "extend", "rescore_changed", "overwrite"),
    *("max_quarantined", "dry_run", "price_per_node_hour", "log_format", "quiet"),
}
"""Flags that cannot change the rows of the table; `shard`, those of all shards together."""


@dataclass(frozen=True, kw_only=True)
class _Input:
    """What is scored."""

    inputs: Annotated[tyro.conf.Positional[tuple[str, ...]], flag("INPUT ...", "")]
    """Folders, globs, images, tables (.parquet, .csv, .tsv) or manifests of paths (.txt, .lst, .csv, .tsv, .parquet)."""
    model: Annotated[str, flag("PATH|URI")]
    """Run directory or model bundle."""
    image_column: Annotated[str, flag("NAME", "found by its type")] = ""
    """Image column of Parquet inputs."""
    truth: Annotated[str, flag("auto|none|folder|COLUMN")] = "auto"
    """Source of true digits: none, folder (its name), or a column. auto: a column such as label or truth, else the folders."""
    sample: Annotated[int, flag("N", "all inputs")] = 0
    """Score only this many inputs, drawn at random; the same inputs are drawn each time."""


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The prediction table."""

    out: Annotated[str, flag("PATH|URI")]
    """Folder for the prediction table."""
    resume: Switch = False
    """Continue the unfinished job in the output folder. Finished units are skipped."""
    extend: Switch = False
    """Add new inputs to the finished job in the output folder. Changed and deleted inputs are listed in changes.parquet."""
    rescore_changed: Switch = False
    """With --extend: score changed files again and remove deleted files from the table."""
    overwrite: Switch = False
    """Replace the job in the output folder."""
    keep: Annotated[str, flag("NAME,NAME,...", "none")] = ""
    """Columns of tables and manifests to copy into the prediction table."""
    probabilities: Annotated[str, flag("all|none|topN")] = "all"
    """Probabilities to write for each image: all (one for each class), none, or only the highest (top1 to top9)."""
    target_error: Annotated[str, flag("SHARE", "no review")] = ""
    """Add a column needs_review, so that at most this share of the other predictions is wrong, such as 0.1%."""
    precision: ScoringPrecision = "float32"
    """Precision of the forward pass. bfloat16 is faster on processors and GPUs that have it, and changes a few predictions."""
    max_quarantined: Annotated[str, flag("N|P%", "no limit")] = ""
    """Stop as soon as more inputs than this are sure to be quarantined. The table so far is kept, and --resume continues it."""
    unit_rows: Annotated[int, flag("N", "as many as take a fraction of a second")] = 0
    """Images per unit of work. Each unit becomes one file of the table."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """Where the work is done."""

    workers: Annotated[str, flag("auto|N|MIN:MAX")] = "auto"
    """Ray actors, or MIN:MAX. 0: no Ray. auto: 0 up to 200,000 inputs, else one actor per CPU, or up to eight per GPU."""
    processes: Annotated[int, flag("N", "one per CPU")] = 0
    """Scoring processes of this machine, without Ray. They share the first GPU."""
    device: Device = "auto"
    """Device that computes; auto uses the GPUs if the cluster has enough for all actors."""
    gpus_per_actor: Annotated[float, flag("SHARE", "a GPU divided among the CPUs of its node, at least 1/8")] = 0.0
    """Part of a GPU that each actor takes, or a whole number of GPUs."""
    address: Annotated[str, flag("HOST:PORT", "RAY_ADDRESS, or else a new local cluster")] = ""
    """Ray cluster to join."""
    shard: Annotated[str, flag("I/N", "all inputs")] = ""
    """Score only part I of N parts. The N jobs are independent; `mnist-ray commit` merges their tables."""
    dry_run: Switch = False
    """List the inputs, score a few of them, and print how long the job would take. Nothing is written."""
    price_per_node_hour: Annotated[float, flag("PRICE", "none")] = 0.0
    """With --dry-run: price of a node for an hour, in any currency, to print what the job would cost."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Output, _Worker, _Table, _Input):
    """Predict the digit in each image of folders, files, Parquet tables or manifests, and write a prediction table."""

    EXAMPLES: ClassVar = (
        "mnist-ray score scans/ --model runs/digits --out tables/scans",
        "mnist-ray score 's3://bucket/scans/*.parquet' --model runs/digits --out s3://bucket/table --workers 2:16 --keep id",
    )

    def __post_init__(self) -> None:
        require_types(self)
        given = bool(self.inputs) and all(self.inputs)
        require(given, "INPUT is missing or empty: give a folder, a file, a glob or a manifest")
        require(bool(self.model), "--model is empty: give a run directory or a model bundle")
        require(bool(self.truth), "--truth is empty: give auto, none, folder or the name of a column")
        require(bool(self.out), "--out is empty: give a folder for the prediction table")
        scoring_pool(self.workers)
        require(self.processes >= 0, f"--processes {self.processes}: expected at least 1, or 0 for one per CPU")
        gpus = self.gpus_per_actor
        whole_or_part = gpus >= 0 and (gpus <= 1 or gpus % 1 == 0)
        require(whole_or_part, f"--gpus-per-actor {gpus:g}: expected a part of 1, or a whole number of GPUs")
        probabilities(self.probabilities)
        share("--target-error", self.target_error)
        most_quarantined(self.max_quarantined, None)
        rows = self.unit_rows
        require(0 <= rows < 1e9, f"--unit-rows {rows}: expected 1 or more, below 1e9, or 0 to choose the size by the bytes")
        require(0 <= self.sample < 1e12, f"--sample {self.sample}: expected a number of inputs below 1e12, or 0 for all")
        require(not (self.sample and self.extend), "--sample and --extend: give only one; --extend adds all new inputs")
        shard(self.shard)
        require(not (self.shard and self.extend), "--shard and --extend: give only one; extend the table that commit makes")
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

    def needs_ray(self) -> bool:
        """Whether the flags or `RAY_ADDRESS` ask for Ray, however few inputs there are."""
        if self.workers == "auto":
            return bool(self.address or os.environ.get("RAY_ADDRESS"))
        return scoring_pool(self.workers)[1] > 0

    def kept_columns(self) -> tuple[str, ...]:
        """The columns that `--keep` names, in order and without duplicates."""
        return tuple(dict.fromkeys(name.strip() for name in self.keep.split(",") if name.strip()))
