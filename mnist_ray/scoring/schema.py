"""The columns of the plan, of the prediction table and of the quarantine table."""

import pyarrow as pa

from mnist_ray.data.digits import CLASSES

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
_PREDICTION = [pa.field("label", pa.uint8(), nullable=False), pa.field("confidence", pa.float32(), nullable=False)]
_TRUTH = pa.field("truth", pa.uint8())
_REASON = [pa.field("reason", pa.string(), nullable=False), pa.field("detail", pa.string(), nullable=False)]
QUARANTINE = pa.schema([*_KEY, *_REASON, pa.field("size_bytes", pa.int64())])
"""The quarantine table has a row for each rejected input."""

CHANGES = pa.schema([("source", pa.string()), ("change", pa.string())])
"""The table of changed inputs has a row for each planned source that has changed or is gone."""

IGNORED = pa.schema([("source", pa.string()), ("size_bytes", pa.int64()), ("why", pa.string())])
"""The table of ignored files has a row for each file of an input folder that is not scored."""

NOTHING = pa.schema([])


def predictions(kept: pa.Schema, probabilities: int) -> pa.Schema:
    """The columns of the prediction table: the key, the kept columns, the prediction with so many probabilities, the truth."""
    if probabilities == len(CLASSES):
        columns = {"probabilities": pa.float32()}
    else:
        columns = {"top_labels": pa.uint8(), "top_probabilities": pa.float32()} if probabilities else {}
    lists = [pa.field(name, pa.list_(kind, probabilities), nullable=False) for name, kind in columns.items()]
    return pa.schema([*_KEY, *kept, *_PREDICTION, *lists, _TRUTH])
