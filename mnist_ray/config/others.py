"""What the smaller commands are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from mnist_ray.config.base import Device, require


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
        require(bool(self.images), "IMAGE is missing: give at least one image file")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """Prove from a prediction table alone that every planned input is there exactly once."""

    out: tyro.conf.Positional[str]
    """Folder that score wrote."""
