"""Converts the cells of image columns to grey levels.

A cell holds one of these:

- the bytes of an image file;
- a struct with a field `bytes` that holds them, as Ray and Hugging Face write it (`{bytes, path}`);
- pixels: 784 bytes that are not an image file, a list of 784 numbers, or 28 lists of 28 numbers;
- a tensor of numbers, in Ray's tensor types or Arrow's fixed-shape tensor type;
- one pixel, if the table has 784 columns of them.

Pixels are numbers from 0 to 255. An image of floating-point numbers, or of pixel columns, whose largest value is at most 1 has
pixels from 0 to 1.

Tensors are read through their storage type. Only the needed fields of a struct are read.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mnist_ray.data.columns import is_binary, is_list
from mnist_ray.data.containers import Reason, Rejection, has_signature
from mnist_ray.data.images import SIDE, Grey, decode, grey_levels

_NOT_PIXELS = "pixel values other than numbers from 0 to 255, or from 0 to 1"
_WRONG_LENGTH = f"expected {SIDE * SIDE} pixel values"
_NULL_CELL = Rejection(Reason.MISSING, "the cell is null")
_NULL_PIXEL = Rejection(Reason.BAD_PIXELS, "a pixel value is null")


def decode_rows(rows: pa.RecordBatch, names: Sequence[str]) -> Iterable[Grey | Rejection] | Grey:
    """The images in the columns `names` of a table, in the forms of `decode_cells`. The names are those of `image_columns`."""
    if len(names) == 1:
        return decode_cells(rows.column(names[0]))
    pixels = rows.select(list(names))
    if any(map(pa.types.is_float16, pixels.schema.types)):  # `to_tensor` does not take them beside other types
        pixels = pixels.cast(pa.schema([(name, pa.float32()) for name in names]))
    return _levels(pixels.to_tensor(null_to_nan=True).to_numpy())


def _levels(values: NDArray[np.generic]) -> Iterable[Grey | Rejection] | Grey:
    """Pixels, [N, 784] of any numeric type, as grey levels. If an image has another value or NaN, the result is no array."""
    low, high = values.min(axis=1), values.max(axis=1)
    good = (low >= 0) & (high <= 255)  # false for NaN
    levels = np.zeros(values.shape, np.uint8)
    levels[good] = np.round(values[good] * np.where(high[good] <= 1, 255, 1)[:, None])
    images = levels.reshape(-1, SIDE, SIDE)
    if good.all():
        return images
    rejection = Rejection(Reason.BAD_PIXELS, _NOT_PIXELS)
    return [image if fits else rejection for image, fits in zip(images, good, strict=True)]


def decode_cells(cells: pa.Array) -> Iterable[Grey | Rejection] | Grey:
    """The grey levels of each cell, uint8[H, W], or a Rejection. Cells are decoded as they are iterated over.

    The result is one array, uint8[N, H, W], if all cells hold valid pixels of one size in a form that is read at once.
    """
    if isinstance(cells, pa.FixedShapeTensorArray):
        return _decode_tensors(cells)
    if isinstance(cells, pa.ExtensionArray):
        cells = cells.storage
    kind = cells.type
    if pa.types.is_struct(kind):
        return _decode_struct(cells)
    if pa.types.is_binary_view(kind):
        cells = cells.cast(pa.large_binary())
    if is_binary(kind):
        whole = _whole_bytes(cells)
        return (_decode_bytes(cell.as_py()) for cell in cells) if whole is None else whole
    whole = _whole_pixels(cells)
    return (_decode_list(cell.as_py()) for cell in cells) if whole is None else whole


def _decode_bytes(data: bytes | None) -> Grey | Rejection:
    if data is None:
        return _NULL_CELL
    if len(data) == SIDE * SIDE and not has_signature(data):
        return np.frombuffer(data, np.uint8).reshape(SIDE, SIDE)
    return decode(data)


def _whole_bytes(cells: pa.Array) -> Grey | None:
    """All cells as uint8[N, 28, 28] if each is 784 bytes that start with 0, which no image file does; else None."""
    if cells.null_count or not pc.all(pc.equal(pc.binary_length(cells), SIDE * SIDE)).as_py():
        return None
    pixels = np.frombuffer(b"".join(cells.to_pylist()), np.uint8).reshape(-1, SIDE, SIDE)
    return None if pixels[:, 0, 0].any() else pixels


def _decode_struct(cells: pa.StructArray) -> Iterable[Grey | Rejection] | Grey:
    names = [field.name for field in cells.type]
    if "bytes" in names:  # `struct_field` also returns null for a null struct
        return decode_cells(pc.cast(pc.struct_field(cells, "bytes"), pa.large_binary()))
    data, shapes = (pc.struct_field(cells, name) for name in ("data", "shape"))
    return (_decode_tensor(values.as_py(), shape.as_py()) for values, shape in zip(data, shapes, strict=True))


def _decode_tensors(cells: pa.FixedShapeTensorArray) -> Iterable[Grey | Rejection] | Grey:
    """Cells of Arrow's fixed-shape tensor type."""
    tensors: Grey = cells.drop_null().to_numpy_ndarray()
    nulls: NDArray[np.bool_] = np.asarray(cells.storage.flatten().is_null()).reshape(tensors.shape)
    if not cells.null_count and not nulls.any() and tensors.dtype == np.uint8 and tensors.ndim == 3 and tensors.size:
        return tensors
    found = (_NULL_PIXEL if null.any() else _pixels(tensor) for tensor, null in zip(tensors, nulls, strict=True))
    return (next(found) if valid else _NULL_CELL for valid in cells.is_valid().to_pylist())


def _decode_tensor(data: list[int] | None, shape: list[int] | None) -> Grey | Rejection:
    """One cell of Ray's variable-shape tensor type: flat `data` and its `shape`."""
    if data is None:
        return _NULL_CELL
    sides = [size for size in shape or [] if size != 1]
    try:
        values = np.asarray(data).reshape([int(size) for size in sides])
    except (ValueError, TypeError):
        return Rejection(Reason.WRONG_SHAPE, f"{len(data)} values do not fill shape {sides}")
    return _pixels(values)


def _pixels(values: NDArray[np.generic]) -> Grey | Rejection:
    """Numbers, [H, W] or the flat pixels of a square image, as uint8[H, W]. Further axes of one pixel are dropped."""
    if values.ndim > 2:
        values = values.squeeze()
    side = math.isqrt(values.size)
    if values.ndim == 1 and side * side == values.size:
        values = values.reshape(side, side)
    if values.ndim != 2 or values.size == 0:
        return Rejection(Reason.WRONG_SHAPE, f"{values.size} values; {_WRONG_LENGTH}")
    if values.dtype.kind == "f":
        return grey_levels(values)
    if values.dtype.kind not in "iu" or int(values.min()) < 0 or int(values.max()) > 255:
        return Rejection(Reason.BAD_PIXELS, "pixel values other than integers from 0 to 255")
    return values.astype(np.uint8)


def _whole_pixels(cells: pa.Array) -> Grey | None:
    """All cells as uint8[N, 28, 28] if each is a list of 784 valid pixels, or 28 lists of 28; else None."""
    rows = len(cells)
    for length in (SIDE, SIDE) if is_list(cells.type.value_type) else (SIDE * SIDE,):
        if cells.null_count or not pc.all(pc.equal(pc.list_value_length(cells), length)).as_py():
            return None
        cells = cells.flatten()
    if cells.null_count or not len(cells) or pa.types.is_floating(cells.type):
        return None
    span = pc.min_max(cells)
    if span["min"].as_py() < 0 or span["max"].as_py() > 255:
        return None
    return np.asarray(pc.cast(cells, pa.uint8())).reshape(rows, SIDE, SIDE)


def _decode_list(cell: list[int | None] | list[list[int | None]] | None) -> Grey | Rejection:
    if cell is None:
        return _NULL_CELL
    try:
        values = np.array(cell)
    except ValueError:
        return Rejection(Reason.WRONG_SHAPE, f"rows of different lengths; {_WRONG_LENGTH}")
    if values.dtype == object:
        return _NULL_PIXEL
    return _pixels(values)
