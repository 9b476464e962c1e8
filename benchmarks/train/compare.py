"""Trains this project and its rivals side by side, alternating, and prints ratios with their spread, as a table and JSON.

    python -m benchmarks.train.compare accuracy --seeds 5     seconds to an accuracy, against PyTorch's example and a notebook
    python -m benchmarks.train.compare recipes --seeds 10     accuracy and seconds of each recipe
    python -m benchmarks.train.compare ray --seeds 10         Ray against torchrun: the same loop, two processes
    python -m benchmarks.train.compare scaling --seeds 5      one worker, two workers, and Ray's documented pattern

MNIST_RAY_DATA names the folder with MNIST's four files. Every run is a process of its own; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = dict[str, Any]
MODULE = [sys.executable, "-m"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
PROGRAMMES = {0.9841: ("fast", 0.25), 0.99: ("fast", None), 0.994: ("standard", 2.0), 0.995: ("standard", None)}
"""What of ours is run for an accuracy: a recipe, and epochs other than its own."""


def _call(arguments: list[str], seconds: float = 3600) -> tuple[str, float]:
    """The last line that a process prints, and its seconds from start to end."""
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if "torchrun" in arguments else None
    done = subprocess.run([*MODULE, *arguments], capture_output=True, text=True, check=False, timeout=seconds, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1], time.perf_counter() - began


def contestant(who: str, *flags: str, launcher: list[str] | None = None) -> Run:
    """A run of `contestant.py`: its points, and the seconds of the whole process."""
    line, whole = _call([*(launcher or []), "benchmarks.train.contestant", who, *flags])
    return {**json.loads(line), "whole_seconds": whole}


def job(recipe: str, seed: int, workers: str, *flags: str) -> Run:
    """A run of the command line: its metrics, and the seconds of the whole job."""
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", folder, "--workers", workers]
        _, whole = _call(["mnist_ray", "train", "--data", "mnist", "--recipe", recipe, "--seed", str(seed), *out, *flags])
        metrics = json.loads((Path(folder) / "metrics.json").read_text())
    point = {"seconds": metrics["train_seconds"], "samples": metrics["samples_seen"], "accuracy": metrics["accuracy"]}
    return {"points": [point], "whole_seconds": whole}


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def to_reach(run: Run, accuracy: float, clock: str) -> float:
    """Seconds at the first look that found an accuracy; infinite if none did."""
    return next((point[clock] for point in run["points"] if point["accuracy"] >= accuracy), float("inf"))


def accuracy(seeds: int, _recipe: str) -> Run:
    """Seconds to an accuracy: ours the seconds of a whole run whose mean reaches it, a rival's its first look that does."""
    found: Run = {"ours": {str(target): [] for target in PROGRAMMES}, "example": [], "notebook": []}
    for seed in range(seeds):
        for target, (name, epochs) in PROGRAMMES.items():
            flags = ["--recipe", name, "--seed", str(seed), *(["--epochs", str(epochs)] if epochs else [])]
            found["ours"][str(target)].append(contestant("ours", *flags)["points"][-1])
        found["notebook"].append(contestant("notebook", "--seed", str(seed), "--until", "0.9841"))
        found["example"].append(contestant("example", "--seed", str(seed), "--until", "0.99"))
    for target, points in found["ours"].items():
        print(f"ours to {float(target):.2%}: accuracy {spread([100 * p['accuracy'] for p in points], 3)} %", end="")
        print(f", {spread([p['seconds'] for p in points])} s, quiet {spread([p['quiet_seconds'] for p in points])} s")
    for rival, target in (("example", 0.99), ("notebook", 0.9841)):
        for clock in ("seconds", "quiet_seconds"):
            theirs = [to_reach(run, target, clock) for run in found[rival]]
            ratios = [a / b[clock] for a, b in zip(theirs, found["ours"][str(target)], strict=True)]
            print(f"{rival} to {target:.2%}: {spread(theirs)} {clock}; ratio {spread(ratios, 1)}")
    return found


def recipes(seeds: int, recipe: str) -> Run:
    """Accuracy and seconds of a recipe, in this process and with two workers."""
    found: Run = {}
    for workers in ("0", "2"):
        runs = [job(recipe, seed, workers) for seed in range(seeds)]
        found[workers] = runs
        reached = [100 * run["points"][0]["accuracy"] for run in runs]
        took = [run["points"][0]["seconds"] for run in runs]
        print(f"{recipe}, --workers {workers}: {spread(reached, 3)} %, {spread(took)} s of training")
    return found


def ray(seeds: int, recipe: str) -> Run:
    """The same loop under Ray and under torchrun: samples per second, and seconds of the whole job."""
    found: Run = {"ray": [], "torchrun": []}
    for seed in range(seeds):
        found["ray"].append(job(recipe, seed, "2"))
        flags = ("--recipe", recipe, "--seed", str(seed))
        found["torchrun"].append(contestant("torchrun", *flags, launcher=TORCHRUN))
    rate = {who: [run["points"][-1]["samples"] / run["points"][-1]["seconds"] for run in runs] for who, runs in found.items()}
    ratios = [a / b for a, b in zip(rate["ray"], rate["torchrun"], strict=True)]
    over = [a["whole_seconds"] - b["whole_seconds"] for a, b in zip(found["ray"], found["torchrun"], strict=True)]
    print(f"samples/s: Ray {spread(rate['ray'], 0)}, torchrun {spread(rate['torchrun'], 0)}; ratio {spread(ratios, 3)}")
    print(f"whole job: Ray {spread([run['whole_seconds'] for run in found['ray']], 1)} s, {spread(over, 1)} s over torchrun")
    return found


def scaling(seeds: int, recipe: str) -> Run:
    """Samples per second with one and two workers, and of Ray's documented pattern with two."""
    found: Run = {"1": [], "2": [], "pattern": []}
    for seed in range(seeds):
        for workers in ("1", "2"):
            found[workers].append(job(recipe, seed, workers))
        line, whole = _call(["benchmarks.train.ray_pattern", "--samples", "12000"])
        found["pattern"].append({**json.loads(line), "whole_seconds": whole})
    rate = {who: [run["points"][-1]["samples"] / run["points"][-1]["seconds"] for run in runs] for who, runs in found.items()}
    one, two, pattern = (spread(rate[who], 0) for who in ("1", "2", "pattern"))
    print(f"samples/s: 1 worker {one}, 2 workers {two}; Ray's pattern with 2 {pattern}")
    print(f"2 workers over 1: {spread([b / a for a, b in zip(rate['1'], rate['2'], strict=True)])}")
    return found


def main() -> None:
    """Run a comparison and write what it measured."""
    comparisons: dict[str, Callable[[int, str], Run]] = {
        "accuracy": accuracy,
        "recipes": recipes,
        "ray": ray,
        "scaling": scaling,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=comparisons)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--json", help="file for all measurements")
    given = parser.parse_args()
    found = comparisons[given.comparison](given.seeds, given.recipe)
    import torch

    machine = {"processor": platform.processor(), "cpus": os.cpu_count(), "torch": torch.__version__}
    if given.json:
        Path(given.json).write_text(json.dumps({**vars(given), "machine": machine, "measured": found}, indent=1))


if __name__ == "__main__":
    main()
