"""What training needs to go on, and the checkpoints it is kept in.

A checkpoint is a folder `RUN/checkpoints/samples-N`: `state.pt`, and `commit.json`, written last, with the state's checksum.
A folder without its commit marker does not exist for a reader; one whose bytes do not match it is named and passed over.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn, optim

from mnist_ray.data import storage
from mnist_ray.errors import OutputError
from mnist_ray.learn import dist
from mnist_ray.learn.metrics import Tally

KEEP = 3
"""Checkpoints kept: the newest ones."""


@dataclass
class TrainState:
    """The whole truth about a run in progress. Random numbers derive from seed and position, so none are kept."""

    model: nn.Module
    optimizer: optim.Optimizer
    samples_seen: int = 0
    train_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    history: list[dict[str, float]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """The state as `torch.save` writes it."""
        buffer = io.BytesIO()
        plain = {"samples_seen": self.samples_seen, "train_seconds": self.train_seconds, "history": self.history}
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "tally": self.tally.state_dict()}
        torch.save({**plain, **parts}, buffer)
        return buffer.getvalue()

    def load_bytes(self, data: bytes) -> None:
        """Take over a state; it is read with `weights_only`, so nothing in it is executed."""
        parts: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.samples_seen, self.train_seconds = parts["samples_seen"], parts["train_seconds"]
        self.tally = Tally(**parts["tally"]) if dist.rank() == 0 else Tally()  # rank 0's holds the counts of all
        self.history = parts["history"]


def _folder(run: str) -> str:
    return storage.join(run, "checkpoints")


def save(run: str, state: TrainState, meaning: str) -> str:
    """Write a checkpoint of the run that `meaning` names, drop the oldest ones, and return its folder."""
    place = storage.join(_folder(run), f"samples-{state.samples_seen:012d}")
    data = state.to_bytes()
    storage.write(storage.join(place, "state.pt"), data)
    marker = {"state.pt": hashlib.sha256(data).hexdigest(), "samples_seen": state.samples_seen, "meaning": meaning}
    storage.write_json(storage.join(place, "commit.json"), marker)
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


def newest(run: str, meaning: str) -> tuple[bytes | None, list[str]]:
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
        if marker.get("meaning") != meaning:
            raise OutputError(f"{run}: holds a run with other settings or data; give another --out, or delete it to start anew")
        return data, warnings
    return None, warnings
