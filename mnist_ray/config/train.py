"""The configuration of a training job."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar

import tyro

from mnist_ray.config.common import Output, flag, require_types
from mnist_ray.flags import Device, Precision, checkpoint_interval, require, worker_range
from mnist_ray.recipes import RECIPES, Recipe, RecipeName

_ON_OFF = tyro.constructors.PrimitiveConstructorSpec[bool](
    nargs=1,
    metavar="on|off",
    instance_from_str=lambda args: args[0] == "on",
    is_instance=lambda value: isinstance(value, bool),
    str_from_instance=lambda value: ["on" if value else "off"],
    choices=("on", "off"),
)


def _from_recipe(metavar: str, value: Callable[[Recipe], Any]) -> Any:
    """A flag that overrides a value of the recipe. Its help shows the value of each recipe."""
    values = {name: value(recipe) for name, recipe in RECIPES.items()}
    same = len(set(values.values())) == 1
    shown = f"{values['standard']}" if same else ", ".join(f"{name} {each}" for name, each in values.items())
    return flag(metavar, f"from the recipe: {shown}")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is read and written."""

    data: Annotated[str, flag("auto|mnist|mnist5k|PATH|URI")] = "auto"
    """MNIST, its 5,000 digits that are installed (mnist5k), IDX files, a folder with one subfolder per digit, Parquet, CSV."""
    out: Annotated[str, flag("PATH|URI", "a folder in runs/ whose name contains a digest of the settings")] = ""
    """Run directory. `tensorboard --logdir PATH/tensorboard` shows its curves."""
    checkpoint_every: Annotated[str, flag("N|Nsteps|Ns", "1, an epoch")] = "1"
    """Interval between checkpoints: epochs (1, 0.5), steps (200steps) or seconds (30s)."""


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How the network is trained."""

    recipe: RecipeName = "standard"
    """Network and schedule: fast (about half an epoch), standard, or best (highest accuracy)."""
    epochs: Annotated[float | None, _from_recipe("N", lambda recipe: f"{recipe.epochs:g}")] = None
    """Passes over the training digits."""
    global_batch_size: Annotated[int | None, _from_recipe("N", lambda recipe: recipe.global_batch_size)] = None
    """Samples per optimizer step, over all workers."""
    lr: Annotated[float | None, _from_recipe("RATE", lambda recipe: recipe.lr)] = None
    """Peak learning rate of AdamW. That of Muon changes with it."""
    weight_decay: Annotated[float | None, _from_recipe("DECAY", lambda recipe: recipe.weight_decay)] = None
    """AdamW's weight decay, for the weights of the last layer."""
    label_smoothing: Annotated[float | None, _from_recipe("SHARE", lambda recipe: recipe.label_smoothing)] = None
    """Share of each target that is spread over all digits, from 0 to below 1."""
    augment: Annotated[
        tyro.conf.FlagConversionOff[bool | None],
        _ON_OFF,
        _from_recipe("on|off", lambda recipe: "on" if recipe.affine else "off"),
    ] = None
    """Distort each training digit by a random affine map."""
    precision: Precision = "auto"
    """Precision of the forward pass; auto is bfloat16 if the hardware of all workers has it. A continued run keeps its own."""
    seconds: Annotated[float, flag("S", "the length that --epochs gives")] = 0.0
    """Train for this many seconds instead of --epochs. The schedule adapts to the speed of the machine."""
    patience: Annotated[int, flag("N", "train to the end")] = 0
    """Hold out a tenth of the training digits, stop after this many epochs without a gain on them, and keep the best epoch."""
    seed: Annotated[int, flag("N")] = 0
    """Seed of the initial weights, the sample order and the distortions."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """Where the work is done."""

    workers: Annotated[str, flag("N|MIN:MAX")] = "2"
    """Number of Ray Train workers, or MIN:MAX for as many as the cluster has; 0 trains in this process without Ray."""
    device: Device = "auto"
    """Device of the workers; auto uses one GPU per worker if the cluster has enough."""
    address: Annotated[str, flag("HOST:PORT", "RAY_ADDRESS, or else a new local cluster")] = ""
    """Ray cluster to join."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Output, _Worker, _Recipe, _Run):
    """Train a digit classifier and write a model bundle. The same command again continues a run, or reports that it is done."""

    EXAMPLES: ClassVar = (
        "mnist-ray train --out runs/digits",
        "mnist-ray train --data mnist5k --recipe fast --epochs 3 --workers 0 --out runs/first",
    )

    def __post_init__(self) -> None:
        require_types(self)
        require(bool(self.data), "--data is empty: give auto, mnist, mnist5k, a path or a URI")
        worker_range(self.workers)
        interval, _ = checkpoint_interval(self.checkpoint_every)
        require(interval < 1e9, f"--checkpoint-every {self.checkpoint_every}: expected an interval below 1e9")
        require(0 <= self.seed < 2**63, f"--seed {self.seed}: expected 0 or more, below 2**63")
        require(self.patience >= 0, f"--patience {self.patience}: expected a number of epochs, or 0 to train to the end")
        require(0 <= self.seconds < 1e9, f"--seconds {self.seconds}: expected seconds, 0 or more, below 1e9")
        require(not (self.seconds and self.epochs), "--seconds and --epochs: give only one of them")
        recipe = self.settings()
        require(0 < recipe.epochs < 1e6, f"--epochs {recipe.epochs}: expected passes above 0, below 1e6")
        require(recipe.global_batch_size >= 1, f"--global-batch-size {recipe.global_batch_size}: expected at least 1")
        require(0 < recipe.lr < 100, f"--lr {recipe.lr}: expected a learning rate above 0, below 100")
        require(0 <= recipe.weight_decay < 10, f"--weight-decay {recipe.weight_decay}: expected 0 or more, below 10")
        require(0 <= recipe.label_smoothing < 1, f"--label-smoothing {recipe.label_smoothing}: expected 0 or more, below 1")

    def settings(self) -> Recipe:
        """The recipe, with the values that flags override."""
        recipe = RECIPES[self.recipe]
        names = ("epochs", "global_batch_size", "lr", "weight_decay", "label_smoothing")
        given = {name: type(getattr(recipe, name))(value) for name in names if (value := getattr(self, name)) is not None}
        if self.augment is not None:
            given["affine"] = (recipe.affine or RECIPES["standard"].affine) if self.augment else None
        return replace(recipe, **given)

    def identity(self) -> dict[str, Any]:
        """The values that can change the result: the recipe with its overrides, the digits, the seed and the length."""
        names = ("data", "seed", "seconds", "patience", "precision")
        rest = {name: getattr(self, name) for name in names}
        rest |= {"data": self.data.rstrip("/") or "/", "seconds": float(self.seconds)}
        fields: dict[str, Any] = json.loads(json.dumps({**asdict(self.settings()), **rest}))
        return fields

    def fingerprint(self) -> str:
        """SHA-256 of `identity()`, as 64 hexadecimal characters."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def run_directory(self) -> str:
        """The run directory: `--out`, or else a name made of the data and the fingerprint."""
        name = self.data if self.data.isalnum() else "digits"
        return self.out or f"runs/{name}-{self.fingerprint()[:8]}"
