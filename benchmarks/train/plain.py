"""The rival `plain`: the network and recipe of this project, written as a careful user of PyTorch writes them.

It shares with us the layers, learning rates, number of samples, distortion and label smoothing. It differs in the code: all
digits are one float tensor, batch norm is PyTorch's, activations have the default memory format, and a plain loop saves
nothing. PyTorch's example is slower than this rival by what the recipe gains. This rival is slower than ours by what the code
gains.

The optimizer is ours, too. PyTorch's Muon takes no weights of convolutions, and computes in bfloat16, which most processors
emulate slowly. AdamW alone would need more samples, which would be another recipe.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.train.rivals import Point, accuracy, point
from mnist_ray.data.digits import CLASSES, Splits
from mnist_ray.learn.augment import draw_affine
from mnist_ray.learn.model import BORDER, MEAN, STD
from mnist_ray.learn.optim import Optimizer, learning_rate
from mnist_ray.recipes import Conv, Recipe


def network(layers: Sequence[Conv]) -> nn.Sequential:
    """The network of a recipe, for normalised images float[B, 1, 28, 28]."""
    stack: list[nn.Module] = [nn.ZeroPad2d(-BORDER)]  # removes the border
    channels = 1
    for layer in layers:
        stack.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, padding=layer.kernel // 2, bias=False))
        stack += [nn.MaxPool2d(layer.pool)] if layer.pool > 1 else []
        stack += [nn.BatchNorm2d(layer.channels), nn.ReLU()]
        channels = layer.channels
    model = nn.Sequential(*stack, nn.Flatten(), nn.LazyLinear(len(CLASSES)))
    model.eval()(torch.zeros(1, 1, 28, 28))  # gives the last layer its size
    return model.train()


def distort(images: Tensor, maps: Tensor) -> Tensor:
    """Images float[B, 1, 28, 28] under affine maps float[B, 2, 3]."""
    return F.grid_sample(images, F.affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)


def order(num_samples: int, epochs: float) -> Tensor:
    """The indices of all samples of a run, in a random order for each epoch."""
    shuffled = torch.cat([torch.randperm(num_samples) for _ in range(math.ceil(epochs))])
    return shuffled[: round(epochs * num_samples)]


def train(recipe: Recipe, splits: Splits, seed: int) -> Point:
    """Train with a recipe, then measure the network on the test images, which is not part of the seconds."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    images = torch.from_numpy(splits.train.images.copy()).float().unsqueeze(1) / 255
    labels = torch.from_numpy(splits.train.labels.astype(np.int64))
    model = network(recipe.layers)
    optimizer = Optimizer(model, recipe)
    batches = order(len(images), recipe.epochs).split(recipe.global_batch_size)
    steps: list[float] = []
    for step, rows in enumerate(batches):
        started = time.perf_counter()
        optimizer.lr = learning_rate(recipe, (step + 0.5) / len(batches))
        batch = images[rows]
        if recipe.affine:
            batch = distort(batch, draw_affine(random, len(rows), recipe.affine))
        model.zero_grad()
        F.cross_entropy(model((batch - MEAN) / STD), labels[rows], label_smoothing=recipe.label_smoothing).backward()
        optimizer.step()
        steps.append(time.perf_counter() - started)
    return point(steps, sum(map(len, batches)), accuracy(model, splits.test))
