"""Compares the losses of 200 steps on 1, 2 and 3 workers with the same seed, in float64, float32 and bfloat16.

    python -m benchmarks.train.agreement

One worker stands for `--workers 0` and `--workers 1`, which are both one process. In float64 the losses must agree to 1e-9.
"""

import tempfile
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from mnist_ray.config import TrainConfig
from mnist_ray.data import datasets
from mnist_ray.data.order import SampleOrder
from mnist_ray.learn import dist, state
from mnist_ray.learn.metrics import Tally
from mnist_ray.learn.optim import Optimizer
from mnist_ray.learn.step import DeviceDigits, learner, train_step

STEPS = 200


def _losses(rank: int, world: int, folder: str, precision: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    splits, device = datasets.load("mnist5k"), torch.device("cpu")
    config = TrainConfig(data="mnist5k", workers="0", epochs=10)
    recipe = config.settings()
    training = state.make_state(config, len(splits.train), device)
    training.precision = precision
    if precision == "float64":
        training.model.double()
        training.optimizer = Optimizer(training.model, recipe)
    order = SampleOrder(len(splits.train), recipe.global_batch_size, config.seed)
    digits = DeviceDigits.put(splits.train, device)
    learn = learner(dist.wrap(training.model.train(), digits.images[:32]), training, digits, recipe)
    losses = []
    for _ in range(STEPS):
        training.tally = Tally()
        train_step(learn, training, order, recipe)
        losses.append(training.tally.reduced().loss)
    torch.save(losses, f"{folder}/{rank}")


def curve(world: int, precision: str) -> torch.Tensor:
    """The global mean loss of each step, float64[200]."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_losses, (world, folder, precision), nprocs=world)
        return torch.tensor(torch.load(Path(folder) / "0", weights_only=True), dtype=torch.float64)


def main() -> None:
    """Print the largest differences to one worker."""
    for precision in ("float64", "float32", "bfloat16"):
        alone = curve(1, precision)
        for world in (2, 3):
            difference = (curve(world, precision) - alone).abs()
            print(f"{precision}, {world} workers against 1: loss {alone[0]:.3f} to {alone[-1]:.3f} in {STEPS} steps, ", end="")
            print(f"largest difference {difference.max():.2g}, in the first 20 steps {difference[:20].max():.2g}")


if __name__ == "__main__":
    main()
