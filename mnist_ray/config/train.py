"""What a training job is told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from mnist_ray.config.base import Device, Fingerprinted, require
from mnist_ray.flags import checkpoint_interval, worker_range
from mnist_ray.recipes import RECIPES, Recipe, RecipeName


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Fingerprinted):
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
        require(bool(self.data), "--data is empty: give auto, mnist, mnist5k, a path or a URI")
        worker_range(self.workers)
        checkpoint_interval(self.checkpoint_every)
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: expected 0 or more")
        require(self.patience >= 0, f"--patience {self.patience}: expected epochs, or 0 to train to the end")
        require(0 <= self.seconds < 1e9, f"--seconds {self.seconds}: expected seconds above 0")
        require(not (self.seconds and self.epochs), "--seconds and --epochs: give one of them")
        how = self.settings()
        require(0 < how.epochs < 1e6, f"--epochs {how.epochs}: expected passes above 0")
        require(how.global_batch_size >= 1, f"--global-batch-size {how.global_batch_size}: expected at least 1")
        require(0 < how.lr < 100, f"--lr {how.lr}: expected a learning rate above 0")
        require(0 <= how.weight_decay < 10, f"--weight-decay {how.weight_decay}: expected 0 or more")
        require(0 <= how.label_smoothing < 1, f"--label-smoothing {how.label_smoothing}: expected 0 or more, below 1")

    def settings(self) -> Recipe:
        """The recipe with the flags that override it."""
        recipe = RECIPES[self.recipe]
        names = ("epochs", "global_batch_size", "lr", "weight_decay", "label_smoothing")
        given = {name: type(getattr(recipe, name))(value) for name in names if (value := getattr(self, name)) is not None}
        how = replace(recipe, **given)
        if self.augment is None:
            return how
        return replace(how, affine=(how.affine or RECIPES["standard"].affine) if self.augment else None)

    def identity(self) -> dict[str, Any]:
        """What can change the result: the recipe as it is carried out, the digits, the seed."""
        rest = {"data": self.data, "seed": self.seed, "seconds": self.seconds, "patience": self.patience}
        fields: dict[str, Any] = json.loads(json.dumps({**asdict(self.settings()), **rest}))
        return fields

    def run_directory(self) -> str:
        """Where the run lives: `--out`, else a name made of the data and the fingerprint."""
        name = self.data if self.data.isalnum() else "digits"
        return self.out or f"runs/{name}-{self.fingerprint()[:8]}"
