"""Finds the columns of a table that hold images, true digits or paths.

A Parquet file names the extension types of its columns. A program that knows such a type may run code when it reads a value:
Ray unpickles values of `ray.data.arrow_pickled_object`. For this reason a column is used only if it contains no extension
types other than `KNOWN_EXTENSIONS`.
"""

from collections.abc import Callable, Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data.digits import CLASSES
from mnist_ray.data.images import SIDE
from mnist_ray.errors import DataError

IMAGE_NAMES = ("image", "img", "images", "bytes", "pixels", "content", "data")
TRUTH_NAMES = ("truth", "label", "labels", "digit", "target")
PATH_NAMES = ("path", "source", "image", "image_path", "file", "filename", "uri")

BATCH_BYTES = 32 << 20
"""Most bytes of the cells that are read at once, if the file's metadata is right about them."""
KNOWN_EXTENSIONS = (
    "arrow.bool8",
    "arrow.fixed_shape_tensor",
    "arrow.json",
    "arrow.uuid",
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
)
"""Extension types whose values are plain data. Tensors are read through their storage type."""


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


def _is_integer_list(kind: pa.DataType | None) -> bool:
    return kind is not None and is_list(kind) and bool(pa.types.is_integer(kind.value_type))


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _can_hold_images(kind: pa.DataType) -> bool:
    kind = _storage(kind)
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if "bytes" in fields:
            return is_binary(fields["bytes"]) or pa.types.is_null(fields["bytes"])
        return _is_integer_list(fields.get("data")) and _is_integer_list(fields.get("shape"))
    if is_list(kind):
        return _is_integer_list(kind) or _is_integer_list(kind.value_type)
    return is_binary(kind)


def _extension(field: pa.Field) -> str:
    """The name of the field's own extension type, registered in this process or not. Empty for a plain type."""
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    name: bytes = (field.metadata or {}).get(b"ARROW:extension:name", b"")
    return name.decode(errors="backslashreplace")


def _unknown_extension(field: pa.Field) -> str:
    """The first extension type of a field, at any depth, that is not in `KNOWN_EXTENSIONS`. Empty if all are known."""
    if (name := _extension(field)) not in ("", *KNOWN_EXTENSIONS):
        return name
    kind = _storage(field.type)
    inner = [pa.field("", kind.value_type)] if pa.types.is_dictionary(kind) else [kind.field(i) for i in range(kind.num_fields)]
    return next(filter(None, map(_unknown_extension, inner)), "")


def require_known_types(field: pa.Field, source: str) -> None:
    """Raise DataError if a column has an extension type, at any depth, that is not in `KNOWN_EXTENSIONS`."""
    if name := _unknown_extension(field):
        raise DataError(
            f"{source}: column {field.name!r} holds values of the extension type {name!r}, which are never read, because "
            "reading them may run code; write this column with plain types, or choose another one"
        )


def require_unique(schema: pa.Schema, source: str) -> None:
    """Raise DataError if two columns have the same name."""
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{source}: has two columns of the same name; rename one of them. Its columns: {describe(schema)}")


def describe(schema: pa.Schema) -> str:
    """The names and types of all columns in one line, for messages."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"


def _require_column(schema: pa.Schema, name: str, source: str, fits: Callable[[pa.DataType], bool], expected: str) -> None:
    """Raise DataError if the column that a flag names is missing, has an unknown extension type, or another wrong type."""
    if name not in schema.names:
        raise DataError(f"{source}: has no column {name!r}; its columns: {describe(schema)}")
    require_known_types(schema.field(name), source)
    if not fits(kind := schema.field(name).type):
        raise DataError(f"{source}: column {name!r} is {kind}; expected {expected}")


def image_column(schema: pa.Schema, wanted: str, source: str) -> str:
    """The name of the image column.

    This is `wanted` if given, else the only column whose type can hold images, else the first of `IMAGE_NAMES` among them.
    Raises DataError if there is no such column.
    """
    require_unique(schema, source)
    if wanted:
        _require_column(schema, wanted, source, _can_hold_images, f"image bytes or {SIDE * SIDE} integer pixels")
        return wanted
    fields = [field for field in schema if _can_hold_images(field.type)]
    usable: list[str] = [field.name for field in fields if not _unknown_extension(field)]
    if fields and not usable:
        require_known_types(fields[0], source)
    preferred = usable if len(usable) == 1 else [name for name in IMAGE_NAMES if name in usable]
    if preferred:
        return preferred[0]
    found = f"several columns that may hold images ({', '.join(usable)})" if usable else "no column that holds images"
    raise DataError(f"{source}: has {found}; name one with --image-column. Its columns: {describe(schema)}")


def holds_refused_images(schema: pa.Schema) -> bool:
    """Whether an image column has an unknown extension type inside its cells, so that it cannot be read."""
    return any(_can_hold_images(field.type) and _unknown_extension(field) not in ("", _extension(field)) for field in schema)


def _first_readable(schema: pa.Schema, names: tuple[str, ...], fits: Callable[[pa.DataType], bool]) -> str | None:
    """The first of `names` whose column has a fitting type and only known extension types."""
    fields = {field.name: field for field in schema}
    found = (fields[name] for name in names if name in fields)
    return next((field.name for field in found if fits(field.type) and not _unknown_extension(field)), None)


def truth_column(schema: pa.Schema, truth: str, source: str) -> str | None:
    """The name of the integer column of true digits, if there is one.

    `truth` is that column, or `auto` for the first of `TRUTH_NAMES`, or `none` or `folder` for no column. Raises DataError if
    the column is missing or does not hold integers.
    """
    if truth in ("none", "folder"):
        return None
    if truth != "auto":
        _require_column(schema, truth, source, pa.types.is_integer, f"integers from 0 to {len(CLASSES) - 1}")
        return truth
    return _first_readable(schema, TRUTH_NAMES, pa.types.is_integer)


def rows_at_once(metadata: pq.FileMetaData, groups: Iterable[int], names: Collection[str], most: int) -> int:
    """How many rows of these columns are read at once: at most `most`, and about `BATCH_BYTES` of memory."""
    row_bytes = 1.0
    for group in map(metadata.row_group, groups):
        chunks = (group.column(position) for position in range(group.num_columns))
        wanted = [chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names]
        row_bytes = max(row_bytes, sum(wanted) / max(group.num_rows, 1))
    return max(1, min(most, int(BATCH_BYTES / row_bytes)))


def path_column(schema: pa.Schema) -> str | None:
    """The name of the text column that makes a table a manifest of paths: the first of `PATH_NAMES`, if there is one."""
    return _first_readable(schema, PATH_NAMES, _is_text)


def truths(column: pa.Array) -> pa.Array:
    """Integers as true labels, uint8[N]. Values that are the label of no class become null."""
    known = pc.is_in(column, value_set=pa.array(range(len(CLASSES)), column.type))
    return pc.cast(pc.if_else(known, column, None), pa.uint8())
