"""Columns of tables: which one holds images or true digits, and its cells as images.

An image cell is the bytes of an image file, a struct of such `bytes` (Ray's and Hugging Face's `{bytes, path}`), or pixels: 784
integers, rows of 28, or a tensor column (Ray's or Arrow's fixed-shape). Extension types are read through their storage, so
nothing in a file's metadata is ever executed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mnist_ray.data.containers import MAX_BYTES, Reason, Rejection
from mnist_ray.data.images import SIDE, Grey, decode
from mnist_ray.errors import DataError

IMAGE_NAMES = ("image", "img", "images", "bytes", "pixels", "content", "data")
TRUTH_NAMES = ("truth", "label", "labels", "digit", "target")
PATH_NAMES = ("path", "source", "image", "image_path", "file", "filename", "uri")

_WRONG_LENGTH = f"expected {SIDE * SIDE} pixel values"


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_images(kind: pa.DataType) -> bool:
    kind = _storage(kind)
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if "bytes" in fields:
            return _is_binary(fields["bytes"]) or pa.types.is_null(fields["bytes"])
        return _is_integers(fields.get("data")) and _is_integers(fields.get("shape"))
    if _is_list(kind):
        return _is_integers(kind) or _is_integers(kind.value_type)
    return _is_binary(kind)


def _is_integers(kind: pa.DataType | None) -> bool:
    return kind is not None and _is_list(kind) and bool(pa.types.is_integer(kind.value_type))


def require_unique(schema: pa.Schema, source: str) -> None:
    """Raise DataError if two columns have the same name."""
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{source}: has two columns of the same name; its columns: {describe(schema)}")


def describe(schema: pa.Schema) -> str:
    """The columns of a schema in one line, for messages."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"


def image_column(schema: pa.Schema, wanted: str, source: str) -> str:
    """The name of the image column: the wanted one, else the only one that can hold images. Raises DataError."""
    require_unique(schema, source)
    if wanted:
        if wanted not in schema.names:
            raise DataError(f"{source}: has no column {wanted!r}; its columns: {describe(schema)}")
        if not _holds_images(schema.field(wanted).type):
            kind = schema.field(wanted).type
            raise DataError(f"{source}: column {wanted!r} is {kind}; expected image bytes or {SIDE * SIDE} integer pixels")
        return wanted
    able = [field.name for field in schema if _holds_images(field.type)]
    known = [name for name in IMAGE_NAMES if name in able]
    if len(able) != 1 and not known:
        found = "no column that holds images" if not able else f"several columns that may hold images ({', '.join(able)})"
        raise DataError(f"{source}: has {found}; name one with --image-column. Its columns: {describe(schema)}")
    return known[0] if known else able[0]


def truth_column(schema: pa.Schema, wanted: str, source: str) -> str | None:
    """The name of the integer column of true digits: the wanted one, else one of the usual names. Raises DataError."""
    if wanted and wanted not in schema.names:
        raise DataError(f"{source}: has no column {wanted!r}; its columns: {describe(schema)}")
    for name in [wanted] if wanted else TRUTH_NAMES:
        if name in schema.names and pa.types.is_integer(schema.field(name).type):
            return name
    if wanted:
        raise DataError(f"{source}: column {wanted!r} is {schema.field(wanted).type}; expected integers from 0 to 9")
    return None


def path_column(schema: pa.Schema) -> str | None:
    """The name of the text column that makes a table a manifest of paths, if there is one."""
    usual = [name for name in PATH_NAMES if name in schema.names and _is_text(schema.field(name).type)]
    return usual[0] if usual else None


def truths(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Integers as uint8 true digits; null where there is none from 0 to 9."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    digits = pc.is_in(column, value_set=pa.array(range(10), column.type))
    return pc.cast(pc.if_else(digits, column, None), pa.uint8())


def decode_cells(cells: pa.Array) -> Sequence[Grey | Rejection]:
    """Each image cell as grey levels, uint8[H, W], or why it is none."""
    if isinstance(cells, pa.FixedShapeTensorArray) and not cells.null_count:
        return [_pixels(values) for values in cells.to_numpy_ndarray()]
    if isinstance(cells, pa.ExtensionArray):
        cells = cells.storage
    kind = cells.type
    if pa.types.is_struct(kind):
        return _decode_struct(cells)
    if _is_binary(kind):
        return [_decode_bytes(cell.as_buffer()) for cell in cells]
    return _decode_pixels(cells)


def _decode_bytes(buffer: pa.Buffer | None) -> Grey | Rejection:
    if buffer is None:
        return Rejection(Reason.MISSING, "the cell is null")
    if buffer.size > MAX_BYTES:
        return Rejection(Reason.TOO_LARGE, f"more than {MAX_BYTES} bytes")
    return decode(buffer.to_pybytes())


def _decode_struct(cells: pa.StructArray) -> Sequence[Grey | Rejection]:
    names = [field.name for field in cells.type]
    if "bytes" in names:  # Ray's and Hugging Face's image struct; a null struct has a null child here
        return decode_cells(pc.cast(pc.struct_field(cells, "bytes"), pa.large_binary()))
    return [_decode_tensor(cell) for cell in cells.to_pylist()]


def _decode_tensor(cell: dict[str, list[int] | None] | None) -> Grey | Rejection:
    """One cell of Ray's variable-shape tensor column: flat `data` and its `shape`."""
    if cell is None or cell["data"] is None:
        return Rejection(Reason.MISSING, "the cell is null")
    shape = [size for size in cell.get("shape") or [] if size != 1]
    try:
        values = np.asarray(cell["data"]).reshape([int(size) for size in shape])
    except (ValueError, TypeError):
        return Rejection(Reason.WRONG_SHAPE, f"{len(cell['data'])} values do not fill shape {shape}")
    return _pixels(values)


def _pixels(values: NDArray[np.generic]) -> Grey | Rejection:
    side = math.isqrt(values.size)
    if values.ndim == 1 and side * side == values.size:  # a flat list is a square image: 784 values are 28x28
        values = values.reshape(side, side)
    if values.ndim != 2 or values.size == 0:
        return Rejection(Reason.WRONG_SHAPE, f"{values.size} values; {_WRONG_LENGTH}")
    if values.dtype.kind not in "iu" or int(values.min()) < 0 or int(values.max()) > 255:
        return Rejection(Reason.BAD_PIXELS, "pixel values other than integers from 0 to 255")
    return values.astype(np.uint8)


def _decode_pixels(cells: pa.Array) -> Sequence[Grey | Rejection]:
    whole = _whole_pixels(cells)
    if whole is not None:
        return list(whole)
    return [_decode_list(cell) for cell in cells.to_pylist()]


def _whole_pixels(cells: pa.Array) -> Grey | None:
    """Every cell at once as uint8[N, 28, 28], where each is a proper list of 784 or of 28 rows of 28 pixels."""
    rows = len(cells)
    for length in (SIDE, SIDE) if _is_list(cells.type.value_type) else (SIDE * SIDE,):
        if cells.null_count or not pc.all(pc.equal(pc.list_value_length(cells), length)).as_py():
            return None
        cells = cells.flatten()
    if cells.null_count or not len(cells):
        return None
    span = pc.min_max(cells)
    if span["min"].as_py() < 0 or span["max"].as_py() > 255:
        return None
    return np.asarray(pc.cast(cells, pa.uint8())).reshape(rows, SIDE, SIDE)


def _decode_list(cell: list[int | None] | list[list[int | None]] | None) -> Grey | Rejection:
    if cell is None:
        return Rejection(Reason.MISSING, "the cell is null")
    try:
        values = np.array(cell)
    except ValueError:
        return Rejection(Reason.WRONG_SHAPE, f"rows of different lengths; {_WRONG_LENGTH}")
    if values.dtype == object:
        return Rejection(Reason.BAD_PIXELS, "a pixel value is null")
    return _pixels(values)
