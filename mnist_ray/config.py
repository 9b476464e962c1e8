"""What a run is told: frozen, checked data. Every field of these classes is a command-line flag."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import tyro

from mnist_ray.errors import UsageError
from mnist_ray.flags import checkpoint_interval, probabilities, scoring_pool, worker_range
from mnist_ray.recipes import RECIPES, Recipe, RecipeName

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
    recipe: RecipeName = "standard"
    """Network and schedule: fast (about half a pass), standard, or best (highest accuracy)."""
    workers: str = "2"
    """Ray Train workers, or MIN:MAX to go on at whatever size is there; 0 trains in this process without Ray."""
    device: Device = "auto"
    """Where workers compute; auto takes one GPU per worker where the cluster has them."""
    epochs: float | None = None
    """Passes over the training digits (default: the recipe's, as for the next five)."""
    global_batch_size: int | None = None
    """Samples per optimizer step, divided over all workers."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    weight_decay: float | None = None
    """Decoupled weight decay of the convolution and linear weights."""
    label_smoothing: float | None = None
    """Share of the target that is spread over all digits."""
    augment: bool | None = None
    """Distort each training digit by a small random affine map."""
    seconds: float = 0.0
    """Train for so many seconds instead of --epochs, the schedule fitted to what this machine does in them."""
    patience: int = 0
    """Hold out a tenth of the training digits, stop after so many epochs without a gain on them, deliver the best epoch."""
    seed: int = 0
    """Seed of initial weights, sample order and augmentation."""
    checkpoint_every: str = "1"
    """Time between checkpoints: epochs (1, 0.5), steps (200steps) or seconds (30s)."""
    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, else a local cluster is started."""

    _resources: ClassVar[frozenset[str]] = frozenset({"out", "workers", "device", "checkpoint_every", "address"})

    def __post_init__(self) -> None:
        _require(bool(self.data), "--data is empty: give auto, mnist, mnist5k, a path or a URI")
        worker_range(self.workers)
        checkpoint_interval(self.checkpoint_every)
        _require(0 <= self.seed < 2**63, f"--seed {self.seed}: expected 0 or more")
        _require(self.patience >= 0, f"--patience {self.patience}: expected epochs, or 0 to train to the end")
        _require(0 <= self.seconds < 1e9, f"--seconds {self.seconds}: expected seconds above 0")
        _require(not (self.seconds and self.epochs), "--seconds and --epochs: give one of them")
        how = self.settings()
        _require(0 < how.epochs < 1e6, f"--epochs {how.epochs}: expected passes above 0")
        _require(how.global_batch_size >= 1, f"--global-batch-size {how.global_batch_size}: expected at least 1")
        _require(0 < how.lr < 100, f"--lr {how.lr}: expected a learning rate above 0")
        _require(0 <= how.weight_decay < 10, f"--weight-decay {how.weight_decay}: expected 0 or more")
        _require(0 <= how.label_smoothing < 1, f"--label-smoothing {how.label_smoothing}: expected 0 or more, below 1")

    def settings(self) -> Recipe:
        """The recipe with the flags that override it."""
        recipe = RECIPES[self.recipe]
        names = ("epochs", "global_batch_size", "lr", "weight_decay", "label_smoothing")
        given = {name: type(getattr(recipe, name))(value) for name in names if (value := getattr(self, name)) is not None}
        how = replace(recipe, **given)
        if self.augment is None:
            return how
        return replace(how, affine=(how.affine or RECIPES["standard"].affine) if self.augment else None)

    def meaning(self) -> dict[str, Any]:
        """What can change the result: the recipe as it is carried out, the digits, the seed."""
        rest = {"data": self.data, "seed": self.seed, "seconds": self.seconds, "patience": self.patience}
        fields: dict[str, Any] = json.loads(json.dumps({**asdict(self.settings()), **rest}))
        return fields

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
    workers: str = "auto"
    """Scoring actors on Ray, or MIN:MAX as the work asks for; 0 scores in this process without Ray; auto does so for up to
    200,000 inputs, and takes an actor for each CPU or GPU of the cluster for more."""
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
    probabilities: str = "all"
    """Probabilities of each digit in the table: all, none, or those of the likeliest few (top3)."""
    unit_rows: int = 0
    """Images per unit of work, and rows per file of the table; by default as many as make a fraction of a second of work."""
    address: str = ""
    """Ray cluster to join; by default RAY_ADDRESS, else a local cluster is started."""

    _resources: ClassVar[frozenset[str]] = frozenset({"model", "out", "workers", "device", "resume", "overwrite", "address"})

    def __post_init__(self) -> None:
        _require(bool(self.inputs) and all(self.inputs), "INPUT is missing: give a folder, a file, a glob or a manifest")
        _require(bool(self.model), "--model is empty: give a run directory or a model bundle")
        _require(bool(self.out), "--out is empty: give a folder for the prediction table")
        scoring_pool(self.workers)
        probabilities(self.probabilities)
        _require(
            self.unit_rows >= 0,
            f"--unit-rows {self.unit_rows}: expected at least 1, or 0 for a size that follows from the bytes",
        )
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
