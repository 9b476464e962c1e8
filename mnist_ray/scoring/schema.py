"""The columns of the plan and of the tables that a job writes. Those of the tables carry their unit and meaning."""

from collections.abc import Iterable

import pyarrow as pa

from mnist_ray.data.digits import CLASSES

MEANINGS = {
    "source": ("", "path or URI of the input file: an image, or the table that holds the image"),
    "row": ("rows", "position in the table, from 0; null for an image file"),
    "label": ("class", f"predicted class: the position of its name, from 0 to {len(CLASSES) - 1}"),
    "confidence": ("probability", "probability of the predicted class, from 0 to 1"),
    "digit_likeness": (
        "share",
        "share of the model's held-out digits that look less like a digit, from 0 to 1; below 0.01 it looks like none",
    ),
    "needs_review": (
        "",
        "with `--target-error`: the confidence is too low for the promise, or `digit_likeness` is below 0.01",
    ),
    "probabilities": ("probability", "probability of each class, in their order; the sum is 1"),
    "top_labels": (
        "class",
        "with `--probabilities topN` instead of `probabilities`: the most probable classes, the first one first",
    ),
    "top_probabilities": ("probability", "the probabilities of `top_labels`"),
    "truth": ("class", "true class; null if it is unknown"),
    "reason": ("", "why the input has no prediction: one of the reasons below"),
    "detail": ("", "what was found, as text"),
    "size_bytes": ("bytes", "size of the file when the job listed it; -1 if it was missing, null for a row of a table"),
    "change": ("", "`changed` or `vanished`"),
    "why": ("", "why the file is not scored: `hidden`, `other_suffix` or `no_image`"),
}
"""The unit and the meaning of each column. A column without a unit is text."""
_COPIED = ("as in the input", "copied from the input, as `--keep` says")


def _described(fields: Iterable[pa.Field], kept: Iterable[pa.Field] = ()) -> pa.Schema:
    """Columns that carry their unit and meaning as metadata, which Parquet files keep. The kept columns follow the key."""
    own = [_with_meaning(field, *MEANINGS[field.name]) for field in fields]
    return pa.schema([*own[: len(_KEY)], *(_with_meaning(field, *_COPIED) for field in kept), *own[len(_KEY) :]])


def _with_meaning(field: pa.Field, unit: str, meaning: str) -> pa.Field:
    return field.with_metadata({"unit": unit, "description": meaning})


PLAN = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("version", pa.string()),
        pa.field("truth", pa.uint8()),
        pa.field("first_row", pa.int64()),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("first_byte", pa.int64()),
    ]
)
"""The plan has a row for each image file and for each range of rows of a table. `first_byte` is known for CSV files only."""
KEPT = "kept"
"""A further column of the plan if `--keep` is given: what manifests state in the kept columns, as a struct."""

_KEY = [pa.field("source", pa.string(), nullable=False), pa.field("row", pa.int64())]
_PREDICTION = [
    pa.field("label", pa.uint8(), nullable=False),
    pa.field("confidence", pa.float32(), nullable=False),
    pa.field("digit_likeness", pa.float32(), nullable=False),
]
_REVIEW = pa.field("needs_review", pa.bool_(), nullable=False)
_TRUTH = pa.field("truth", pa.uint8())
_REASON = [pa.field("reason", pa.string(), nullable=False), pa.field("detail", pa.string(), nullable=False)]
QUARANTINE = _described([*_KEY, *_REASON, pa.field("size_bytes", pa.int64())])
"""The quarantine table has a row for each rejected input."""

CHANGES = _described([pa.field("source", pa.string()), pa.field("change", pa.string())])
"""The table of changed inputs has a row for each planned source that has changed or is gone."""

IGNORED = _described([pa.field("source", pa.string()), pa.field("size_bytes", pa.int64()), pa.field("why", pa.string())])
"""The table of ignored files has a row for each file of an input folder that is not scored."""

NOTHING = pa.schema([])


def predictions(kept: pa.Schema, probabilities: int, review: bool) -> pa.Schema:
    """The columns of the prediction table: the key, the kept columns, the prediction with so many probabilities, the truth.

    `review` adds whether a prediction must be reviewed.
    """
    if probabilities == len(CLASSES):
        columns = {"probabilities": pa.float32()}
    else:
        columns = {"top_labels": pa.uint8(), "top_probabilities": pa.float32()} if probabilities else {}
    lists = [pa.field(name, pa.list_(kind, probabilities), nullable=False) for name, kind in columns.items()]
    return _described([*_KEY, *_PREDICTION, *([_REVIEW] if review else []), *lists, _TRUTH], kept)
