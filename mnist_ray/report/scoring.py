"""The report of a scoring job: `report.json` with the facts, and `report.html`, the page that is made of them."""

import platform
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

import mnist_ray
from mnist_ray.config import ScoreConfig
from mnist_ray.data import storage
from mnist_ray.data.containers import Reason
from mnist_ray.data.digits import CLASSES
from mnist_ray.data.statistics import drift, wilson_interval
from mnist_ray.data.traits import CONFIDENCE
from mnist_ray.errors import AccountingError
from mnist_ray.report import sources
from mnist_ray.report.charts import SERIES, chart
from mnist_ray.report.page import render
from mnist_ray.scoring.commit import COMMIT, REPORT, REPORT_FACTS
from mnist_ray.scoring.parts import PREDICTIONS, QUARANTINE
from mnist_ray.scoring.verify import verify

VERIFY_UP_TO = 100_000
"""Inputs up to which every row is read again to prove the table. For more, the page has the checks of the commit."""
MOST_ROWS = 2_000_000
"""Rows that are searched for examples. Of larger tables, parts drawn at random are searched; counts are exact in any case."""
MOST_PARTS = 512
LEAST_SURE, TYPICAL, MISTAKES, QUARANTINED = 8, 6, 40, 8
"""Examples: per digit, per digit, in all, and per reason."""
_READERS = 16
_SPEED = ("scored_now", "images_per_second", "steady_images_per_second", "limited_by", "seconds", "slowest")
_EXAMPLE = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("label", pa.uint8()),
        ("confidence", pa.float32()),
        ("truth", pa.uint8()),
        ("draw", pa.float64()),
    ]
)


_DOUBT = ("unlike", "needs_review", "review_below")


def write_report(config: ScoreConfig, summary: dict[str, Any], card: dict[str, Any]) -> None:
    """Write the report of a committed job beside its tables. `card` is the description in the model bundle.

    Raises StorageError, OSError or pa.ArrowException if a table cannot be read.
    """
    facts = collect(config, summary, card)
    storage.write(storage.join(config.out, REPORT), page(facts))
    storage.write_json(storage.join(config.out, REPORT_FACTS), facts)


def collect(config: ScoreConfig, summary: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """The facts of a committed job, as values that JSON can hold."""
    parts = storage.read_json(storage.join(config.out, COMMIT))["parts"]
    searched = _searched(parts)
    examples = _examples(config.out, [unit for unit in searched if parts[unit][0]])
    keys = [(row["source"], row["row"]) for rows in examples.values() for row in rows]
    shown = sources.pictures(dict.fromkeys(keys), config.image_column)
    return {
        "out": storage.to_text(config.out),
        "accounting": _accounting(config.out, summary),
        "accuracy": _accuracy(summary, card),
        "doubt": {**{name: summary[name] for name in _DOUBT}, "target": config.target_error},
        "speed": {name: summary[name] for name in _SPEED},
        "digits": drift(summary["digits"], card.get("reference", {}).get("digits")),
        "traits": summary["drift"],
        "measured_on": card["accuracy"]["measured_on"],
        "searched": {"parts": len(searched), "of_parts": len(parts), "rows": sum(sum(parts[unit]) for unit in searched)},
        "examples": {
            name: [row | shown[row["source"], row["row"]]._asdict() for row in rows] for name, rows in examples.items()
        },
        "quarantine": _quarantine(config.out, [unit for unit in searched if parts[unit][1]], summary["reasons"]),
        "confusion": np.reshape(summary["confusion"], (len(CLASSES), len(CLASSES))).tolist() if summary["confusion"] else None,
        "scored": _scored(config, summary, card),
    }


def _accounting(out: str, summary: dict[str, Any]) -> dict[str, Any]:
    """The counts of the job, and the result of `verify` if it is cheap. The commit has checked the counts already."""
    problem, verified = "", summary["inputs"] <= VERIFY_UP_TO
    if verified:
        try:
            verify(out)
        except AccountingError as error:
            problem = str(error)
    return {
        **{name: summary[name] for name in ("inputs", "predicted", "quarantined")},
        "verified": verified,
        "problem": problem,
    }


def _accuracy(summary: dict[str, Any], card: dict[str, Any]) -> dict[str, Any] | None:
    """The accuracy with its 95 % interval, beside that in the model's card; None if no truth is known."""
    correct, count = summary["correct"], summary["with_truth"]
    if not count:
        return None
    expected = card["accuracy"]
    low, high = wilson_interval(correct, count)
    reference_low, reference_high = expected["interval_95"]
    verdict = "lower" if high < reference_low else "higher" if low > reference_high else "as expected"
    own = {"value": correct / count, "interval_95": [low, high], "correct": correct, "count": count, "truth": summary["truth"]}
    return {**own, "reference": expected, "verdict": verdict}


def _searched(parts: dict[str, list[int]]) -> list[str]:
    """The units whose rows are searched for examples: all, or if they are many, some drawn at random."""
    if len(parts) <= MOST_PARTS and sum(map(sum, parts.values())) <= MOST_ROWS:
        return list(parts)
    units = [list(parts)[position] for position in np.random.default_rng(0).permutation(len(parts))[:MOST_PARTS]]
    before = np.cumsum([0, *(sum(parts[unit]) for unit in units)])[:-1]
    return [unit for unit, rows in zip(units, before, strict=True) if not rows or rows + sum(parts[unit]) <= MOST_ROWS]


def _examples(out: str, units: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows that the page shows: the least sure and some random ones of each digit, and the most confident mistakes."""

    def of_unit(place: int) -> dict[str, pa.Table]:
        random = np.random.default_rng(place)
        found = {name: _EXAMPLE.empty_table() for name in _KINDS}
        for batch in sources.rows(out, PREDICTIONS, units[place], _EXAMPLE.names[:-1]):
            batch = batch.append_column("draw", pa.array(random.random(batch.num_rows))).cast(_EXAMPLE)
            found = {name: choose(pa.concat_tables([found[name], batch])) for name, choose in _KINDS.items()}
        return found

    with ThreadPoolExecutor(1 if storage.is_local(out) else _READERS) as pool:  # threads help against latency only
        found = [{name: _EXAMPLE.empty_table() for name in _KINDS}, *pool.map(of_unit, range(len(units)))]
    chosen = {name: choose(pa.concat_tables([one[name] for one in found])) for name, choose in _KINDS.items()}
    return {name: rows.drop_columns("draw").to_pylist() for name, rows in chosen.items()}


def _first(rows: pa.Table, order: NDArray[Any], group: NDArray[Any], count: int) -> pa.Table:
    """The `count` rows of each group with the smallest values of `order`; sorted by group, then by these values."""
    by = np.lexsort((order, group))
    rank = np.arange(len(by)) - np.searchsorted(group[by], group[by])
    return rows.take(pa.array(by[rank < count]))


def _least_sure(rows: pa.Table) -> pa.Table:
    return _first(rows, rows["confidence"].to_numpy(), rows["label"].to_numpy(), LEAST_SURE)


def _typical(rows: pa.Table) -> pa.Table:
    return _first(rows, rows["draw"].to_numpy(), rows["label"].to_numpy(), TYPICAL)


def _mistakes(rows: pa.Table) -> pa.Table:
    wrong = rows.filter(pc.not_equal(rows["label"], rows["truth"]))  # also without the rows whose truth is unknown
    return wrong.sort_by([("confidence", "descending")]).slice(0, MISTAKES)


_KINDS = {"least_sure": _least_sure, "typical": _typical, "mistakes": _mistakes}


def _quarantine(out: str, units: list[str], reasons: dict[str, int]) -> list[dict[str, Any]]:
    """For each reason the number of inputs and some of them, with pictures of the files that can be decoded now."""

    def of_unit(unit: str) -> pa.Table:
        batches = sources.rows(out, QUARANTINE, unit, ["source", "row", "reason", "detail"])
        return _of_each_reason([_of_each_reason([batch]) for batch in batches])

    with ThreadPoolExecutor(_READERS) as pool:
        rows = _of_each_reason(list(pool.map(of_unit, units))).to_pylist() if units else []
    files = [row["source"] for row in rows if row["row"] is None and row["reason"] != Reason.CRASHED_READER]
    shown = sources.previews(dict.fromkeys(files))
    examples = [{**row, "picture": shown.get(row["source"], sources.Shown()).picture} for row in rows]
    return [
        {"reason": reason, "count": count, "examples": [row for row in examples if row["reason"] == reason]}
        for reason, count in reasons.items()
    ]


def _of_each_reason(tables: list[pa.Table]) -> pa.Table:
    rows = pa.concat_tables(tables)
    codes = rows["reason"].combine_chunks().dictionary_encode().indices.to_numpy()
    return _first(rows, np.arange(len(codes)), codes, QUARANTINED)


def _scored(config: ScoreConfig, summary: dict[str, Any], card: dict[str, Any]) -> list[tuple[str, str]]:
    """What was scored, with which model, settings and versions, as names and values."""
    packages = {"mnist_ray": mnist_ray, "numpy": np, "pyarrow": pa, "opencv": cv2}
    versions = [f"{name} {package.__version__}" for name, package in packages.items()]
    return [
        ("inputs", ", ".join(map(storage.to_text, config.inputs))),
        ("output folder", storage.to_text(config.out)),
        ("model", f"{storage.to_text(config.model)}, digest {summary['model_digest']}"),
        ("model trained with", ", ".join(f"{name} {version}" for name, version in card.get("versions", {}).items())),
        ("scored with", ", ".join([*versions, f"python {platform.python_version()}"])),
        ("settings", ", ".join(f"{name} {value}" for name, value in config.identity().items() if name != "inputs" and value)),
        ("plan", f"{summary['units']:,} units, fingerprint {summary['plan']}"),
        ("command", storage.to_text(_command(config))),
    ]


def _command(config: ScoreConfig) -> str:
    """The command line with these settings."""
    words = ["mnist-ray", "score", *config.inputs]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name != "inputs" and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def page(facts: dict[str, Any]) -> bytes:
    """The page of these facts."""
    tested, trained = "model's test images", "model's training digits"
    charts = {
        name: _bars(name, found, tested if name == CONFIDENCE else trained, [f"{edge:g}" for edge in found["edges"][:-1]])
        for name, found in facts["traits"].items()
    }
    digits = _bars("digits", facts["digits"], tested, list(CLASSES))
    return render("scoring.html", **facts, digits_chart=digits, trait_charts=charts)


def _bars(name: str, drift: dict[str, Any], known_as: str, ticks: list[str]) -> Markup:
    """The shares of two histograms, bar beside bar."""
    series = {"scored": drift["found"], known_as: drift["reference"]}
    with chart(name, f"{name.replace('_', ' ')}, scored and of the {known_as}") as drawing:
        places = np.arange(len(ticks))
        known = {title: np.array(counts) for title, counts in series.items() if counts}
        width = 0.8 / len(known)
        for position, (title, counts) in enumerate(known.items()):
            shares = 100 * counts / max(counts.sum(), 1)
            drawing.axes.bar(
                places + width * (position - (len(known) - 1) / 2), shares, width, label=title, color=SERIES[position]
            )
        drawing.axes.set_xticks(places, ticks, rotation=90 if max(map(len, ticks)) > 4 else 0)
        drawing.axes.set_ylabel("% of images")
        drawing.axes.grid(visible=False, axis="x")
        if len(known) > 1:
            drawing.axes.figure.subplots_adjust(top=0.88)  # room for the legend
            drawing.axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, ncols=2)
    return drawing.svg
