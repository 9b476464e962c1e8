"""Scores the same digits with this project and its rivals, alternating, and prints ratios with their spread.

    python -m benchmarks.score.compare FOLDER MODEL --runs 5 --only ours-inline,ours-2,tuned

FOLDER has one subfolder of PNG files per class, as `jobs/write_digits.py` writes them; MODEL is a run or bundle. Every run is
a process of its own, with a new output folder. Memory is the largest summed proportional set size of its processes.
"""

from __future__ import annotations

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
LOOK_S = 0.25
OURS = {"ours-inline": "0", "ours-1": "1", "ours-2": "2"}
"""Our contestants, by their --workers."""
OTHERS = ("tuned", "dataloader", "ray_images", "ray_binary", "ray_download", "daft")


def _memory(token: str) -> float:
    """Proportional set size in MB of all processes that inherited a token in their environment."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            if token.encode() in (process / "environ").read_bytes():
                total += int((process / "smaps_rollup").read_text().split("Pss:")[1].split()[0])
    return total / 1024


def run(name: str, folder: str, model: str) -> Run:
    """One run of a contestant: seconds of the process, steady images per second, megabytes."""
    token, peak, over = uuid.uuid4().hex, 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(LOOK_S):
            peak = max(peak, _memory(token))

    with tempfile.TemporaryDirectory() as scratch:
        out = f"{scratch}/out"
        ours = ["mnist_ray", "score", folder, "--model", model, "--out", out, "--workers", OURS.get(name, "")]
        command = ours if name in OURS else ["benchmarks.score.rivals", name, folder, model, out]
        watching = threading.Thread(target=watch)
        watching.start()
        began = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-m", *command], capture_output=True, text=True, env={**os.environ, "BENCHMARK_RUN": token}
            )
        finally:
            over.set()
            watching.join()
        if done.returncode:
            raise SystemExit(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
        seconds = time.perf_counter() - began
        if name not in OURS:
            return {"seconds": seconds, "steady": steady_rate(f"{out}.marks"), "megabytes": peak}
        summary: dict[str, Any] = json.loads(Path(f"{out}/summary.json").read_text())
        return {"seconds": seconds, "steady": summary["steady_images_per_second"], "megabytes": peak, **summary["seconds"]}


def report(found: dict[str, list[Run]], images: int) -> None:
    """A line for each contestant, and how many times as fast our fastest is, run by run."""
    best = max((name for name in found if name in OURS), key=lambda name: statistics.mean(r["steady"] for r in found[name]))
    for name, runs in found.items():
        steady = [r["steady"] for r in runs]
        ratios = [ours["steady"] / theirs for ours, theirs in zip(found[best], steady, strict=True)]
        whole = spread([images / r["seconds"] for r in runs], 0)
        print(
            f"{name:14s} {spread([r['seconds'] for r in runs], 1)} s, {whole} images/s in all, {spread(steady, 0)} steady, "
            f"{spread([r['megabytes'] for r in runs], 0)} MB; {best} is {spread(ratios, 2)} times as fast"
        )


def main() -> None:
    """Run the contestants in turn, in reversed order every other time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join([*OURS, *OTHERS]))
    parser.add_argument("--json", help="file for all measurements")
    given = parser.parse_args()
    images = sum(1 for _ in Path(given.folder).rglob("*.png"))
    names = given.only.split(",")
    found: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(given.runs):
        for name in names[:: -1 if number % 2 else 1]:
            found[name].append(run(name, given.folder, given.model))
            print(f"run {number} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
            if given.json:
                Path(given.json).write_text(json.dumps({**vars(given), "machine": machine(), "measured": found}, indent=1))
    print(machine())
    report(found, images)


if __name__ == "__main__":
    main()
