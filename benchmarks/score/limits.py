"""Physical limits on this machine: the network alone, and reading and decoding alone, on as many threads as there are cores.

python -m benchmarks.score.limits FOLDER MODEL
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from mnist_ray.artifact.bundle import load
from mnist_ray.artifact.predictor import Predictor
from mnist_ray.data.bulk import read_many
from mnist_ray.data.containers import MAX_BYTES
from mnist_ray.data.images import decode, normalise

IMAGES, SECONDS = 4096, 5.0


def rate(work: Callable[[], object]) -> float:
    """Images per second of work on `IMAGES` images, done again and again by a thread per core."""
    work()
    until = time.perf_counter() + SECONDS

    def again() -> float:
        began, done = time.perf_counter(), 0
        while time.perf_counter() < until:
            work()
            done += IMAGES
        return done / (time.perf_counter() - began)

    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: again(), range(threads)))


def main() -> None:
    """Print the limits as JSON."""
    folder, model = sys.argv[1:]
    torch.set_num_threads(1)
    predict = Predictor.ready(load(model), torch.device("cpu"))
    paths = [str(path) for path in Path(folder).rglob("*.png")][:IMAGES]
    contents = [path.read_bytes() for path in map(Path, paths)]
    digits, _ = normalise(map(decode, contents))
    found = {
        "network": rate(lambda: predict(np.ascontiguousarray(digits))),
        "read": rate(lambda: list(read_many(paths, MAX_BYTES))),
        "decode": rate(lambda: normalise(map(decode, contents))),
    }
    print(json.dumps({name: round(value) for name, value in found.items()}))


if __name__ == "__main__":
    main()
