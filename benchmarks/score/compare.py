"""Scores the same digits with this project and with other programs, alternating, and prints ratios with their spread.

    python -m benchmarks.score.compare FOLDER MODEL --runs 5 --only ours-0,ours-2,tuned

FOLDER has one subfolder of PNG files per digit, as `jobs/write_digits.py` writes them. MODEL is a run directory or bundle.
Every run is a process of its own with a new output folder. With --memory, the highest sum of the proportional set sizes of all
its processes is measured, too. That slows programs with several processes down, so measure seconds without it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.score.marks import steady_rate
from benchmarks.train.compare import machine, spread

Run = dict[str, float]
MEMORY_EVERY_S = 0.25
"""Seconds between two measurements of memory."""
OURS = {"ours-0": "0", "ours-1": "1", "ours-2": "2"}
"""Contestants of this project, with their --workers."""
RIVALS = ("tuned", "dataloader", "ray_images", "ray_binary", "ray_download", "daft")


def _memory(token: str) -> float:
    """Sum of the proportional set sizes in MiB of all processes that have `token` in their environment."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            if token.encode() in (process / "environ").read_bytes():
                total += int((process / "smaps_rollup").read_text().split("Pss:")[1].split()[0])
    return total / 1024


def run(name: str, folder: str, model: str, memory: bool) -> Run:
    """One run of a contestant: seconds of the process, steady images per second, and peak memory in MiB if it is asked for."""
    token, peak, finished = uuid.uuid4().hex, 0.0, threading.Event()

    def watch_memory() -> None:
        nonlocal peak
        while memory and not finished.wait(MEMORY_EVERY_S):
            peak = max(peak, _memory(token))

    with tempfile.TemporaryDirectory() as scratch:
        out = f"{scratch}/out"
        if name in OURS:
            command = ["mnist_ray", "score", folder, "--model", model, "--out", out, "--workers", OURS[name]]
        else:
            command = ["benchmarks.score.rivals", name, folder, model, out]
        watcher = threading.Thread(target=watch_memory)
        watcher.start()
        started = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-m", *command], capture_output=True, text=True, env={**os.environ, "BENCHMARK_RUN": token}
            )
        finally:
            finished.set()
            watcher.join()
        if done.returncode:
            raise SystemExit(f"{name}: exit status {done.returncode}\n{done.stderr[-2000:]}")
        seconds = time.perf_counter() - started
        if name not in OURS:
            return {"seconds": seconds, "steady": steady_rate(f"{out}.marks"), "megabytes": peak}
        summary: dict[str, Any] = json.loads(Path(f"{out}/summary.json").read_text())
        return {"seconds": seconds, "steady": summary["steady_images_per_second"], "megabytes": peak, **summary["seconds"]}


def report(measured: dict[str, list[Run]], images: int) -> None:
    """Print one line per contestant, with the ratio of our fastest contestant to it, run by run."""
    ours = [name for name in measured if name in OURS]
    best = max(ours, key=lambda name: statistics.mean(run["steady"] for run in measured[name]))
    for name, runs in measured.items():
        steady = [run["steady"] for run in runs]
        ratios = [fastest["steady"] / rate for fastest, rate in zip(measured[best], steady, strict=True)]
        whole = spread([images / run["seconds"] for run in runs], 0)
        print(
            f"{name:14s} {spread([run['seconds'] for run in runs], 1)} s, {whole} images/s in all, {spread(steady, 0)} steady, "
            f"{spread([run['megabytes'] for run in runs], 0)} MiB; {best} is {spread(ratios, 2)} times as fast"
        )


def main() -> None:
    """Run the contestants in turn, every other time in reversed order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join([*OURS, *RIVALS]), help="contestants, separated by commas")
    parser.add_argument("--memory", action="store_true", help="measure the memory; the seconds are then too many")
    parser.add_argument("--json", help="file for all measurements")
    args = parser.parse_args()
    images = sum(1 for _ in Path(args.folder).rglob("*.png"))
    names = args.only.split(",")
    measured: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(args.runs):
        for name in names[:: -1 if number % 2 else 1]:
            measured[name].append(run(name, args.folder, args.model, args.memory))
            print(f"run {number} {name}: {measured[name][-1]}", file=sys.stderr, flush=True)
            if args.json:
                Path(args.json).write_text(json.dumps({**vars(args), "machine": machine(), "measured": measured}, indent=1))
    print(machine())
    report(measured, images)


if __name__ == "__main__":
    main()
