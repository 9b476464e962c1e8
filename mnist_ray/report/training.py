"""The page of a training run, `report.html`, drawn from the facts in `report.json` alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mnist_ray.data import storage
from mnist_ray.data.statistics import wilson_interval
from mnist_ray.errors import DataError
from mnist_ray.report.charts import COLOURS, SERIES, chart
from mnist_ray.report.facts import FORMAT, MOST_CONFIDENT
from mnist_ray.report.page import render, short_name

FACTS, PAGE = "report.json", "report.html"
OPEN_MISTAKES = 100
"""If a page shows more mistakes than this, those of a cell are shown only when the reader opens the cell."""
MARKS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", ":")


def write(run: str, facts: dict[str, Any]) -> None:
    """Write `report.json` and then `report.html` to a run directory. Raises StorageError."""
    storage.write_json(storage.join(run, FACTS), facts)
    storage.write(storage.join(run, PAGE), draw(facts))


def read(run: str) -> dict[str, Any]:
    """The facts in the `report.json` of a run directory. Raises DataError if it is missing or damaged, and StorageError."""
    file = storage.join(run, FACTS)
    try:
        facts = storage.read_json(file)
    except FileNotFoundError:
        if not storage.is_folder(run):
            raise DataError(f"{run}: has no {FACTS}: there is no such folder; expected a run directory") from None
        if storage.is_file(storage.join(run, "plan.json")):
            raise DataError(
                f"{run}: holds a prediction table; expected a training run. `score --resume` writes the report of a table"
            ) from None
        raise DataError(
            f"{run}: has no {FACTS}, which training writes at its end; delete its metrics.json if it has one, then run its "
            "training command again, which continues from the newest checkpoint and writes the report"
        ) from None
    except ValueError:
        facts = None
    if isinstance(facts, dict) and "accounting" in facts:
        raise DataError(f"{run}: holds a prediction table, whose report is {storage.join(run, PAGE)}; expected a training run")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DataError(
            f"{file}: is damaged, or of another version of mnist_ray; expected format {FORMAT}. Delete the run's metrics.json, "
            "then run its training command again, which writes the report"
        )
    return facts


def draw(facts: dict[str, Any]) -> bytes:
    """The page of a run's facts, as UTF-8."""
    history = facts["history"]
    loss = {"training": "train_loss", "test": "test_loss"}
    accuracy = {"training": "train_accuracy", "test": "test_accuracy"}
    if "validation_accuracy" in history[-1]:
        accuracy["validation"] = "validation_accuracy"
    charts = {}
    for x in ("samples_seen", "train_seconds"):
        charts[f"loss_{x}"] = curves(f"loss-{x}", x, "loss", {name: (history, y) for name, y in loss.items()})
        charts[f"accuracy_{x}"] = curves(f"accuracy-{x}", x, "accuracy", {name: (history, y) for name, y in accuracy.items()})
    charts["rate"] = curves("rate", "samples_seen", "learning rate", {"": (facts["schedule"], "lr")})
    charts["speed"] = curves("speed", "samples_seen", "samples per second", {"": (history, "samples_per_second")})
    charts["reliability"] = _reliability(facts["calibration"]["bins"])
    charts["selection"] = _selection(facts["selection"]["curve"])
    return render(
        "training.html",
        facts=facts,
        name=short_name(facts["run"]),
        charts=charts,
        matrix=_matrix(facts["metrics"]["confusion"]),
        cells=_cells(facts),
        settings={name: plain(value) for name, value in facts["settings"].items()},
        num_most_confident=MOST_CONFIDENT,
        num_open=OPEN_MISTAKES,
        plain=plain,
    )


_X_NAMES = {"samples_seen": "training samples", "train_seconds": "seconds of training"}


def curves(name: str, x: str, y: str, series: dict[str, tuple[Sequence[dict[str, Any]], str]]) -> Markup:
    """A chart of several series over `samples_seen` or `train_seconds`.

    `series` gives for each label the rows and the name of the value on the y-axis. Series differ in colour, mark and line.
    """
    ends = [f"{label or y} from {rows[0][key]:.4g} to {rows[-1][key]:.4g}" for label, (rows, key) in series.items()]
    with chart(name, f"{y} over {_X_NAMES[x]}: {', '.join(ends)}") as drawing:
        axes = drawing.axes
        for i, (label, (rows, key)) in enumerate(series.items()):
            style: Any = {"color": SERIES[i % len(SERIES)], "marker": MARKS[i % len(MARKS)], "linestyle": LINES[i % len(LINES)]}
            axes.plot([row[x] for row in rows], [row[key] for row in rows], label=label, markersize=4, **style)
        axes.set_xlabel(_X_NAMES[x])
        axes.set_ylabel(y)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if x == "samples_seen":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if y == "samples per second":
            axes.set_ylim(bottom=0)
        if y.endswith("accuracy"):
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if all(series):
            axes.legend()
    return drawing.svg


def _reliability(bins: list[dict[str, Any]]) -> Markup:
    full = [row for row in bins if row["images"]]
    with chart("reliability", "share of right answers over the confidence, in bins of equal width") as drawing:
        axes = drawing.axes
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linestyle=":", label="perfectly calibrated")
        confidences, accuracies = [row["confidence"] for row in full], [row["accuracy"] for row in full]
        axes.errorbar(confidences, accuracies, _errors(full), fmt="o", capsize=2, color=SERIES[0], label="this network")
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.legend(loc="lower right")
    return drawing.svg


def _errors(bins: list[dict[str, Any]]) -> NDArray[np.float64]:
    """How far the 95 % interval of each accuracy reaches below and above it, float64[2, N]."""
    accuracy = np.array([row["accuracy"] for row in bins])
    low, high = np.transpose([wilson_interval(round(row["accuracy"] * row["images"]), row["images"]) for row in bins])
    return np.maximum([accuracy - low, high - accuracy], 0)


def _selection(curve: list[dict[str, Any]]) -> Markup:
    label = f"error among the most confident answers; {curve[-1]['error']:.2%} if all are accepted"
    with chart("selection", label) as drawing:
        axes = drawing.axes
        axes.plot([row["share"] for row in curve], [row["error"] for row in curve], color=SERIES[0])
        axes.set_xlabel("share of the images accepted, the most confident first")
        axes.set_ylabel("error among them")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    return drawing.svg


def _matrix(confusion: list[list[int]]) -> list[list[dict[str, Any]]]:
    """The cells of the confusion matrix: the count, and how dark the cell is, 0 to 1."""
    most = max(max(count for j, count in enumerate(row) if i != j) for i, row in enumerate(confusion))
    return [
        [{"count": count, "shade": count / max(sum(row) if i == j else most, 1)} for j, count in enumerate(row)]
        for i, row in enumerate(confusion)
    ]


def _cells(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of the confusion matrix that hold mistakes, the largest first, with the mistakes that are shown."""
    cells: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for mistake in facts["mistakes"]:
        cells.setdefault((mistake["truth"], mistake["label"]), []).append(mistake)
    found = [
        {"truth": truth, "label": label, "count": facts["metrics"]["confusion"][truth][label], "shown": shown}
        for (truth, label), shown in cells.items()
    ]
    return sorted(found, key=lambda cell: -cell["count"])


def plain(value: Any, digits: int = 6) -> str:
    """A value as text, with so many significant digits: `{"degrees": 8.0}` is "degrees 8"."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(one, digits)}" for name, one in value.items())
    if isinstance(value, list):
        return "; ".join(plain(one, digits) for one in value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
