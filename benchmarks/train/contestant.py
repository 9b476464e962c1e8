"""One run of one contestant in a process of its own; prints its points as JSON.

python -m benchmarks.train.contestant ours --recipe fast --epochs 0.6 --seed 0
python -m benchmarks.train.contestant example --until 0.99
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch

from benchmarks.train import rivals
from mnist_ray.config import TrainConfig
from mnist_ray.data import datasets
from mnist_ray.data.digits import Splits
from mnist_ray.learn import loop, state
from mnist_ray.learn.step import DeviceDigits, evaluate


class TimedLoop(loop.Loop):
    """Our loop, with the time of each step kept."""

    times: list[float]

    def _timed_step(self) -> None:
        before = self.state.train_seconds
        super()._timed_step()
        self.times.append(self.state.train_seconds - before)


def ours(config: TrainConfig, splits: Splits) -> rivals.Point:
    """Train in this process, without the looks at the test digits that a run takes after each epoch."""
    nothing = lambda *_: None  # noqa: E731
    hooks = loop.Hooks(nothing, lambda: loop.Request.NOTHING, nothing, nothing, lambda: False)
    device = torch.device("cpu")
    training = state.make_state(config, len(splits.train), device)
    few = replace(splits, test=splits.test.take(slice(0, 100)))  # type: ignore[arg-type]
    trainer = TimedLoop(config, few, training, device, hooks)
    trainer.times = []
    began = time.perf_counter()
    trainer.run()
    after = time.perf_counter() - began - sum(trainer.times)  # the batch statistics for evaluation
    tested = evaluate(training.model, DeviceDigits.put(splits.test, device)).reduced()
    return rivals.point(trainer.times, training.samples_seen, tested.accuracy, after)


def main() -> None:
    """Run the contestant that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=["ours", *rivals.NAMES])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, default=1.0)
    parser.add_argument("--max-epochs", type=int, default=14)
    given = parser.parse_args()
    splits, points = datasets.load("mnist"), []
    if given.who == "ours":
        config = TrainConfig(data="mnist", workers="0", recipe=given.recipe, epochs=given.epochs, seed=given.seed)
        points.append(ours(config, splits))
    else:
        for reached in rivals.curve(given.who, splits.train, splits.test, given.seed, given.max_epochs):
            points.append(reached)
            if reached["accuracy"] >= given.until:
                break
    print(json.dumps(points))


if __name__ == "__main__":
    main()
