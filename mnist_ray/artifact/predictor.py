"""A bundle as a function from digits to predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_ray.artifact.bundle import ModelBundle
from mnist_ray.data.predictions import Predictions
from mnist_ray.errors import UsageError

BATCH_SIZE = 64
"""Images per forward pass: small activations stay in the cache (measured in docs/decisions)."""


def pick_device(wanted: str) -> torch.device:
    """The device that `--device` names; auto is the GPU where there is one. Raises UsageError."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU on this machine; use --device cpu or auto")
    # TF32 moves a convolution by more than a processor's rounding does: a bundle would fail its self-test elsewhere.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Predictor:
    """Predicts with one bundle on one device, which has passed its self-test there."""

    bundle: ModelBundle
    device: torch.device

    @staticmethod
    def ready(bundle: ModelBundle, device: torch.device) -> Predictor:
        """Move the network to the device and run its self-test there. Raises ModelError."""
        bundle.model.to(device).eval()
        bundle.check(device)
        return Predictor(bundle, device)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        """Predict uint8[N, 28, 28]."""
        digits = torch.from_numpy(np.require(images, requirements="W"))  # torch warns of read-only arrays
        logits = [self.bundle.model(batch.to(self.device)) for batch in digits.split(BATCH_SIZE)] if len(images) else []
        probabilities = torch.cat([torch.softmax(part.float(), 1).cpu() for part in logits] or [torch.zeros(0, 10)])
        confidence, label = probabilities.max(dim=1)
        return Predictions(label.numpy().astype(np.uint8), confidence.numpy(), probabilities.numpy())
