"""The columns of the tables that scoring reads back and writes."""

from __future__ import annotations

import pyarrow as pa

from mnist_ray.errors import UsageError

CLASSES = 10

PLAN = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64()),
        pa.field("version", pa.string()),
        pa.field("truth", pa.uint8()),
        pa.field("first_row", pa.int64()),
        pa.field("num_rows", pa.int64(), nullable=False),
    ]
)
"""The plan: a row for each image file, and for each range of rows of a Parquet file."""

_KEY = [pa.field("source", pa.string(), nullable=False), pa.field("row", pa.int64())]
_ANSWER = [pa.field("label", pa.uint8(), nullable=False), pa.field("confidence", pa.float32(), nullable=False)]
_TRUTH = pa.field("truth", pa.uint8())
_PROBABILITIES = ["probabilities", "top_labels", "top_probabilities"]
_REASON = [
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64()),
]

NOTHING = pa.schema([])


def predictions(kept: pa.Schema, probabilities: int) -> pa.Schema:
    """The prediction table's columns: those passed through between key and answer, and as many probabilities as asked for."""
    floats, labels = pa.list_(pa.float32(), probabilities), pa.list_(pa.uint8(), probabilities)
    more = dict(zip(_PROBABILITIES[1:], [labels, floats], strict=True)) if 0 < probabilities < CLASSES else {}
    more = {_PROBABILITIES[0]: floats} if probabilities == CLASSES else more
    return pa.schema([*_KEY, *kept, *_ANSWER, *(pa.field(name, kind, nullable=False) for name, kind in more.items()), _TRUTH])


def quarantine() -> pa.Schema:
    """The quarantine table's columns."""
    return pa.schema([*_KEY, *_REASON])


def check_kept(names: tuple[str, ...]) -> None:
    """Raise UsageError for a passed-through column that would hide one of the table's own."""
    ours = {field.name for field in [*_KEY, *_ANSWER, _TRUTH, *_REASON]} | set(_PROBABILITIES)
    if taken := [name for name in names if name in ours]:
        raise UsageError(f"--keep {','.join(taken)}: the tables have a column of this name; rename it in the input")
