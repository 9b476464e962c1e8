"""The optimizer and its learning rate."""

from __future__ import annotations

from torch import nn, optim

WARM_UP = 0.2
"""Share of the samples over which the learning rate rises to its peak; it falls to zero over the rest."""


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> optim.Optimizer:
    """AdamW; biases and batch norm are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, lr=lr, betas=(0.9, 0.99))


def set_learning_rate(optimizer: optim.Optimizer, peak: float, progress: float) -> float:
    """The triangular schedule at `progress` from 0 to 1 of the run: set it and return it."""
    rate = peak * min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
