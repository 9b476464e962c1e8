"""What a run is told: frozen, checked data. Every field of these classes is a command-line flag."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal

import tyro

from mnist_ray.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


class _Fingerprinted:
    """Names what a run means: a digest of every field that can change its results."""

    __slots__ = ()
    _resources: ClassVar[frozenset[str]] = frozenset()

    def meaning(self) -> dict[str, Any]:
        """The fields that can change the result, without resources and places."""
        fields: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]
        return {name: value for name, value in fields.items() if name not in self._resources}

    def fingerprint(self) -> str:
        """SHA-256 of `meaning()`, as 64 hexadecimal characters."""
        return hashlib.sha256(json.dumps(self.meaning(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(_Fingerprinted):
    """Train a digit classifier and leave a model bundle. Running the same command again continues or sees it is done."""

    data: str = "auto"
    """Digits to learn: auto, mnist, mnist5k, or a path or URI of IDX files, of a folder with one subfolder per digit,
    or of Parquet files."""
    out: str = ""
    """Run directory (path or URI). By default a folder in runs/ named after the settings."""
    workers: int = 2
    """Ray Train workers; 0 trains in this process without Ray."""
    device: Device = "auto"
    """Where workers compute; auto takes one GPU per worker where the cluster has them."""
    epochs: int = 5
    """Passes over the training digits."""
    global_batch_size: int = 256
    """Samples per optimizer step, divided over all workers."""
    lr: float = 0.01
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the convolution and linear weights."""
    augment: bool = True
    """Distort each training digit by a small random affine map."""
    seed: int = 0
    """Seed of initial weights, sample order and augmentation."""
    checkpoint_every: float = 1.0
    """Epochs between checkpoints."""
    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, else a local cluster is started."""

    _resources: ClassVar[frozenset[str]] = frozenset({"out", "workers", "device", "checkpoint_every", "address"})

    def __post_init__(self) -> None:
        _require(bool(self.data), "--data is empty: give auto, mnist, mnist5k, a path or a URI")
        _require(self.workers >= 0, f"--workers {self.workers}: expected 0 (no Ray) or a number of Ray workers")
        _require(self.epochs >= 1, f"--epochs {self.epochs}: expected at least 1")
        _require(self.global_batch_size >= 1, f"--global-batch-size {self.global_batch_size}: expected at least 1")
        _require(0 < self.lr < 100, f"--lr {self.lr}: expected a learning rate above 0")
        _require(0 <= self.weight_decay < 10, f"--weight-decay {self.weight_decay}: expected 0 or more")
        _require(0 <= self.seed < 2**63, f"--seed {self.seed}: expected 0 or more")
        _require(0 < self.checkpoint_every < 1e9, f"--checkpoint-every {self.checkpoint_every}: expected epochs above 0")

    def run_directory(self) -> str:
        """Where the run lives: `--out`, else a name made of the data and the fingerprint."""
        name = self.data if self.data.isalnum() else "digits"
        return self.out or f"runs/{name}-{self.fingerprint()[:8]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(_Fingerprinted):
    """Score folders, files, Parquet tables or manifests of digit images into a prediction table."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Folders, globs, image files, Parquet files, or manifests of paths (.txt, .csv, .parquet); paths or URIs."""
    model: str
    """Run directory or model bundle (path or URI)."""
    out: str
    """Folder of the prediction table (path or URI)."""
    workers: int = 2
    """Scoring actors on Ray; 0 scores in this process without Ray."""
    device: Device = "auto"
    """Where actors compute; auto takes one GPU per actor where the cluster has them."""
    resume: bool = False
    """Continue the job that the output folder holds: finished units are skipped."""
    overwrite: bool = False
    """Replace the job that the output folder holds."""
    keep: str = ""
    """Columns of Parquet inputs to pass through, separated by commas."""
    image_column: str = ""
    """Image column of Parquet inputs; found by its type by default."""
    truth_column: str = ""
    """Column of true digits in Parquet inputs and manifests; by default truth, label, labels, digit or target."""
    unit_rows: int = 2048
    """Images per unit of work."""
    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, else a local cluster is started."""

    _resources: ClassVar[frozenset[str]] = frozenset({"model", "out", "workers", "device", "resume", "overwrite", "address"})

    def __post_init__(self) -> None:
        _require(bool(self.inputs) and all(self.inputs), "INPUT is missing: give a folder, a file, a glob or a manifest")
        _require(bool(self.model), "--model is empty: give a run directory or a model bundle")
        _require(bool(self.out), "--out is empty: give a folder for the prediction table")
        _require(self.workers >= 0, f"--workers {self.workers}: expected 0 (no Ray) or a number of actors")
        _require(self.unit_rows >= 1, f"--unit-rows {self.unit_rows}: expected at least 1")
        _require(not (self.resume and self.overwrite), "--resume continues a job and --overwrite replaces it: give one")

    def kept_columns(self) -> tuple[str, ...]:
        """The columns named by `--keep`, in order and once each."""
        return tuple(dict.fromkeys(name.strip() for name in self.keep.split(",") if name.strip()))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Measure a model on the test part of a dataset."""

    model: str
    """Run directory or model bundle (path or URI)."""
    data: str = "auto"
    """Digits to measure on: as for train."""
    out: str = ""
    """JSON file of the result; by default evaluation.json beside the bundle."""
    device: Device = "auto"
    """Where to compute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """Print the digit seen in each of a few image files."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files (paths or URIs)."""
    model: Annotated[str, tyro.conf.arg(metavar="RUN_OR_BUNDLE")]
    """Run directory or model bundle (path or URI)."""

    def __post_init__(self) -> None:
        _require(bool(self.images), "IMAGE is missing: give at least one image file")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Prove from a prediction table alone that every planned input is there exactly once."""

    out: tyro.conf.Positional[str]
    """Folder that score wrote."""
