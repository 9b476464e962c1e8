"""Finds the columns of a table that hold images, true digits or paths, and reads columns of Parquet files.

An image is one cell of an image column, or it is spread over `NUM_PIXELS` columns of numbers, one for each pixel: `pixel0` to
`pixel783`, `pixel1` to `pixel784`, any other name with such numbers, or `1x1` to `28x28`.

A Parquet file names the extension types of its columns. A program that knows such a type may run code when it reads a value:
Ray unpickles values of `ray.data.arrow_pickled_object`. For this reason a column is used only if it contains no extension
types other than `KNOWN_EXTENSIONS`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.data.digits import CLASSES
from mnist_ray.data.images import SIDE
from mnist_ray.data.store import REQUEST_BYTES
from mnist_ray.errors import DataError

IMAGE_NAMES = ("image", "img", "images", "bytes", "pixels", "content", "data")
TRUTH_NAMES = ("truth", "label", "labels", "digit", "target", "class")
PATH_NAMES = ("path", "source", "image", "image_path", "file", "filename", "uri")

NUM_PIXELS = SIDE * SIDE
"""Columns of an image that is spread over one column for each pixel."""
MOST_DESCRIBED = 12
"""Columns that a message names. The others are counted."""
MOST_CHARACTERS = 80
"""Characters of a column's name and type in a message."""
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


Fits = Callable[[pa.DataType], bool]


def _is_number_list(kind: pa.DataType | None, is_number: Fits) -> bool:
    return kind is not None and is_list(kind) and is_number(kind.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves: what an extension type stores, or those of a dictionary.

    Arrow makes no extension values out of Python's, and Parquet cannot hold an empty dictionary in a struct.
    """
    return kind.value_type if pa.types.is_dictionary(kind) else _storage(kind)


def _can_hold_images(kind: pa.DataType, is_pixel: Fits = pa.types.is_integer) -> bool:
    if kind == pa.uuid():  # stored as bytes
        return False
    kind = _storage(kind)
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        if "bytes" in fields:
            return is_binary(fields["bytes"]) or pa.types.is_null(fields["bytes"])
        return _is_number_list(fields.get("data"), is_pixel) and _is_number_list(fields.get("shape"), pa.types.is_integer)
    if is_list(kind):
        return _is_number_list(kind, is_pixel) or _is_number_list(kind.value_type, is_pixel)
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
    """The names and types of the columns in one line, for messages. Of many columns, the first ones and their number."""
    shown = [_describe_field(field) for field in list(schema)[:MOST_DESCRIBED]]
    more = len(schema) - len(shown)
    return ", ".join([*shown, f"and {more:,} more"] if more else shown) or "none"


def _describe_field(field: pa.Field) -> str:
    """The name and type of a column. The names of a damaged CSV file may be long, and not be text."""
    text = f"{field.name} ({field.type})"
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def pixel_columns(names: Iterable[str]) -> tuple[str, ...]:
    """The columns that hold one pixel each, in the order of the pixels, row by row. Empty if there are not `NUM_PIXELS`.

    The names tell the order: a common text and the numbers 0 to 783 or 1 to 784, or row and column such as `1x1`, from 1.
    """
    numbered: dict[str, dict[int, str]] = {}
    for name in names:
        if found := re.fullmatch(r"(\d{1,2})x(\d{1,2})", name):
            row, column = int(found[1]) - 1, int(found[2]) - 1
            if 0 <= row < SIDE and 0 <= column < SIDE:
                numbered.setdefault("RxC", {})[SIDE * row + column] = name
        elif found := re.fullmatch(r"(\D*)(\d{1,3})", name):
            numbered.setdefault(found[1], {})[int(found[2])] = name
    for by_number in numbered.values():
        numbers = sorted(by_number)
        if len(numbers) == NUM_PIXELS and numbers[0] in (0, 1) and numbers[-1] - numbers[0] == NUM_PIXELS - 1:
            return tuple(by_number[number] for number in numbers)
    return ()


def _numbers(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _is_number(field.type)]


def _require_column(schema: pa.Schema, name: str, source: str, fits: Fits, expected: str) -> None:
    """Raise DataError if the column that a flag names is missing, has an unknown extension type, or another wrong type."""
    if name not in schema.names:
        raise DataError(f"{source}: has no column {name!r}; its columns: {describe(schema)}")
    require_known_types(schema.field(name), source)
    if not fits(kind := schema.field(name).type):
        raise DataError(f"{source}: column {name!r} is {kind}; expected {expected}")


def image_columns(schema: pa.Schema, wanted: str, source: str) -> tuple[str, ...]:
    """The names of the columns that hold the images: one image column, or `NUM_PIXELS` columns of pixels in their order.

    This is the column `wanted` if given; else the columns of pixels; else the only column whose type can hold images; else the
    first of `IMAGE_NAMES` among them. Raises DataError if there is no such column.
    """
    require_unique(schema, source)
    if wanted:
        _require_column(schema, wanted, source, _can_hold_numbers, f"image bytes or {NUM_PIXELS} pixels")
        return (wanted,)
    if pixels := pixel_columns(_numbers(schema)):
        return pixels
    fields = [field for field in schema if _can_hold_images(field.type)]
    fields = fields or [field for field in schema if _can_hold_numbers(field.type)]
    usable: list[str] = [field.name for field in fields if not _unknown_extension(field)]
    if fields and not usable:
        require_known_types(fields[0], source)
    preferred = usable if len(usable) == 1 else [name for name in IMAGE_NAMES if name in usable]
    if preferred:
        return (preferred[0],)
    if usable:
        found = f"several columns that may hold images ({', '.join(usable)}); name one with --image-column"
    else:
        found = (
            f"no column that holds images; expected image bytes, {NUM_PIXELS} pixels in a list, "
            f"or {NUM_PIXELS} columns of pixels such as pixel0 to pixel{NUM_PIXELS - 1}"
        )
    advice = "" if path_column(schema) is None else " To score the images that it lists, name the file itself as an input."
    raise DataError(f"{source}: has {found}.{advice} Its columns: {describe(schema)}")


def hold_images(schema: pa.Schema, metadata: pq.FileMetaData, names: tuple[str, ...]) -> bool:
    """Whether the `image_columns` of a file that also has a column of paths hold its images, as far as the file tells.

    A hash, a box or an embedding beside the paths has a type that can hold images, too. It has another size.
    """
    kind = schema.field(names[0]).type
    if len(names) > 1 or names[0] in IMAGE_NAMES or not (is_list(kind) or pa.types.is_fixed_size_binary(kind)):
        return True
    if not is_list(kind):
        return bool(kind.byte_width == NUM_PIXELS)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    chunks = [chunk for group in groups for chunk in column_chunks(group, names)]
    nulls = sum(chunk.statistics.null_count or 0 for chunk in chunks if chunk.statistics)
    return bool(sum(chunk.num_values for chunk in chunks) - nulls == NUM_PIXELS * (metadata.num_rows - nulls))


def _can_hold_numbers(kind: pa.DataType) -> bool:
    """Whether a column can hold images whose pixels may be floating-point numbers. Embeddings can look like that, too."""
    return _can_hold_images(kind, _is_number)


def holds_refused_images(schema: pa.Schema) -> bool:
    """Whether an image column has an unknown extension type inside its cells, so that it cannot be read."""
    return any(_can_hold_images(field.type) and _unknown_extension(field) not in ("", _extension(field)) for field in schema)


def _first_readable(schema: pa.Schema, names: tuple[str, ...], fits: Fits) -> str | None:
    """The first of `names` whose column has a fitting type and only known extension types."""
    fields = {field.name: field for field in schema}
    found = (fields[name] for name in names if name in fields)
    return next((field.name for field in found if fits(field.type) and not _unknown_extension(field)), None)


def truth_column(schema: pa.Schema, truth: str, source: str) -> str | None:
    """The name of the column of true digits, integers or the names of classes, if there is one.

    `truth` is that column, or `auto` for the first of `TRUTH_NAMES`, or `none` or `folder` for no column. Raises DataError if
    the column is missing or holds something else.
    """
    if truth in ("none", "folder"):
        return None
    if truth != "auto":
        _require_column(schema, truth, source, _can_hold_truths, f"integers from 0 to {len(CLASSES) - 1}, or names of classes")
        return truth
    return _first_readable(schema, TRUTH_NAMES, pa.types.is_integer) or _first_readable(schema, TRUTH_NAMES, _is_text)


def _can_hold_truths(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind)) or _is_text(kind)


def column_chunks(group: pq.RowGroupMetaData, names: Collection[str]) -> list[pq.ColumnChunkMetaData]:
    """What a row group holds of these columns: one chunk for each, or one for each field of a struct."""
    chunks, wanted = map(group.column, range(group.num_columns)), frozenset(names)
    return [chunk for chunk in chunks if not wanted.isdisjoint(_prefixes(chunk.path_in_schema))]


def _prefixes(path: str) -> Iterator[str]:
    """A path such as `a.b.c`, and the paths above it: `a`, `a.b` and `a.b.c`."""
    return accumulate(path.split("."), lambda above, name: f"{above}.{name}")


def read_rows(
    stream: pa.NativeFile, metadata: pq.FileMetaData, groups: Sequence[int], names: Sequence[str], most: int
) -> Iterator[pa.RecordBatch]:
    """The rows of these row groups and columns: at most `most` at once, and about `BATCH_BYTES` of memory."""
    stored, row_bytes = 0, 1.0
    for group in map(metadata.row_group, groups):
        wanted = column_chunks(group, names)
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


def valid_text(column: pa.Array) -> pa.Array:
    """The column; if it is text that is not UTF-8, which Parquet files may hold, with U+FFFD in place of the wrong bytes."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            cells = column.cast(pa.large_binary()).to_pylist()
            return pa.array([None if cell is None else cell.decode(errors="replace") for cell in cells], column.type)
    return column


def truths(column: pa.Array) -> pa.Array:
    """Integers, names of classes, or integers as text, as true labels, uint8[N]. Values that are of no class become null."""
    if _is_text(column.type):
        text = pc.utf8_trim_whitespace(pc.cast(valid_text(column), pa.large_string()))
        whole = pc.replace_substring_regex(text, r"^0*(\d+?)(\.0*)?$", r"\1")  # 07 and 7.0 are 7
        numbers = [str(label) for label in range(len(CLASSES))]
        labels = (
            pc.index_in(found, value_set=pa.array(known, found.type)) for found, known in ((text, CLASSES), (whole, numbers))
        )
        return pc.cast(pc.coalesce(*labels), pa.uint8())
    known = pc.is_in(column, value_set=pa.array(range(len(CLASSES)), column.type))
    return pc.cast(pc.if_else(known, column, None), pa.uint8())
