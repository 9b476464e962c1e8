"""The optimizer and its learning rate."""

from __future__ import annotations

from torch import nn, optim

from mnist_ray.recipes import Recipe


def make_optimizer(model: nn.Module, how: Recipe) -> optim.Optimizer:
    """AdamW; biases and batch norm are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": how.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, lr=how.lr, betas=how.betas, fused=True)


def set_learning_rate(optimizer: optim.Optimizer, how: Recipe, progress: float) -> float:
    """The triangular schedule at `progress` from 0 to 1 of the run: set it and return it."""
    rate = how.lr * min(progress / how.warm_up, (1 - progress) / (1 - how.warm_up))
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
