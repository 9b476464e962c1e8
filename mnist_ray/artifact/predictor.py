"""A bundle as a fast function from digits to predictions (docs/decisions/0014).

Batch norm is folded into the convolutions. ReLU runs before pooling, which gives the same result and lets ReLU join the
convolution. The network is traced, frozen, and computes in float32; on a CPU in batches of 64, whose activations fit into the
cache. The labels equal those of the network in the bundle; the logits differ by less than 1e-4. In bfloat16, if that is asked
for, a few labels differ.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mnist_ray.artifact.bundle import ModelBundle
from mnist_ray.artifact.confidence import Confidence
from mnist_ray.config import Device
from mnist_ray.config.common import require_type
from mnist_ray.data.digits import Predictions
from mnist_ray.errors import UsageError
from mnist_ray.learn.model import DigitCNN, seeded

BATCH_SIZE = {"cpu": 64, "cuda": 4096}
"""Images per forward pass."""


@contextmanager
def usual_torch() -> Iterator[None]:
    """Inside this block, PyTorch computes as in a new process; afterwards as the calling program has set it.

    This concerns the default type and device, and whether gradients are computed.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # Entering the usual device would slow down each operation.
        with torch.device("cpu") if device.type != "cpu" else nullcontext(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def pick_device(wanted: str) -> torch.device:
    """The device for a value of `--device`; auto is the GPU if PyTorch sees one. Raises UsageError."""
    require_type("device", wanted, Device)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU on this machine; use --device cpu or auto")
    # TF32 changes a convolution by more than the self-test allows, so a bundle would fail it on other devices.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def folded(model: DigitCNN) -> DigitCNN:
    """The same function with batch norm folded into convolutions, except where it follows a pooling and has a weight <= 0.

    There the two cannot change places: a maximum does not commute with a negative factor.
    """
    with seeded(0):
        plain = DigitCNN(model.layers)
    plain.load_state_dict(model.state_dict())
    modules: Iterator[Any] = iter(plain.eval().features)
    stack: list[nn.Module] = []
    for layer in model.layers:
        conv, pool = next(modules), [next(modules)] if layer.pool > 1 else []
        norm, relu = next(modules), next(modules)
        keep_norm = bool(pool) and bool((norm.weight <= 0).any())
        stack += [conv, *pool, norm, relu] if keep_norm else [fuse_conv_bn_eval(conv, norm), relu, *pool]
    plain.features = nn.Sequential(*stack)
    return plain.to(memory_format=torch.channels_last)


class _Judging(nn.Module):
    """A network that also tells which share of its squared features lies in a basis float[F, B].

    The last layer and the basis are one matrix, because a product with ten columns alone is slow. Its rows are in the order in
    which the convolutions leave the features, so that these are not copied.
    """

    matrix: Tensor

    def __init__(self, network: DigitCNN, basis: Tensor) -> None:
        super().__init__()
        self.network, head = network, network.head
        channels = network.layers[-1].channels
        side = math.isqrt(head.in_features // channels)
        in_memory = torch.arange(head.in_features).view(side, side, channels).permute(2, 0, 1).flatten()
        self.register_buffer("matrix", torch.cat([head.weight.float().T, basis], 1)[in_memory])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32[B, C] and shares float32[B] of images uint8[B, 28, 28]."""
        features = self.network.features(self.network.planes(images)).flatten(1).float()
        products, classes = features @ self.matrix, self.network.head.out_features
        inside = products[:, classes:].square().sum(1) / torch.linalg.vector_norm(features, dim=1).square().clamp_min(1e-12)
        return products[:, :classes] + self.network.head.bias.float(), inside


@dataclass(frozen=True)
class Predictor:
    """Predicts with one bundle on one device, where it has passed its self-test. Thread-safe."""

    device: torch.device
    network: torch.jit.ScriptModule
    confidence: Confidence

    @classmethod
    def ready(cls, bundle: ModelBundle, device: torch.device, precision: str = "float32") -> Self:
        """Build the fast form of the network and run the self-test on both forms. Raises ModelError.

        `precision` is that of the fast form: float32 or bfloat16.
        """
        bundle.model.to(device).eval()
        network = folded(bundle.model).to(getattr(torch, precision))
        fast = _Judging(network, bundle.basis).to(device).eval()
        example = torch.zeros((BATCH_SIZE[device.type], 28, 28), dtype=torch.uint8, device=device)
        with warnings.catch_warnings(), torch.inference_mode():
            bundle.check_logits(bundle.model(bundle.selftest["images"].to(device)).cpu())
            warnings.simplefilter("ignore")  # torch.jit is deprecated; its successor compiles for seconds (docs/decisions/0014)
            traced = torch.jit.freeze(torch.jit.trace(fast, example, check_trace=False))
            if device.type == "cpu":
                traced = torch.jit.optimize_for_inference(traced)
        predictor = cls(device, traced, Confidence.read(bundle.card))
        bundle.check_logits(predictor.outputs(bundle.selftest["images"])[0], precision)
        return predictor

    @torch.inference_mode()
    def outputs(self, digits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32[N, C] of digits uint8[N, 28, 28], and the shares float32[N] of their features in the basis.

        All are on the CPU.
        """
        count, size = len(digits), BATCH_SIZE[self.device.type]
        if padding := max(-count % size, size - count):  # to whole batches, at least one
            digits = F.pad(digits, (0, 0, 0, 0, 0, padding))
        logits, inside = zip(*(self.network(batch.to(self.device)) for batch in digits.split(size)), strict=True)
        return torch.cat(logits).cpu()[:count], torch.cat(inside).cpu()[:count]

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        """Predictions for digits uint8[N, 28, 28]."""
        writable = np.require(images, requirements=("C", "W"))  # for torch: no negative strides, not read-only
        return self.confidence.predictions(*self.outputs(torch.from_numpy(writable)))
