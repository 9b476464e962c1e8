"""Where the seconds of a job go: from each step that it names to the next one.

    python -m benchmarks.phases --runs 3 -- train --data mnist --recipe fast --workers 2
    python -m benchmarks.phases --runs 3 --code . ../before -- score digits --model runs/digits --workers 2

The job runs as a process with `--log-format json`, and a new folder as `--out`. `--code` names the folders of several versions
of this project, which take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import datetime
from itertools import pairwise
from statistics import mean, stdev

Phases = dict[str, float]


def run(code: str, command: list[str]) -> Phases:
    """The seconds of each step of a job, in order, and of the whole job."""
    environ = {**os.environ, "PYTHONPATH": code}
    with tempfile.TemporaryDirectory() as folder:
        args = [sys.executable, "-P", "-m", "mnist_ray", *command, "--out", f"{folder}/out", "--log-format", "json"]
        began = time.time()
        done = subprocess.run(args, env=environ, stdout=subprocess.PIPE, text=True, check=True)
        ended = time.time()
    marks: list[tuple[str, float]] = [("Python starts", began)]
    for line in done.stdout.splitlines():
        row = json.loads(line)
        name = row.get("step", row["event"] if row["event"] == "result" else "")
        if name and name not in dict(marks):
            marks.append((name, datetime.fromisoformat(row["time"]).timestamp()))
    marks.append(("whole job", ended))
    phases = {name: after - at for (name, at), (_, after) in pairwise(marks)}
    return {**phases, "whole job": ended - began}


def main() -> None:
    """Run the jobs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--code", nargs="+", default=["."])
    parser.add_argument("command", nargs="+", help="the command and its flags, after --")
    args = parser.parse_args()
    found: dict[str, list[Phases]] = defaultdict(list)
    for number in range(args.runs):
        for code in args.code[:: 1 if number % 2 == 0 else -1]:
            found[code].append(run(os.path.abspath(code), args.command))
    names = list(dict.fromkeys(name for runs in found.values() for one in runs for name in one))
    names.append(names.pop(names.index("whole job")))
    print(f"{'seconds':24}" + "".join(f"{code[-16:]:>18}" for code in args.code))
    for name in names:
        columns = [[one.get(name, 0.0) for one in found[code]] for code in args.code]
        print(f"{name:24}" + "".join(f"{mean(values):11.2f} ± {_spread(values):4.2f}" for values in columns))


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
