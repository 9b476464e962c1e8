"""The network. It knows no device, rank or cluster, and normalises its own input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_ray.data.order import GROUP_SIZE

ARCHITECTURE = "digit-cnn-1"
MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of MNIST's training images, scaled to 0 to 1."""
CALIBRATION_SAMPLES = 2048


class GroupBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that trains on the statistics of fixed groups of `GROUP_SIZE` consecutive samples.

    A group is computed by one worker whatever their number, so the number of workers does not change what is learned, and
    no statistics are exchanged. Those for evaluation come from `calibrate`, not from a running average.
    """

    calibrating = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise float[B, C, H, W]: by groups in training, by the calibrated statistics in evaluation."""
        if not self.training or self.calibrating:
            return super().forward(input)
        groups = input.split(GROUP_SIZE)
        return torch.cat([F.batch_norm(g, None, None, self.weight, self.bias, True, eps=self.eps) for g in groups])


class DigitCNN(nn.Module):
    """Four convolutions and a linear layer, 66,426 parameters. Pooling comes before batch norm: a quarter of the work."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 64)
        kernels, strides, pools = (5, 3, 3, 3), (2, 1, 1, 1), (1, 2, 2, 1)
        layers: list[nn.Module] = []
        for (inside, outside), kernel, stride, pool in zip(pairwise(widths), kernels, strides, pools, strict=True):
            layers.append(nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False))
            layers += [nn.MaxPool2d(pool)] if pool > 1 else []
            layers += [GroupBatchNorm2d(outside, momentum=None), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1] * 3 * 3, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float[B, 10] of images [B, 28, 28], uint8 or floating point, from 0 (background) to 255 (ink)."""
        scaled = (images.to(self.head.weight.dtype) / 255 - MEAN) / STD
        logits: Tensor = self.head(self.features(scaled.unsqueeze(1)).flatten(1))
        return logits


@torch.no_grad()
def calibrate(model: nn.Module, images: NDArray[np.uint8]) -> None:
    """Set the batch statistics that evaluation uses from one pass over fixed images uint8[N, 28, 28]; ends in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, GroupBatchNorm2d)]
    device = next(model.parameters()).device
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.calibrating = True
    # Batches as even as can be: each counts the same in the average, however many images it has.
    for batch in torch.from_numpy(images).tensor_split(-(-len(images) // 256)):
        model(batch.to(device))
    for norm in norms:
        norm.calibrating = False
    model.eval()
