"""The network. It normalises its own input, and does not depend on device, rank or cluster."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_ray.data.digits import CLASSES
from mnist_ray.data.order import GROUP_SIZE
from mnist_ray.recipes import Conv

ARCHITECTURE = "digit-cnn-3"
MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of MNIST's training images, scaled to 0 to 1."""
BORDER = 2
"""Pixels at each edge of an image that the network does not look at. They hold next to no ink of digits."""
CALIBRATION_SAMPLES = 2048
"""Training samples that set the batch statistics for evaluation."""


class GroupBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that trains on the statistics of fixed groups of `GROUP_SIZE` consecutive samples.

    One worker computes a whole group, so the number of workers does not change the result, and workers exchange no
    statistics. The statistics for evaluation come from `calibrate`, not from a running average.
    """

    calibrating = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise float[B, C, H, W]: by group in training, by the calibrated statistics in evaluation."""
        if not self.training or self.calibrating:
            return super().forward(input)
        groups = input.split(GROUP_SIZE)
        return torch.cat([F.batch_norm(g, None, None, self.weight, self.bias, True, eps=self.eps) for g in groups])


_random = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside this block, PyTorch draws random numbers from this seed, for one thread at a time.

    Afterwards its generators are as they were.
    """
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with _random, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


class DigitCNN(nn.Module):
    """Convolutions and a linear layer. Pooling comes before batch norm and ReLU, which then have a quarter of the work.

    Activations are channels_last, which makes convolution, pooling and batch norm several times as fast on a CPU.
    """

    def __init__(self, layers: Sequence[Conv]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        channels, side = 1, 28 - 2 * BORDER
        stack: list[nn.Module] = []
        for layer in layers:
            stack.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, padding=layer.kernel // 2, bias=False))
            stack += [nn.MaxPool2d(layer.pool)] if layer.pool > 1 else []
            stack += [GroupBatchNorm2d(layer.channels, momentum=None), nn.ReLU(inplace=True)]
            channels, side = layer.channels, ((side + 2 * (layer.kernel // 2) - layer.kernel) // layer.stride + 1) // layer.pool
        self.features = nn.Sequential(*stack)
        self.head = nn.Linear(channels * side * side, len(CLASSES))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float[B, C] of images [B, 28, 28], uint8 or floating point, from 0 (background) to 255 (ink)."""
        logits: Tensor = self.head(self.embed(images))
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def embed(self, images: Tensor) -> Tensor:
        """Features float[B, F] of the images, of which the logits are a linear function."""
        return torch.flatten(self.features(self.planes(images)).permute(0, 2, 3, 1), 1)  # the order in memory

    def planes(self, images: Tensor) -> Tensor:
        """The normalised input float[B, 1, H, W] of the first convolution: the images without their border."""
        images = images[:, BORDER:-BORDER, BORDER:-BORDER]
        scaled = (images.to(self.head.weight.dtype) / 255 - MEAN) / STD
        return scaled.unsqueeze(1).to(memory_format=torch.channels_last)


@torch.no_grad()
def calibrate(model: nn.Module, images: NDArray[np.uint8]) -> None:
    """Set the batch statistics for evaluation by one pass over images uint8[N, 28, 28]. Leaves the model in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, GroupBatchNorm2d)]
    device = next(model.parameters()).device
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.calibrating = True
    # Batches of nearly equal size, because each counts the same in the average.
    for batch in torch.from_numpy(images).tensor_split(-(-len(images) // 256)):
        model(batch.to(device))
    for norm in norms:
        norm.calibrating = False
    model.eval()
