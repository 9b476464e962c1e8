"""Rival (c): our whole job, with checkpoints and bundle, under torchrun instead of Ray.

Nobody watches this job: it shows no progress and keeps no owner record.

torchrun --standalone --nproc-per-node=2 -m benchmarks.train.torchrun --out /tmp/run
"""

import argparse

import torch

from mnist_ray.config import TrainConfig
from mnist_ray.data import datasets
from mnist_ray.learn.control import RunControl
from mnist_ray.run.worker import work


def main() -> None:
    """Run one worker of the job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="fast", choices=["fast", "standard", "best"])
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    config = TrainConfig(data="mnist", recipe=given.recipe, epochs=given.epochs, seed=given.seed)
    work(given.out, config, "cpu", datasets.load("mnist"), RunControl())
    print("done")


if __name__ == "__main__":
    main()
