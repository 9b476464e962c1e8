"""Random distortion of a batch of digits, on the batch's device."""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ray.recipes import Affine


@cache
def _centres(device: torch.device) -> Tensor:
    """The normalised coordinates of the centres of 28 pixels in a row, float32[28]."""
    return (2 * torch.arange(28, device=device) + 1) / 28 - 1


def draw_affine(random: np.random.Generator, count: int, limits: Affine) -> Tensor:
    """Random affine maps within the limits, float32[count, 2, 3], in the coordinates of `torch.nn.functional.affine_grid`."""
    angle, scale, shear, right, down = random.uniform(-1, 1, (5, count)).astype(np.float32)
    angle, scale = angle * math.radians(limits.degrees), 1 + scale * limits.scale
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    shift = limits.shift_px / 14  # 14 pixels are one unit: the 28 pixels span -1 to 1
    rows = [[cos, -sin + shear * limits.shear, right * shift], [sin, cos, down * shift]]
    return torch.from_numpy(np.stack([np.stack(row, axis=1) for row in rows], axis=1))


def sampling_grid(affine: Tensor) -> Tensor:
    """The source position of each pixel under affine maps float32[B, 2, 3]: float32[B, 28, 28, 2] for `grid_sample`.

    These are sums, because `affine_grid` takes three times as long as the rest of the distortion. The last bits of a matrix
    product would also depend on B, and so on the number of workers.
    """
    centres = _centres(affine.device)
    along_x = affine[:, :, 0, None] * centres
    along_y = affine[:, :, 1, None] * centres + affine[:, :, 2, None]
    return (along_x[:, :, None, :] + along_y[:, :, :, None]).permute(0, 2, 3, 1)


def distort(images: Tensor, grid: Tensor) -> Tensor:
    """Images uint8[B, 28, 28] sampled at `grid` float32[B, 28, 28, 2]; returns float32[B, 28, 28] from 0 to 255."""
    return F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)
