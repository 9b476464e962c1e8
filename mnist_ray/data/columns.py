"""Columns of tables: which one holds images, true digits or paths.

A Parquet file names the extension types of its columns, and a Python program that knows such a type may run code when it
reads a value: Ray unpickles `ray.data.arrow_pickled_object`. So a column is used only if all its types are plain or known.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.data.images import SIDE
from mnist_ray.errors import DataError

IMAGE_NAMES = ("image", "img", "images", "bytes", "pixels", "content", "data")
TRUTH_NAMES = ("truth", "label", "labels", "digit", "target")
PATH_NAMES = ("path", "source", "image", "image_path", "file", "filename", "uri")

KNOWN_EXTENSIONS = (
    "arrow.bool8",
    "arrow.fixed_shape_tensor",
    "arrow.json",
    "arrow.uuid",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
)
"""Extension types whose values are plain data. Tensors are read through their storage."""
_EXTENSION_NAME = b"ARROW:extension:name"


def _own_extension(field: pa.Field) -> str:
    """The name of the field's own extension type; empty if it is of a plain type."""
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    name: bytes = (field.metadata or {}).get(_EXTENSION_NAME, b"")
    return name.decode(errors="backslashreplace")


def _extensions(field: pa.Field) -> Iterator[str]:
    """The names of a field's extension types at any depth, whether or not this process has registered them."""
    if name := _own_extension(field):
        yield name
    kind = _storage(field.type)
    if pa.types.is_dictionary(kind):
        yield from _extensions(pa.field("", kind.value_type))
    for position in range(kind.num_fields):
        yield from _extensions(kind.field(position))


def _foreign(field: pa.Field) -> str:
    """The name of the first extension type of a field that is not known; empty if there is none."""
    return next((name for name in _extensions(field) if name not in KNOWN_EXTENSIONS), "")


def require_known_types(field: pa.Field, source: str) -> None:
    """Raise DataError if a column has an extension type, at any depth, that is not in `KNOWN_EXTENSIONS`."""
    if name := _foreign(field):
        raise DataError(
            f"{source}: column {field.name!r} holds values of the extension type {name!r}, which are never read, because "
            "reading them may run code; write this column with plain types, or choose another one"
        )


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are bytes."""
    small = pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return bool(small or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_images(kind: pa.DataType) -> bool:
    kind = _storage(kind)
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if "bytes" in fields:
            return is_binary(fields["bytes"]) or pa.types.is_null(fields["bytes"])
        return _is_integers(fields.get("data")) and _is_integers(fields.get("shape"))
    if is_list(kind):
        return _is_integers(kind) or _is_integers(kind.value_type)
    return is_binary(kind)


def _is_integers(kind: pa.DataType | None) -> bool:
    return kind is not None and is_list(kind) and bool(pa.types.is_integer(kind.value_type))


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
        require_known_types(schema.field(wanted), source)
        if not _holds_images(schema.field(wanted).type):
            kind = schema.field(wanted).type
            raise DataError(f"{source}: column {wanted!r} is {kind}; expected image bytes or {SIDE * SIDE} integer pixels")
        return wanted
    fields = [field for field in schema if _holds_images(field.type)]
    able = [field.name for field in fields if not _foreign(field)]
    if fields and not able:
        require_known_types(fields[0], source)
    known = [name for name in IMAGE_NAMES if name in able]
    if len(able) != 1 and not known:
        found = "no column that holds images" if not able else f"several columns that may hold images ({', '.join(able)})"
        raise DataError(f"{source}: has {found}; name one with --image-column. Its columns: {describe(schema)}")
    return known[0] if known else able[0]


def holds_refused_images(schema: pa.Schema) -> bool:
    """Whether a column of images has, within its cells, an extension type that is not read."""
    return any(_holds_images(field.type) and _foreign(field) not in ("", _own_extension(field)) for field in schema)


def truth_column(schema: pa.Schema, wanted: str, source: str) -> str | None:
    """The name of the integer column of true digits: the wanted one, else one of the usual names. Raises DataError."""
    if wanted and wanted not in schema.names:
        raise DataError(f"{source}: has no column {wanted!r}; its columns: {describe(schema)}")
    if wanted:
        require_known_types(schema.field(wanted), source)
    for name in [wanted] if wanted else TRUTH_NAMES:
        if name in schema.names and pa.types.is_integer(schema.field(name).type) and not _foreign(schema.field(name)):
            return name
    if wanted:
        raise DataError(f"{source}: column {wanted!r} is {schema.field(wanted).type}; expected integers from 0 to 9")
    return None


def path_column(schema: pa.Schema) -> str | None:
    """The name of the text column that makes a table a manifest of paths, if there is one."""
    fields = [schema.field(name) for name in PATH_NAMES if name in schema.names]
    return next((field.name for field in fields if _is_text(field.type) and not _foreign(field)), None)


def truths(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Integers as uint8 true digits; null where there is none from 0 to 9."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    digits = pc.is_in(column, value_set=pa.array(range(10), column.type))
    return pc.cast(pc.if_else(digits, column, None), pa.uint8())
