"""Rival (d): MNIST as Ray Train's documentation does it: `prepare_data_loader`, DataLoader, torchvision's transforms.

python -m benchmarks.train.ray_pattern --workers 2 --epochs 1
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

from mnist_ray.data import datasets


def train_loop(config: dict[str, Any]) -> dict[str, float]:
    """One worker: the rival's network of (a) under DDP."""
    import ray
    import ray.train.torch
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    from benchmarks.train.rivals import ExampleNet, PilDigits

    model = ray.train.torch.prepare_model(ExampleNet())
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    loader = ray.train.torch.prepare_data_loader(DataLoader(PilDigits(ray.get(config["digits"])), batch_size=64, shuffle=True))
    started, samples = time.perf_counter(), 0
    for epoch in range(config["epochs"]):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            samples += len(labels) * config["workers"]
            if samples >= config["samples"]:
                break
    seconds = time.perf_counter() - started
    ray.train.report({"samples": samples})
    return {"seconds": seconds, "samples": samples}


def main() -> None:
    """Run it on a local cluster and print its measurements as JSON."""
    began = time.perf_counter()
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--samples", type=int, default=60_000)
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
    print(json.dumps({"points": [measured], "process_seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
