"""The page that compares training runs side by side, drawn from their `report.json`."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from mnist_ray.config import ReportConfig
from mnist_ray.data import storage
from mnist_ray.errors import UsageError
from mnist_ray.flags import output_path
from mnist_ray.report.page import render
from mnist_ray.report.training import PAGE, curves, draw, plain, read

LETTERS = "ABCDEFGHIJKL"
"""The names of the runs on the page, and so the largest number of runs."""


def report(config: ReportConfig) -> str:
    """Draw the page of one run, or the comparison of several, and return where it is. Raises MnistRayError."""
    runs = [storage.absolute(run) for run in config.runs]
    if len(runs) > len(LETTERS):
        raise UsageError(f"{len(runs)} runs: a comparison shows at most {len(LETTERS)}")
    found = [read(run) for run in runs]
    if len(runs) == 1:
        place, page = config.out or storage.join(runs[0], PAGE), draw(found[0])
    else:
        place, page = config.out or "comparison.html", compare(found)
    storage.write(output_path(place), page)
    return output_path(place)


def compare(runs: Sequence[dict[str, Any]]) -> bytes:
    """The page that compares the facts of two or more runs, as UTF-8."""
    named = dict(zip(LETTERS, runs, strict=False))
    highest = max(facts["metrics"]["accuracy"] for facts in runs)
    charts = {}
    for x in ("samples_seen", "train_seconds"):
        for y in ("loss", "accuracy"):
            series = {name: (facts["history"], f"test_{y}") for name, facts in named.items()}
            charts[f"{y}_{x}"] = curves(f"{y}-{x}", x, f"test {y}", series)
    return render(
        "comparison.html",
        runs=named,
        charts=charts,
        best=[name for name, facts in named.items() if facts["metrics"]["accuracy"] == highest],
        same_images=len({facts["data"]["test_sha256"] for facts in runs}) == 1,
        overlapping=[pair for pair in combinations(named, 2) if _overlap(*(named[name]["metrics"] for name in pair))],
        differences=_differences(runs),
        plain=plain,
    )


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the 95 % intervals of two accuracies overlap."""
    return bool(one["interval_95"][0] <= other["interval_95"][1] and other["interval_95"][0] <= one["interval_95"][1])


def _differences(runs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The settings, data, machines and versions in which the runs differ: the value of each run as text."""
    rows: dict[str, list[str]] = {}
    for part in ("settings", "data", "machine", "versions"):
        for name in dict.fromkeys(name for facts in runs for name in facts[part]):
            rows[name if part == "settings" else f"{part}: {name}"] = [plain(facts[part].get(name)) for facts in runs]
    for name in ("workers", "device", "precision"):
        rows[name] = [plain(facts["metrics"][name]) for facts in runs]
    return {name: values for name, values in rows.items() if len(set(values)) > 1}
