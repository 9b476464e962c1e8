"""The state of a training run, and its checkpoints.

A checkpoint is a folder `RUN/checkpoints/samples-N` with `state.pt` and the marker `commit.json`, which is written last and
holds the SHA-256 of `state.pt`. A reader skips a folder without a valid marker, or whose bytes do not match it, and warns.
"""

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.errors import OutputError, StorageError
from mnist_ray.learn import dist
from mnist_ray.learn.metrics import Tally
from mnist_ray.learn.model import DigitCNN, seeded
from mnist_ray.learn.optim import Optimizer

UNKNOWN = 10**12
"""Length in samples of a run with `--seconds`, until its speed is known."""
KEEP = 3
"""Number of checkpoints kept, the newest ones."""
_PLAIN_FIELDS = ("precision", "samples_seen", "total", "train_seconds", "history", "best")


@dataclass
class TrainState:
    """The complete state of a run. It holds no random state, because all random numbers derive from seed and position."""

    model: DigitCNN
    optimizer: Optimizer
    total: int
    """Length of the run, in samples."""
    precision: str = "float32"
    """Precision of the forward pass: float32, or bfloat16 with float32 weights. A checkpoint keeps it."""
    samples_seen: int = 0
    train_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    """With `--patience`: the state dict of the epoch with the highest validation accuracy."""

    def to_bytes(self) -> bytes:
        """The state in the format of `torch.save`."""
        buffer = io.BytesIO()
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**{name: getattr(self, name) for name in _PLAIN_FIELDS}, **parts, "tally": vars(self.tally)}, buffer)
        return buffer.getvalue()

    def load_bytes(self, data: bytes, run: str) -> None:
        """Replace this state by a saved one of the run. It is read with `weights_only`, so that nothing in it is executed.

        Raises OutputError if it has other fields than this version of the program writes.
        """
        parts: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        try:
            self.model.load_state_dict(parts["model"])
            self.optimizer.load_state_dict(parts["optimizer"])
            for name in _PLAIN_FIELDS:
                setattr(self, name, parts[name])
            self.tally = Tally(**parts["tally"]) if dist.rank() == 0 else Tally()  # it holds the counts of all workers
        except (KeyError, TypeError, ValueError):
            raise OutputError(
                f"{run}: another version of this program wrote its checkpoint, and this one cannot continue it; give another "
                "--out, or delete the folder"
            ) from None


def make_state(config: TrainConfig, num_samples: int, device: torch.device) -> TrainState:
    """The state of a new run over `num_samples` training digits, with the same weights on every worker."""
    recipe = config.settings()
    with seeded(config.seed):
        model = DigitCNN(recipe.layers).to(device)
    total = UNKNOWN if config.seconds else max(1, round(recipe.epochs * num_samples))
    fast = "bfloat16" if all_have_bfloat16(device) else "float32"
    return TrainState(model, Optimizer(model, recipe), total, fast if config.precision == "auto" else config.precision)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware of this worker multiplies bfloat16. Other hardware emulates it slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def all_have_bfloat16(device: torch.device) -> bool:
    """Whether the hardware of every worker multiplies bfloat16. Collective."""
    return int(dist.all_reduce_sum(torch.tensor(int(_has_bfloat16(device))))) == dist.world()


def _places(run: str) -> list[str]:
    """The folders of all checkpoints, from the oldest to the newest."""
    folder = storage.join(run, "checkpoints")
    return [storage.join(folder, name) for name in storage.names(folder) if name.startswith("samples-")]


def save_checkpoint(run: str, state: TrainState, identity: str) -> None:
    """Write a checkpoint of the run with this `identity`, and delete the oldest checkpoints.

    Raises StorageError if the storage does not recover. The earlier checkpoints are then unchanged.
    """
    place = storage.join(run, "checkpoints", f"samples-{state.samples_seen:012d}")
    data = state.to_bytes()
    marker = {"state.pt": hashlib.sha256(data).hexdigest(), "samples_seen": state.samples_seen, "meaning": identity}
    try:
        storage.write(storage.join(place, "state.pt"), data)
        storage.write_json(storage.join(place, "commit.json"), marker)
    except StorageError as error:
        raise StorageError(
            f"{error}; {_describe_earlier(run)}; free space or repair the storage, then run the same command again to continue"
        ) from None
    with suppress(StorageError):  # an extra checkpoint does no harm
        _prune(run, place)


def _describe_earlier(run: str) -> str:
    try:
        earlier = [old.rpartition("/")[2] for old in _places(run) if storage.is_file(storage.join(old, "commit.json"))]
    except StorageError:
        return "earlier checkpoints are unchanged"
    return f"earlier checkpoints are whole, the newest is {earlier[-1]}" if earlier else "there is no earlier checkpoint"


def _prune(run: str, newest: str) -> None:
    """Delete old checkpoints. Those after `newest` stay: a worker that was stuck for long may be behind its successor."""
    for old in [place for place in _places(run) if place <= newest][:-KEEP]:
        storage.delete(storage.join(old, "commit.json"))
        storage.delete(old)


def newest_checkpoint(run: str, identity: str) -> tuple[bytes | None, list[str]]:
    """The state in the newest valid checkpoint, or None, and a warning for each damaged one that was skipped.

    Raises OutputError if the checkpoint belongs to a run with other settings or data.
    """
    warnings: list[str] = []
    for place in reversed(_places(run)):
        try:
            marker = storage.read_json(storage.join(place, "commit.json"))
            data = storage.read(storage.join(place, "state.pt"))
            valid = hashlib.sha256(data).hexdigest() == marker["state.pt"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            warnings.append(f"{place}: this checkpoint is damaged or incomplete; the one before it is used")
            continue
        if marker.get("meaning") != identity:
            raise OutputError(f"{run}: holds a run with other settings or data; give another --out, or delete the folder")
        return data, warnings
    return None, warnings
