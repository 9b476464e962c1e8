"""The limits of this machine: images per second of the network alone, of reading alone, and of decoding alone.

    python -m benchmarks.score.limits FOLDER MODEL

Each limit is measured with one thread per core. FOLDER holds PNG files; MODEL is a run directory or bundle.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from mnist_ray.artifact.bundle import load
from mnist_ray.artifact.predictor import Predictor
from mnist_ray.data.bulk import read_many
from mnist_ray.data.containers import MAX_BYTES
from mnist_ray.data.images import decode, normalise

IMAGES, SECONDS = 4096, 5.0


def rate(work: Callable[[], object]) -> float:
    """Images per second when one thread per core repeats `work`, which processes `IMAGES` images, for `SECONDS`."""
    work()  # warm up
    until = time.perf_counter() + SECONDS

    def repeat() -> float:
        started, images = time.perf_counter(), 0
        while time.perf_counter() < until:
            work()
            images += IMAGES
        return images / (time.perf_counter() - started)

    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: repeat(), range(threads)))


def main() -> None:
    """Print the limits as JSON."""
    folder, model = sys.argv[1:]
    torch.set_num_threads(1)
    predict = Predictor.ready(load(model), torch.device("cpu"))
    paths = [str(path) for path in Path(folder).rglob("*.png")][:IMAGES]
    contents = [Path(path).read_bytes() for path in paths]
    digits, _ = normalise(map(decode, contents))
    limits = {
        "network": rate(lambda: predict(digits)),
        "read": rate(lambda: list(read_many(paths, MAX_BYTES))),
        "decode": rate(lambda: normalise(map(decode, contents))),
    }
    print(json.dumps({name: round(value) for name, value in limits.items()}))


if __name__ == "__main__":
    main()
