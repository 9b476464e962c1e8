"""What differs between two prediction tables of the same inputs, for example of an old and a new model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.data import storage
from mnist_ray.data.digits import CLASSES
from mnist_ray.data.statistics import EXACT_UP_TO, mcnemar, wilson_interval
from mnist_ray.errors import AccountingError, DataError
from mnist_ray.report import sources
from mnist_ray.report.page import render
from mnist_ray.scoring.commit import load_commit
from mnist_ray.scoring.job import Job
from mnist_ray.scoring.parts import DAMAGE, PREDICTIONS, QUARANTINE, part_name
from mnist_ray.scoring.verify import complete_plan

SHOWN = 60
"""Changed labels of each kind that the page shows."""
SIGNIFICANT = 0.05
KINDS = ("broken", "fixed", "both wrong", "truth unknown")
_READERS = 16
_KEY = ["source", "row"]
_VALUES = pa.schema([("label", pa.uint8()), ("confidence", pa.float32()), ("truth", pa.uint8())])
_ROWS = pa.schema([("source", pa.string()), ("row", pa.int64()), *_VALUES])
_NO_ROW = -1
"""Stands for the row of an image file, because null keys do not join."""


def compare(old: str, new: str) -> dict[str, Any]:
    """The facts of a comparison, as values that JSON can hold. Inputs are matched by source and row.

    Raises OutputError if a folder holds no scoring job, AccountingError if its table is not complete, and DataError if the two
    tables have no input in common.
    """
    tables = [_load(out) for out in (old, new)]
    joined = _join(*(_once(table) for _, table in tables))
    both = joined.filter(pc.and_(pc.is_valid(joined["in_old"]), pc.is_valid(joined["in_new"])))
    if not both.num_rows:
        first = [table["source"][0].as_py() if table.num_rows else "none" for _, table in tables]
        raise DataError(f"{new}: has no input in common with {old}. Their first sources are {first[1]} and {first[0]}")
    predicted = [pc.is_valid(both[f"label_{side}"]) for side in ("old", "new")]
    compared = both.filter(pc.and_(*predicted))
    return {
        "old": _about(*tables[0]),
        "new": _about(*tables[1]),
        "in_both": both.num_rows,
        "only_old": pc.sum(pc.is_null(joined["in_new"])).as_py(),
        "only_new": pc.sum(pc.is_null(joined["in_old"])).as_py(),
        "repeated": sum(table.num_rows for _, table in tables) - 2 * both.num_rows - (joined.num_rows - both.num_rows),
        "predicted_only_by_old": pc.sum(pc.and_not(*predicted)).as_py(),
        "predicted_only_by_new": pc.sum(pc.and_not(*reversed(predicted))).as_py(),
        "compared": compared.num_rows,
        **_labels(compared),
        "truth": _with_truth(compared.filter(pc.is_valid(compared["truth"]))),
        "changes": _changes(compared, tables[1][0].image_column),
    }


def _load(out: str) -> tuple[Job, pa.Table]:
    """The job of an output folder, and its predicted and quarantined inputs; the label of the latter is null."""
    job = Job.of(complete_plan(out), out)
    parts: dict[str, list[int]] = load_commit(out)["parts"]
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda unit: _load_unit(out, unit, *parts[unit]), parts))
    table = pa.concat_tables([_ROWS.empty_table(), *tables])
    return job, table.set_column(1, "row", pc.fill_null(table["row"], _NO_ROW))


def _load_unit(out: str, unit: str, predicted: int, quarantined: int) -> pa.Table:
    """The inputs of a unit. Raises AccountingError if they are not as many as the commit record says."""

    def read(name: str, columns: list[str]) -> pa.Table:
        found = [
            batch.cast(pa.schema([_ROWS.field(column) for column in columns]))
            for batch in sources.rows(out, name, unit, columns)
        ]
        return pa.concat_tables([_ROWS.empty_table(), *found], promote_options="default")

    try:
        tables = [read(PREDICTIONS, _ROWS.names), *([read(QUARANTINE, _KEY)] if quarantined else [])]
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except DAMAGE as error:
        raise AccountingError(
            f"{out}: the part {part_name(unit)} cannot be read ({error}); `mnist-ray verify` says what to do"
        ) from None
    if [table.num_rows for table in tables] != [predicted, *([quarantined] if quarantined else [])]:
        raise AccountingError(
            f"{out}: the part {part_name(unit)} has not the rows that were committed; `mnist-ray verify` says what to do"
        )
    return pa.concat_tables(tables)


def _once(table: pa.Table) -> pa.Table:
    """Each input once. An input that is listed twice has the same prediction twice."""
    firsts = [(name, "first") for name in _VALUES.names]
    return table.group_by(_KEY, use_threads=False).aggregate(firsts).rename_columns(_ROWS.names)


def _join(old: pa.Table, new: pa.Table) -> pa.Table:
    """The inputs of both tables by source and row. `in_old` and `in_new` are null where the table lacks the input.

    `truth` is that of the new table, or else that of the old one.
    """

    def named(table: pa.Table, side: str) -> pa.Table:
        names = [f"{name}_{side}" for name in _VALUES.names]
        return table.rename_columns([*_KEY, *names]).append_column(f"in_{side}", pa.repeat(True, table.num_rows))

    joined = named(old, "old").join(named(new, "new"), _KEY, join_type="full outer")
    truth = pc.coalesce(joined["truth_new"], joined["truth_old"])
    return joined.append_column("truth", truth)


def _about(job: Job, table: pa.Table) -> dict[str, Any]:
    rejected = table["label"].null_count
    return {"out": storage.to_text(job.out), "model": job.model, "inputs": table.num_rows, "quarantined": rejected}


def _counts(cells: pa.ChunkedArray | pa.Array) -> list[int]:
    counts: list[int] = np.bincount(cells.to_numpy(zero_copy_only=False), minlength=len(CLASSES)).tolist()
    return counts


def _labels(compared: pa.Table) -> dict[str, Any]:
    """The labels of both tables against each other, int[C][C] of C classes (old by new), and how many differ."""
    old, new = (compared[f"label_{side}"].to_numpy().astype(np.int64) for side in ("old", "new"))
    count = len(CLASSES)
    labels = np.bincount(count * old + new, minlength=count**2).reshape(count, count)
    return {"labels": labels.tolist(), "changed": int(labels.sum() - labels.trace())}


def _with_truth(known: pa.Table) -> dict[str, Any] | None:
    """Which table is right more often; None if no truth is known."""
    if not known.num_rows:
        return None
    old, new = (pc.equal(known[f"label_{side}"], known["truth"]) for side in ("old", "new"))
    masks = {"right_old": old, "right_new": new, "fixed": pc.and_not(new, old), "broken": pc.and_not(old, new)}
    counts = {name: pc.sum(mask).as_py() for name, mask in masks.items()}
    digits = {"images": _counts(known["truth"])} | {name: _counts(known["truth"].filter(mask)) for name, mask in masks.items()}
    intervals = {f"interval_95_{side}": wilson_interval(counts[f"right_{side}"], known.num_rows) for side in ("old", "new")}
    p_value = mcnemar(counts["fixed"], counts["broken"])
    better = "new" if counts["fixed"] > counts["broken"] else "old"
    return {
        "images": known.num_rows,
        "contradictions": pc.sum(pc.not_equal(known["truth_old"], known["truth_new"])).as_py() or 0,
        **counts,
        **intervals,
        "p_value": p_value,
        "test": "exact binomial"
        if counts["fixed"] + counts["broken"] < EXACT_UP_TO
        else "chi-square with continuity correction",
        "verdict": f"{better} is better" if p_value < SIGNIFICANT else "no difference shown",
        "digits": [{name: values[digit] for name, values in digits.items()} for digit in range(len(CLASSES))],
    }


def _changes(compared: pa.Table, image_column: str) -> dict[str, dict[str, Any]]:
    """The changed labels of each kind: how many, and those of which the new table is most confident, with pictures."""
    changed = compared.filter(pc.not_equal(compared["label_old"], compared["label_new"]))
    truth, unknown = changed["truth"], pc.is_null(changed["truth"])
    fixed, broken = (pc.fill_null(pc.equal(changed[f"label_{side}"], truth), False) for side in ("new", "old"))
    other = pc.invert(pc.or_(unknown, pc.or_(fixed, broken)))
    kinds = {name: changed.filter(mask) for name, mask in zip(KINDS, (broken, fixed, other, unknown), strict=True)}
    columns = [*_KEY, "label_old", "confidence_old", "label_new", "confidence_new", "truth"]
    rows = {
        name: table.sort_by([("confidence_new", "descending"), ("source", "ascending"), ("row", "ascending")])
        .slice(0, SHOWN)
        .select(columns)
        .to_pylist()
        for name, table in kinds.items()
    }
    for row in (row for some in rows.values() for row in some):
        row["row"] = None if row["row"] == _NO_ROW else row["row"]
    shown = sources.pictures(dict.fromkeys((row["source"], row["row"]) for some in rows.values() for row in some), image_column)
    return {
        name: {
            "count": kinds[name].num_rows,
            "examples": [{**row, **shown[row["source"], row["row"]]._asdict()} for row in some],
        }
        for name, some in rows.items()
    }


def meaning(truth: dict[str, Any]) -> str:
    """What McNemar's test says, in words."""
    fixed, broken = truth["fixed"], truth["broken"]
    if not fixed + broken:
        return "OLD and NEW are right on the same inputs."
    found = f"NEW is right and OLD wrong on {fixed:,} inputs. OLD is right and NEW wrong on {broken:,}."
    probability = "less than 0.0001" if truth["p_value"] < 1e-4 else f"{truth['p_value']:.2g}"
    better = {"new is better": "NEW is better.", "old is better": "OLD is better."}
    return (
        f"{better.get(truth['verdict'], 'This does not show that one is better.')} {found} If both were equally good, chance "
        f"alone would give a difference at least this large with probability {probability}."
    )


def to_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The comparison as lines for a terminal."""
    for side in ("old", "new"):
        out, model, inputs, quarantined = (facts[side][name] for name in ("out", "model", "inputs", "quarantined"))
        yield f"{side.upper()} {out}: {inputs:,} inputs, {quarantined:,} quarantined, model {model[:12]}"
    yield f"{facts['in_both']:,} inputs in both, {facts['only_old']:,} only in OLD, {facts['only_new']:,} only in NEW"
    if facts["repeated"]:
        yield f"{facts['repeated']:,} rows repeat an input of their table; each input counts once"
    if facts["predicted_only_by_old"] or facts["predicted_only_by_new"]:
        yield (
            f"{facts['predicted_only_by_old']:,} predicted in OLD and quarantined in NEW, "
            f"{facts['predicted_only_by_new']:,} quarantined in OLD and predicted in NEW"
        )
    yield f"changed labels: {facts['changed']:,} of {facts['compared']:,} ({facts['changed'] / max(facts['compared'], 1):.2%})"
    truth = facts["truth"]
    if truth:
        for side in ("old", "new"):
            low, high = truth[f"interval_95_{side}"]
            share = truth[f"right_{side}"] / truth["images"]
            yield f"accuracy {side.upper()}: {share:.2%} (95 % interval {low:.2%} to {high:.2%}) of {truth['images']:,} images"
        if truth["contradictions"]:
            yield f"{truth['contradictions']:,} inputs have different true digits in the two tables; those of NEW count"
        yield f"McNemar's test ({truth['test']}): {meaning(truth)}"
    labels = np.array(facts["labels"])
    width = max(map(len, ("digit", *CLASSES)))
    header = f"{'digit':>{width}}     OLD     NEW    same"
    yield header + ("  images  right in OLD  right in NEW  fixed  broken" if truth else "")
    for digit, name in enumerate(CLASSES):
        line = f"{name:>{width}} {labels[digit].sum():7d} {labels[:, digit].sum():7d} {labels[digit, digit]:7d}"
        if truth:
            row = truth["digits"][digit]
            line += f" {row['images']:7d} {row['right_old']:13d} {row['right_new']:13d} {row['fixed']:6d} {row['broken']:7d}"
        yield line


def without_pictures(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts for other programs."""
    changes = {
        kind: {
            **found,
            "examples": [{k: v for k, v in row.items() if k not in ("picture", "note")} for row in found["examples"]],
        }
        for kind, found in facts["changes"].items()
    }
    return {**facts, "changes": changes}


def page(facts: dict[str, Any]) -> bytes:
    """The page of these facts."""
    return render("diff.html", **facts, meaning=meaning(facts["truth"]) if facts["truth"] else "")
