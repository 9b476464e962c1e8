"""Runs one contestant once, and prints its points as JSON.

python -m benchmarks.train.contestant ours --recipe fast --seed 0
python -m benchmarks.train.contestant plain --recipe fast --seed 0
python -m benchmarks.train.contestant example --until 0.99
"""

import argparse
import json
import time
from dataclasses import replace

import torch

from benchmarks.train import plain, rivals
from mnist_ray.config import TrainConfig
from mnist_ray.data import datasets
from mnist_ray.data.digits import Splits
from mnist_ray.learn.control import RunControl
from mnist_ray.learn.history import HistoryWriter
from mnist_ray.learn.loop import Loop
from mnist_ray.learn.step import DeviceDigits, evaluate


class NoHistory(HistoryWriter):
    """Writes no history."""

    def write(self, rows: list[dict[str, float]], patience_s: float | None = None) -> None:
        pass


class TimedLoop(Loop):
    """Our loop: keeps the seconds of each step, and writes no files."""

    def __init__(self, config: TrainConfig, splits: Splits) -> None:
        super().__init__("memory://contestant", config, splits, torch.device("cpu"), RunControl())
        self.history, self.times = NoHistory(""), list[float]()

    def _timed_step(self) -> None:
        before = self.state.train_seconds
        super()._timed_step()
        self.times.append(self.state.train_seconds - before)

    def _save_checkpoint(self) -> None:
        pass


def ours(config: TrainConfig, splits: Splits) -> rivals.Point:
    """Train in this process. A run measures the test digits after each epoch; here it measures only 100 of them."""
    few = replace(splits, test=splits.test.take(slice(0, 100)))  # type: ignore[arg-type]
    trainer = TimedLoop(config, few)
    began = time.perf_counter()
    trainer.run()
    after = time.perf_counter() - began - sum(trainer.times)  # the batch statistics for evaluation
    tested = evaluate(trainer.state.model, DeviceDigits.put(splits.test, torch.device("cpu"))).reduced()
    return rivals.point(trainer.times, trainer.state.samples_seen, tested.accuracy, after)


def main() -> None:
    """Run the contestant that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=["ours", "plain", *rivals.NAMES])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, default=1.0)
    parser.add_argument("--max-epochs", type=int, default=14)
    given = parser.parse_args()
    splits, points = datasets.load("mnist"), []
    config = TrainConfig(data="mnist", workers="0", recipe=given.recipe, epochs=given.epochs, seed=given.seed)
    if given.who == "ours":
        points.append(ours(config, splits))
    elif given.who == "plain":
        points.append(plain.train(config.settings(), splits, given.seed))
    else:
        for reached in rivals.curve(given.who, splits.train, splits.test, given.seed, given.max_epochs):
            points.append(reached)
            if reached["accuracy"] >= given.until:
                break
    print(json.dumps(points))


if __name__ == "__main__":
    main()
