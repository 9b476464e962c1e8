"""The optimizer and its learning rate."""

import math

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mnist_ray.recipes import Recipe

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of one step of the iteration, from Jordan et al., "Muon: an optimizer for hidden layers", 2024."""
NEWTON_SCHULZ_STEPS = 3
"""The article has five. The networks learn as well with three (docs/decisions/0010)."""


class Optimizer:
    """Muon (Jordan et al., 2024) for the weights of convolutions, and AdamW (Loshchilov and Hutter, 2019) for all others.

    Only the last layer's weights decay. PyTorch's class of AdamW is not used, because it imports the compiler of PyTorch: 1 to
    3 s of every job. PyTorch's Muon computes in bfloat16, which most processors emulate slowly.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        parameters: list[Tensor] = list(model.parameters())
        self._recipe = recipe
        self._convolutions = [p for p in parameters if p.ndim == 4]
        head, others = [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim == 1]
        self._groups = ((head, recipe.weight_decay), (others, 0.0))
        self._lr_on_device = torch.zeros((), device=parameters[0].device)
        self.lr = recipe.lr
        self.state: list[dict[str, Tensor]] = [
            *({"average": torch.zeros_like(p)} for p in self._convolutions),
            *(
                {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                for p in (*head, *others)
            ),
        ]
        """Of each parameter, the average of its gradient; with AdamW also that of its square, and the number of steps."""

    @property
    def lr(self) -> float:
        """AdamW's learning rate of the next step."""
        return self._lr

    @lr.setter
    def lr(self, rate: float) -> None:
        self._lr = rate
        self._lr_on_device.fill_(rate)  # a recorded step reads it there

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        muon_lr = self._lr_on_device * self._recipe.muon_ratio
        for weight, held in zip(self._convolutions, self.state, strict=False):
            if weight.grad is not None:
                weight.sub_(self._direction(weight.grad, held["average"]) * muon_lr)
        first = len(self._convolutions)
        for parameters, weight_decay in self._groups:
            self._adamw(parameters, self.state[first : first + len(parameters)], weight_decay)
            first += len(parameters)

    def _direction(self, gradient: Tensor, average: Tensor) -> Tensor:
        """Muon's direction for the weights float[O, I, K, K] of a convolution. Updates the average of the gradient."""
        momentum = self._recipe.momentum
        average.lerp_(gradient, 1 - momentum)
        ahead = gradient.lerp(average, momentum).permute(0, 2, 3, 1)  # Nesterov's momentum, in the order in memory
        matrix = ahead.flatten(1)
        rows, columns = matrix.shape
        return orthogonal(matrix).view(ahead.shape).permute(0, 3, 1, 2) * math.sqrt(max(1.0, rows / columns))

    def _adamw(self, parameters: list[Tensor], held: list[dict[str, Tensor]], weight_decay: float) -> None:
        steps, averages, squares = ([moments[name] for moments in held] for name in ("step", "exp_avg", "exp_avg_sq"))
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            averages,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=self._recipe.betas[0],
            beta2=self._recipe.betas[1],
            lr=self._lr_on_device if self._lr_on_device.is_cuda else self.lr,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def state_dict(self) -> list[dict[str, Tensor]]:
        """The state of each parameter."""
        return self.state

    def load_state_dict(self, saved: list[dict[str, Tensor]]) -> None:
        """Take over a saved state."""
        for own, other in zip(self.state, saved, strict=True):
            for name, values in own.items():
                values.copy_(other[name])


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix float[R, C] with nearly the same singular vectors, whose singular values are about 1.

    They are 0.68 to 1.21 where those of `matrix` are more than a fiftieth of its Frobenius norm, and less than 0.76 elsewhere.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate of a triangular schedule at `progress`, 0 to 1: up to `recipe.lr`, then down to 0."""
    return recipe.lr * min(progress / recipe.warm_up, (1 - progress) / (1 - recipe.warm_up))
