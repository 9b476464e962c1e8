"""Finds the columns of a table that hold images, true digits or paths, and reads columns of Parquet files.

A Parquet file names the extension types of its columns. A program that knows such a type may run code when it reads a value:
Ray unpickles values of `ray.data.arrow_pickled_object`. For this reason a column is used only if it contains no extension
types other than `KNOWN_EXTENSIONS`.
"""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data.digits import CLASSES
from mnist_ray.data.images import SIDE
from mnist_ray.data.store import REQUEST_BYTES
from mnist_ray.errors import DataError

IMAGE_NAMES = ("image", "img", "images", "bytes", "pixels", "content", "data")
TRUTH_NAMES = ("truth", "label", "labels", "digit", "target")
PATH_NAMES = ("path", "source", "image", "image_path", "file", "filename", "uri")

BATCH_BYTES = 32 << 20
"""About how many bytes of cells are in memory at once."""
ROWS_AT_ONCE = 32
"""Most rows that are read before their size is known. The metadata does not tell it: 32 rows of one photo count it once."""
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


def column_chunks(group: pq.RowGroupMetaData, name: str) -> list[pq.ColumnChunkMetaData]:
    """What a row group holds of a column: one chunk, or one for each field of a struct."""
    chunks = map(group.column, range(group.num_columns))
    return [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{name}.")]


def read_rows(
    stream: pa.NativeFile, metadata: pq.FileMetaData, groups: Sequence[int], names: Sequence[str], most: int
) -> Iterator[pa.RecordBatch]:
    """The rows of these row groups and columns: at most `most` at once, and about `BATCH_BYTES` of memory."""
    stored, row_bytes = 0, 1.0
    for group in map(metadata.row_group, groups):
        wanted = [chunk for name in names for chunk in column_chunks(group, name)]
        stored += sum(chunk.total_compressed_size for chunk in wanted)
        row_bytes = max(row_bytes, sum(chunk.total_uncompressed_size for chunk in wanted) / max(group.num_rows, 1))
    rows = max(1, min(most, ROWS_AT_ONCE, int(BATCH_BYTES / row_bytes)))
    # Few bytes are fetched before the first row, with few requests. Of many, only what the next rows need is fetched.
    fetch = {"pre_buffer": True} if stored <= BATCH_BYTES else {"pre_buffer": False, "buffer_size": REQUEST_BYTES}
    parquet = pq.ParquetFile(stream, metadata=metadata, **fetch)
    ahead: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in parquet.iter_batches(rows, row_groups=groups, columns=names, use_threads=False):
        ahead.append(batch)
        num_rows, num_bytes = num_rows + batch.num_rows, num_bytes + batch.nbytes
        if num_rows + rows > most or num_bytes + batch.nbytes > BATCH_BYTES:
            yield _join(ahead)
            num_rows = num_bytes = 0
    if ahead:
        yield _join(ahead)


def _join(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of these batches, which are removed from the list: two copies of them would stay in memory."""
    whole = pa.concat_batches(batches) if len(batches) > 1 else batches[0]
    batches.clear()
    return whole


def path_column(schema: pa.Schema) -> str | None:
    """The name of the text column that makes a table a manifest of paths: the first of `PATH_NAMES`, if there is one."""
    return _first_readable(schema, PATH_NAMES, _is_text)


def truths(column: pa.Array) -> pa.Array:
    """Integers as true labels, uint8[N]. Values that are the label of no class become null."""
    known = pc.is_in(column, value_set=pa.array(range(len(CLASSES)), column.type))
    return pc.cast(pc.if_else(known, column, None), pa.uint8())
