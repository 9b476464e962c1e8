"""The optimizer and its learning rate."""

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mnist_ray.recipes import Recipe


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019), without weight decay for biases and batch norm.

    It is PyTorch's function without PyTorch's class, because the class imports the compiler of PyTorch: 1 to 3 s of every job.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        parameters: list[Tensor] = list(model.parameters())
        decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        self._groups = ((decayed, recipe.weight_decay), (others, 0.0))
        self._betas = recipe.betas
        self._lr_on_device = torch.zeros((), device=parameters[0].device)
        self.lr = recipe.lr
        self.state: list[dict[str, Tensor]] = [
            {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            for p in (*decayed, *others)
        ]
        """Of each parameter, the number of steps, and the averages of the gradient and of its square."""

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._lr

    @lr.setter
    def lr(self, rate: float) -> None:
        self._lr = rate
        self._lr_on_device.fill_(rate)  # a recorded step reads it there

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        first = 0
        for parameters, weight_decay in self._groups:
            gradients = [p.grad for p in parameters if p.grad is not None]
            held = self.state[first : first + len(parameters)]
            first += len(parameters)
            steps, averages, squares = ([moments[name] for moments in held] for name in ("step", "exp_avg", "exp_avg_sq"))
            adamw(
                parameters,
                gradients,
                averages,
                squares,
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=self._lr_on_device if self._lr_on_device.is_cuda else self.lr,
                weight_decay=weight_decay,
                eps=1e-8,
                maximize=False,
            )

    def state_dict(self) -> dict[str, dict[int, dict[str, Tensor]]]:
        """The state in the format of `torch.optim.AdamW`."""
        return {"state": dict(enumerate(self.state))}

    def load_state_dict(self, saved: dict[str, dict[int, dict[str, Tensor]]]) -> None:
        """Take over a saved state."""
        for i, moments in enumerate(self.state):
            for name, values in moments.items():
                values.copy_(saved["state"][i][name])


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate of a triangular schedule at `progress`, 0 to 1: up to `recipe.lr`, then down to 0."""
    return recipe.lr * min(progress / recipe.warm_up, (1 - progress) / (1 - recipe.warm_up))
