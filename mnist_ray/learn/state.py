"""What training needs to go on, and the checkpoints it is kept in.

A checkpoint is a folder `RUN/checkpoints/samples-N`: `state.pt`, and `commit.json`, written last, with the state's checksum.
A folder without its commit marker does not exist for a reader; one whose bytes do not match it is named and passed over.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, optim

from mnist_ray.config import TrainConfig
from mnist_ray.data import storage
from mnist_ray.errors import OutputError, StorageError
from mnist_ray.learn import dist
from mnist_ray.learn.metrics import Tally
from mnist_ray.learn.model import DigitCNN
from mnist_ray.learn.optim import make_optimizer

UNKNOWN = 10**12
"""The length of a run that is given in seconds, until its speed is known."""
KEEP = 3
"""Checkpoints kept: the newest ones."""
_PLAIN = ("samples_seen", "total", "train_seconds", "history", "best")


@dataclass
class TrainState:
    """The whole truth about a run in progress. Random numbers derive from seed and position, so none are kept."""

    model: DigitCNN
    optimizer: optim.Optimizer
    total: int
    """Samples that the run will have seen at its end."""
    precision: str = "float32"
    """What the forward pass computes in: float32, or bfloat16 with float32 weights."""
    samples_seen: int = 0
    train_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    """The network's state at the epoch that did best on the validation part, where there is one."""

    def to_bytes(self) -> bytes:
        """The state as `torch.save` writes it."""
        buffer = io.BytesIO()
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        tally = {"confusion": self.tally.confusion, "loss_sum": self.tally.loss_sum}
        torch.save({**{name: getattr(self, name) for name in _PLAIN}, **parts, "tally": tally}, buffer)
        return buffer.getvalue()

    def load_bytes(self, data: bytes) -> None:
        """Take over a state; it is read with `weights_only`, so nothing in it is executed."""
        parts: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        for name in _PLAIN:
            setattr(self, name, parts[name])
        self.tally = Tally(**parts["tally"]) if dist.rank() == 0 else Tally()  # rank 0's holds the counts of all


def make_state(config: TrainConfig, num_samples: int, device: torch.device) -> TrainState:
    """The state of a run over so many training digits that has not begun: the same weights on every worker."""
    how = config.settings()
    torch.manual_seed(config.seed)
    model = DigitCNN(how.layers).to(device)
    total = UNKNOWN if config.seconds else max(1, round(how.epochs * num_samples))
    return TrainState(model, make_optimizer(model, how), total, common_precision(device))


def common_precision(device: torch.device) -> str:
    """What every worker's hardware multiplies: bfloat16, else float32."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if int(dist.all_reduce_sum(torch.tensor(int(able)))) == dist.world() else "float32"


def _folder(run: str) -> str:
    return storage.join(run, "checkpoints")


def save_checkpoint(run: str, state: TrainState, identity: str) -> str:
    """Write a checkpoint of the run that `identity` names, drop the oldest ones, and return its folder.

    Raises StorageError, when several tries have failed; the checkpoints before it are as they were.
    """
    place = storage.join(_folder(run), f"samples-{state.samples_seen:012d}")
    data = state.to_bytes()
    marker = {"state.pt": hashlib.sha256(data).hexdigest(), "samples_seen": state.samples_seen, "meaning": identity}
    try:
        storage.write(storage.join(place, "state.pt"), data, storage.PATIENT)
        storage.write_json(storage.join(place, "commit.json"), marker, storage.PATIENT)
    except StorageError as error:
        before: list[str] = []
        with suppress(StorageError):
            before = [name for name in _names(run) if storage.is_file(storage.join(_folder(run), name, "commit.json"))]
        kept = f"the checkpoints before it are whole, the newest is {before[-1]}" if before else "there is none before it"
        raise StorageError(
            f"{error} ({len(storage.PATIENT) + 1} tries); {kept}; make space or mend the storage, then run the same command "
            "again to continue"
        ) from None
    with suppress(StorageError):  # one checkpoint too many harms nobody
        _prune(run, place.rpartition("/")[2])
    return place


def _prune(run: str, newest_name: str) -> None:
    """Delete all but the newest few, and what a run that fell back past damaged checkpoints left ahead of it."""
    names = _names(run)
    reached = [name for name in names if name <= newest_name]
    for old in [*reached[:-KEEP], *names[len(reached) :]]:
        storage.delete(storage.join(_folder(run), old, "commit.json"))
        storage.delete(storage.join(_folder(run), old))


def _names(run: str) -> list[str]:
    return [name for name in storage.names(_folder(run)) if name.startswith("samples-")]


def newest_checkpoint(run: str, identity: str) -> tuple[bytes | None, list[str]]:
    """The newest whole checkpoint's state, and a warning for each damaged one that was passed over.

    Raises OutputError if it belongs to a run with other settings or data.
    """
    warnings: list[str] = []
    for name in reversed(_names(run)):
        place = storage.join(_folder(run), name)
        try:
            marker = storage.read_json(storage.join(place, "commit.json"))
            data = storage.read(storage.join(place, "state.pt"))
            whole = hashlib.sha256(data).hexdigest() == marker["state.pt"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            warnings.append(f"{place}: this checkpoint is damaged or was never finished; the one before it is used")
            continue
        if marker.get("meaning") != identity:
            raise OutputError(f"{run}: holds a run with other settings or data; give another --out, or delete it to start anew")
        return data, warnings
    return None, warnings
