"""The columns of the tables that scoring reads back and writes."""

from __future__ import annotations

import pyarrow as pa

from mnist_ray.errors import UsageError

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
_ANSWER = [
    pa.field("label", pa.uint8(), nullable=False),
    pa.field("confidence", pa.float32(), nullable=False),
    pa.field("probabilities", pa.list_(pa.float32(), 10), nullable=False),
    pa.field("truth", pa.uint8()),
]
_REASON = [
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64()),
]


def predictions(kept: pa.Schema) -> pa.Schema:
    """The prediction table's columns, with those passed through between the key and the answer."""
    return pa.schema([*_KEY, *kept, *_ANSWER])


def quarantine() -> pa.Schema:
    """The quarantine table's columns."""
    return pa.schema([*_KEY, *_REASON])


def check_kept(names: tuple[str, ...]) -> None:
    """Raise UsageError for a passed-through column that would hide one of the table's own."""
    if taken := [name for name in names if name in {field.name for field in [*_KEY, *_ANSWER, *_REASON]}]:
        raise UsageError(f"--keep {','.join(taken)}: the tables have a column of this name; rename it in the input")
