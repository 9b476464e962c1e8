"""The rivals, reimplemented from their published descriptions: (a) PyTorch's MNIST example, (b) a plain CNN from a notebook.

Like the originals, both read PIL images through a DataLoader with torchvision's transforms. Their time does not include the
evaluation on the test images.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mnist_ray.data.digits import LabelledDigits

TRANSFORM = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
EVALUATIONS_PER_EPOCH = 4
NAMES = ("example", "notebook")
Point = dict[str, float]


class PilDigits(Dataset[tuple[Tensor, int]]):
    """The items of torchvision's MNIST class: a transformed PIL image and its label."""

    def __init__(self, digits: LabelledDigits) -> None:
        self._digits = digits

    def __len__(self) -> int:
        return len(self._digits)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return TRANSFORM(Image.fromarray(self._digits.images[row])), int(self._digits.labels[row])


class ExampleNet(nn.Module):
    """The network of PyTorch's example: two 3x3 convolutions, max-pooling, dropout, and a hidden layer of 128."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(
            nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.convolutions(images))
        return logits


def plain_net() -> nn.Module:
    """The network of the notebook: two convolutions with pooling, and one hidden layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


@torch.inference_mode()
def accuracy(model: nn.Module, digits: LabelledDigits) -> float:
    """Share of the digits that a rival predicts correctly."""
    model.eval()
    images = (torch.from_numpy(digits.images.copy()).float().unsqueeze(1) / 255 - 0.1307) / 0.3081
    labels = torch.from_numpy(digits.labels.astype(np.int64))
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    model.train()
    return hits / len(labels)


def curve(name: str, train: LabelledDigits, test: LabelledDigits, seed: int, epochs: int) -> Iterator[Point]:
    """Train the rival `example` or `notebook`; yields a point at each evaluation."""
    torch.manual_seed(seed)
    model = ExampleNet() if name == "example" else plain_net()
    optimizer = optim.Adadelta(model.parameters(), lr=1.0) if name == "example" else optim.Adam(model.parameters())
    schedule = optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7 if name == "example" else 1.0)
    loader = DataLoader(PilDigits(train), batch_size=64, shuffle=True)
    steps: list[float] = []
    samples, interval = 0, len(loader) // EVALUATIONS_PER_EPOCH
    for _ in range(epochs):
        started = time.perf_counter()
        for step, (images, labels) in enumerate(loader, 1):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            samples += len(labels)
            steps.append(time.perf_counter() - started)
            if step % interval == 0:
                yield point(steps, samples, accuracy(model, test))
            started = time.perf_counter()
        schedule.step()


def point(steps: list[float], samples: int, reached: float, after: float = 0.0) -> Point:
    """A measurement: the seconds of all steps, and "quiet" seconds, an estimate for an idle machine.

    The estimate takes the first quartile of the steps for every step. `after` are seconds of training outside the steps; they
    count in both.
    """
    quiet = sorted(steps)[len(steps) // 4] * len(steps)
    return {"seconds": sum(steps) + after, "quiet_seconds": quiet + after, "samples": samples, "accuracy": reached}
