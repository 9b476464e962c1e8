"""The optimizer and its learning rate."""

from torch import nn, optim

from mnist_ray.recipes import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019), without weight decay for biases and batch norm."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def set_learning_rate(optimizer: optim.Optimizer, recipe: Recipe, progress: float) -> None:
    """Set the rate of a triangular schedule at `progress`, 0 to 1: up to `recipe.lr`, then down to 0."""
    rate = recipe.lr * min(progress / recipe.warm_up, (1 - progress) / (1 - recipe.warm_up))
    for group in optimizer.param_groups:
        group["lr"] = rate
