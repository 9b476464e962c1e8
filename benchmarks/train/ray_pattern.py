"""Rival (d): MNIST in the pattern of Ray Train's documentation: DataLoader, `prepare_data_loader`, torchvision's transforms.

python -m benchmarks.train.ray_pattern --recipe fast --samples 12000

Network, optimizer and batch size are those of our recipe, so that only the training loop differs.
"""

import argparse
import json
import tempfile
import time
from itertools import chain, repeat
from typing import Any

from mnist_ray.data import datasets
from mnist_ray.recipes import RECIPES


def train_loop(config: dict[str, Any]) -> dict[str, float]:
    """Train on one worker; returns its seconds and the samples of all workers."""
    import ray
    import ray.train.torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    from benchmarks.train.rivals import PilDigits
    from mnist_ray.learn.model import DigitCNN
    from mnist_ray.learn.optim import Optimizer

    recipe = RECIPES[config["recipe"]]
    model = ray.train.torch.prepare_model(DigitCNN(recipe.layers))
    optimizer = Optimizer(model, recipe)
    digits, size = PilDigits(ray.get(config["digits"])), recipe.global_batch_size // config["workers"]
    loader = ray.train.torch.prepare_data_loader(DataLoader(digits, batch_size=size, shuffle=True))
    started, samples = time.perf_counter(), 0
    for images, labels in chain.from_iterable(repeat(loader)):
        model.zero_grad()
        F.cross_entropy(model(images.squeeze(1)), labels).backward()
        optimizer.step()
        samples += len(labels) * config["workers"]
        if samples >= config["samples"]:
            break
    return {"seconds": time.perf_counter() - started, "samples": samples}


def main() -> None:
    """Run the rival on a local cluster, and print its measurements as JSON."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--recipe", default="fast", choices=sorted(RECIPES))
    parser.add_argument("--samples", type=int, default=30_000)
    given = parser.parse_args()
    ray.init(address="local", log_to_driver=False)
    with tempfile.TemporaryDirectory() as scratch:
        settings = {**vars(given), "digits": ray.put(datasets.load("mnist").train)}
        trainer = TorchTrainer(
            train_loop,  # type: ignore[arg-type]
            train_loop_config=settings,
            scaling_config=ScalingConfig(num_workers=given.workers),
            run_config=RunConfig(storage_path=scratch),
        )
        measured = trainer.fit().return_value  # type: ignore[attr-defined]
    ray.shutdown()
    print(json.dumps([measured]))


if __name__ == "__main__":
    main()
