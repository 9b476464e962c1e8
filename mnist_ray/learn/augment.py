"""A batch of digits to a batch of distorted digits, on the device of the batch."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ray.recipes import Affine


def draw_affine(random: np.random.Generator, count: int, limits: Affine) -> Tensor:
    """Random small affine maps, float32[count, 2, 3], in the normalised coordinates of `affine_grid`."""
    turn, scale, shear, right, down = random.uniform(-1, 1, (5, count)).astype(np.float32)
    angle = turn * math.radians(limits.degrees)
    scale = 1 + scale * limits.scale
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    shift = limits.shift_px / 14  # half of the 28 pixels is 1 in normalised coordinates
    rows = [[cos, -sin + shear * limits.shear, right * shift], [sin, cos, down * shift]]
    return torch.from_numpy(np.stack([np.stack(row, axis=1) for row in rows], axis=1))


def sampling_grid(affine: Tensor) -> Tensor:
    """Where each pixel is taken from under affine maps float32[B, 2, 3]: float32[B, 28, 28, 2], as `grid_sample` wants it.

    One matrix product: `affine_grid` takes three times as long as all the rest. A product's last bits depend on its size, so
    it is made for a whole global batch and then divided.
    """
    return (affine.reshape(-1, 3) @ _pixels(affine.device)).view(-1, 2, 28, 28).permute(0, 2, 3, 1)


def distort(images: Tensor, grid: Tensor) -> Tensor:
    """Images uint8[B, 28, 28] sampled at float32[B, 28, 28, 2], as float32[B, 28, 28] from 0 to 255."""
    return F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)


@lru_cache(maxsize=1)
def _pixels(device: torch.device) -> Tensor:
    """The normalised coordinates (x, y, 1) of the centres of all pixels, float32[3, 784]."""
    axis = (2 * torch.arange(28) + 1) / 28 - 1
    return torch.stack([axis.repeat(28), axis.repeat_interleave(28), torch.ones(28 * 28)]).to(device)
