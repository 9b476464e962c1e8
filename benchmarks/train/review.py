"""Whether calibration and `--target-error` keep what they promise, on digits that they were not measured on.

For each seed, a network is trained on MNIST's training images. Confidence is measured on a random half of the test images, and
checked on the other half: python -m benchmarks.train.review --seeds 10
"""

import argparse
import tempfile

import numpy as np
import torch

from mnist_ray.artifact.bundle import make_bundle
from mnist_ray.artifact.confidence import Confidence
from mnist_ray.artifact.predictor import Predictor
from mnist_ray.config import TrainConfig
from mnist_ray.data.datasets import load
from mnist_ray.data.measures import calibration, mistakes, review_below
from mnist_ray.learn.control import RunControl
from mnist_ray.learn.loop import Loop

TARGETS = (0.01, 0.003, 0.001)
CPU = torch.device("cpu")


def main() -> None:
    """Train, measure and print."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--data", default="mnist")
    flags.add_argument("--recipe", default="fast")
    flags.add_argument("--seeds", type=int, default=10)
    args = flags.parse_args()
    splits = load(args.data)
    errors: dict[float, list[tuple[float, float]]] = {target: [] for target in TARGETS}
    print("seed  accuracy  temperature  calibration error before, after", *(f" | {t:.1%}: wrong, reviewed" for t in TARGETS))
    for seed in range(args.seeds):
        config = TrainConfig(data=args.data, recipe=args.recipe, workers="0", seed=seed)
        with tempfile.TemporaryDirectory() as run:
            loop = Loop(run, config, splits, CPU, RunControl())
            loop.run()
        learned = torch.tensor(splits.train.images[:2048])
        predictor = Predictor.ready(make_bundle(loop.state.model, {}, learned[:20], learned), CPU)
        outputs = predictor.outputs(torch.tensor(splits.test.images))
        order = np.random.default_rng(seed).permutation(len(splits.test))
        half, other = order[: len(order) // 2], order[len(order) // 2 :]
        confidence = Confidence.measured(outputs[0][half], outputs[1][half], splits.test.labels[half])
        found = confidence.predictions(*outputs)
        right = found.labels == splits.test.labels
        plain = torch.softmax(outputs[0], 1).amax(1).numpy()
        before, after = (calibration(values[other], right[other])["expected_error"] for values in (plain, found.confidence))
        words = [f"{seed:4d}  {right.mean():.4f}  {confidence.temperature:.3f}  {before:.4f}  {after:.4f}"]
        for target in TARGETS:
            threshold = review_below(mistakes(found.confidence[half], right[half]), len(half), target)
            accepted = found.confidence[other] > (2.0 if threshold is None else threshold)
            errors[target].append(
                (float((~right[other][accepted]).mean()) if accepted.any() else 0.0, 1 - float(accepted.mean()))
            )
            words.append("{:.3%} {:.1%}".format(*errors[target][-1]))
        print("  | ".join(words), flush=True)
    for target, rows in errors.items():
        wrong, reviewed = np.array(rows).T
        print(
            f"{target:.1%}: wrong {wrong.mean():.3%} on average, kept {(wrong <= target).sum()} of {len(rows)} times, "
            f"reviewed {reviewed.mean():.1%}"
        )


if __name__ == "__main__":
    main()
