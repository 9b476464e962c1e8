"""Trains this project and its rivals in turns, and prints their measurements and ratios, each as mean ± standard deviation.

    python -m benchmarks.train.compare accuracy --seeds 5     seconds to an accuracy: ours, ours in plain PyTorch, rivals
    python -m benchmarks.train.compare recipes --seeds 10     accuracy and seconds of a recipe, without Ray and on two workers
    python -m benchmarks.train.compare ray --seeds 10 --epochs 2   Ray against torchrun: the same job in two processes
    python -m benchmarks.train.compare scaling --seeds 5      one worker, two workers, and the pattern of Ray's documentation

MNIST_RAY_DATA is the folder with MNIST's four files. Every run is a separate process. Run nothing else at the same time.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

Run = dict[str, Any]
Runs = dict[str, list[Run]]
Contestants = Mapping[str, Callable[[str], Run]]
"""For each name, the function that runs a seed."""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
OURS = {
    0.9841: ["fast", "--epochs=0.25"],
    0.99: ["fast"],
    0.994: ["standard", "--epochs=1"],
    0.995: ["standard", "--epochs=1.6"],
}
"""Our and plain's runs for a target mean accuracy: a recipe, shortened if its own length is for a higher accuracy."""
RIVALS = {"example": 0.99, "notebook": 0.9841}
"""Target accuracy of each rival."""
CLOCKS = ("seconds", "quiet_seconds")


def _call(arguments: list[str]) -> tuple[str, float]:
    """The last line that a process prints, and its duration in seconds."""
    began = time.perf_counter()
    threads = {"OMP_NUM_THREADS": "1"} if arguments[0] == TORCHRUN[0] else {}
    command, environment = [sys.executable, "-m", *arguments], {**os.environ, **threads}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1], time.perf_counter() - began


def alone(*arguments: str) -> Run:
    """A run of a program that prints its points: seconds, quiet seconds, samples and accuracy."""
    line, whole = _call([*arguments])
    return {"points": json.loads(line), "whole_seconds": whole, "command": " ".join(arguments)}


def job(*arguments: str) -> Run:
    """A run that writes its metrics to `--out`."""
    with tempfile.TemporaryDirectory() as folder:
        _, whole = _call([*arguments, "--out", folder])
        metrics = json.loads((Path(folder) / "metrics.json").read_text())
    point = {"seconds": metrics["train_seconds"], "samples": metrics["samples_seen"], "accuracy": metrics["accuracy"]}
    return {"points": [point], "whole_seconds": whole}


def train(recipe: list[str], workers: str, seed: str) -> Run:
    """A run of this project's command line."""
    return job("mnist_ray", "train", "--data=mnist", "--recipe", *recipe, "--workers", workers, "--seed", seed)


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation of the finite values, and their number if some are infinite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return f"never (of {len(values)})"
    deviation = statistics.stdev(finite) if len(finite) > 1 else 0.0
    counted = "" if len(finite) == len(values) else f" ({len(finite)} of {len(values)} runs)"
    return f"{statistics.mean(finite):.{digits}f} ± {deviation:.{digits}f}{counted}"


def each(runs: list[Run], name: str) -> list[float]:
    """A value of each run's last point."""
    return [run["points"][-1][name] for run in runs]


def rates(runs: list[Run]) -> list[float]:
    """Samples per second of each run."""
    return [samples / seconds for samples, seconds in zip(each(runs, "samples"), each(runs, "seconds"), strict=True)]


def over(ours: list[float], theirs: list[float], digits: int) -> str:
    """The spread of the ratios of two lists, run by run."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)], digits)


def to_reach(run: Run, accuracy: float, clock: str) -> float:
    """Seconds until a rival first measured this accuracy; infinite if it never did."""
    return float(next((point[clock] for point in run["points"] if point["accuracy"] >= accuracy), math.inf))


def accuracy(_recipe: list[str]) -> Contestants:
    """Our complete runs for each target accuracy, the same in plain PyTorch, and each rival until it measures its target."""
    contestant = partial(alone, "benchmarks.train.contestant")
    complete = {
        f"{who} {target}": lambda seed, who=who, flags=flags: contestant(who, "--seed", seed, "--recipe", *flags)
        for target, flags in OURS.items()
        for who in ("ours", "plain")
    }
    rivals = {
        name: lambda seed, name=name, until=until: contestant(name, "--seed", seed, "--until", str(until))
        for name, until in RIVALS.items()
    }
    return {**complete, **rivals}


def durations(found: Runs, clock: str) -> dict[str, list[float]]:
    """The seconds of each contestant of `accuracy`, run by run: of a whole run, or until a rival first measured its target."""
    return {
        name: [to_reach(run, RIVALS[name], clock) for run in runs] if name in RIVALS else each(runs, clock)
        for name, runs in found.items()
    }


def factors(found: Runs, clock: str) -> dict[str, list[float]]:
    """The ratios of seconds, run by run: of plain to ours, which the code gains, and of each rival to plain and to ours.

    A rival's to ours is the product of its ratio to plain, which the recipe gains, and of what the code gains.
    """
    took = durations(found, clock)
    pairs = [(f"plain {target}", f"ours {target}") for target in OURS]
    pairs += [(rival, f"{who} {target}") for rival, target in RIVALS.items() for who in ("plain", "ours")]
    # While the turns go on, some contestants have run once more than others.
    return {f"{a} / {b}": [x / y for x, y in zip(took[a], took[b], strict=False)] for a, b in pairs}


def report_accuracy(found: Runs) -> None:
    """Print what each contestant trained, its accuracy and its seconds, and then the ratios of the seconds."""
    for name, runs in found.items():
        reached, samples = spread([100 * share for share in each(runs, "accuracy")], 3), spread(each(runs, "samples"), 0)
        clocks = [spread(durations(found, clock)[name]) for clock in CLOCKS]
        print(f"{name}: {reached} % after {samples} samples, {' s, quiet '.join(clocks)} s ({runs[0]['command']})")
    for target in OURS:
        for name in (f"ours {target}", f"plain {target}"):
            if statistics.mean(each(found[name], "accuracy")) < target:
                print(f"{name}: MEAN BELOW TARGET")
    ratios, quiet = (factors(found, clock) for clock in CLOCKS)
    for name, values in ratios.items():
        print(f"{name}: {spread(values)}, quiet {spread(quiet[name])}")


def recipes(recipe: list[str]) -> Contestants:
    """A recipe in one process and on two Ray workers."""
    return {workers: partial(train, recipe, workers) for workers in ("0", "2")}


def report_recipes(found: Runs) -> None:
    """Print accuracy, seconds of training, and seconds of the whole job."""
    for workers, runs in found.items():
        reached, took = spread([100 * a for a in each(runs, "accuracy")], 3), spread(each(runs, "seconds"))
        whole = spread([run["whole_seconds"] for run in runs], 1)
        print(f"--workers {workers}: {reached} %, {took} s of training, {whole} s in all")


def ray(recipe: list[str]) -> Contestants:
    """The same job, with checkpoints and bundle, under Ray and under torchrun, there without progress and owner records."""
    return {
        "ray": partial(train, recipe, "2"),
        "torchrun": lambda seed: job(*TORCHRUN, "benchmarks.train.torchrun", "--recipe", *recipe, "--seed", seed),
    }


def report_ray(found: Runs) -> None:
    """Print samples per second and seconds of the whole job for both."""
    rate = {name: rates(runs) for name, runs in found.items()}
    whole = {name: [run["whole_seconds"] for run in runs] for name, runs in found.items()}
    extra = [a - b for a, b in zip(whole["ray"], whole["torchrun"], strict=True)]
    print(f"samples/s: {', '.join(f'{name} {spread(values, 0)}' for name, values in rate.items())}", end="")
    print(f"; ratio {over(rate['ray'], rate['torchrun'], 3)}")
    print(f"whole job: {', '.join(f'{name} {spread(values, 1)} s' for name, values in whole.items())}", end="")
    print(f"; Ray over torchrun {spread(extra, 1)} s")


def scaling(recipe: list[str]) -> Contestants:
    """One worker, two workers, and the same network and optimizer on two workers in the pattern of Ray's documentation."""
    return {
        "1 worker": partial(train, recipe, "1"),
        "2 workers": partial(train, recipe, "2"),
        "Ray's pattern, 2 workers": lambda seed: alone("benchmarks.train.ray_pattern", "--recipe", recipe[0]),
    }


def report_scaling(found: Runs) -> None:
    """Print samples per second of each, and their ratios."""
    one, two, pattern = (rates(runs) for runs in found.values())
    for name, values in zip(found, (one, two, pattern), strict=True):
        print(f"{name}: {spread(values, 0)} samples/s")
    print(f"2 workers over 1: {over(two, one, 2)}; over Ray's pattern: {over(two, pattern, 2)}")


COMPARISONS: dict[str, tuple[Callable[[list[str]], Contestants], Callable[[Runs], None]]] = {
    "accuracy": (accuracy, report_accuracy),
    "recipes": (recipes, report_recipes),
    "ray": (ray, report_ray),
    "scaling": (scaling, report_scaling),
}


def machine() -> Run:
    """The machine and the versions that the measurements belong to."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": processor, "cpus": os.cpu_count(), **{name: version(name) for name in ("torch", "ray")}}


def main() -> None:
    """Run a comparison, and write all measurements after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", help="instead of the recipe's: a steady rate needs more than the shortest recipe has")
    parser.add_argument("--json", help="file to write all measurements to")
    given = parser.parse_args()
    contestants, report = COMPARISONS[given.comparison]
    entrants = contestants([given.recipe, *(["--epochs", given.epochs] if given.epochs else [])])
    found: Runs = {name: [] for name in entrants}
    for seed in range(given.seeds):
        for name in list(entrants)[:: -1 if seed % 2 else 1]:
            found[name].append(entrants[name](str(seed)))
            print(f"seed {seed} {name}: {found[name][-1]['points'][-1]}", file=sys.stderr, flush=True)
            if given.json:
                ratios = {clock: factors(found, clock) for clock in CLOCKS} if given.comparison == "accuracy" else {}
                measured = {**vars(given), "machine": machine(), "ratios": ratios, "measured": found}
                Path(given.json).write_text(json.dumps(measured, indent=1))
    print(machine())
    report(found)


if __name__ == "__main__":
    main()
