from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from mnist_ray.data import cells as cells_module
from mnist_ray.data import columns
from mnist_ray.data.cells import decode_cells, decode_rows
from mnist_ray.data.containers import Reason, Rejection
from mnist_ray.data.digits import Splits
from mnist_ray.data.images import Grey, encode_png
from mnist_ray.errors import DataError
from mnist_ray.scoring.inputs import Listing
from mnist_ray.scoring.tables import Kept


@pytest.fixture(scope="module")
def images(mnist5k: Splits) -> Grey:
    return mnist5k.test.images[:50]


def cells(images: Grey, kind: str) -> pa.Array:
    """The images as a column of one of the supported forms."""
    flat = pa.array(images.reshape(-1))
    files = [encode_png(image) for image in images]
    forms: dict[str, Any] = {
        "bytes": lambda: pa.array(files),
        "large bytes": lambda: pa.array(files, pa.large_binary()),
        "struct": lambda: pa.array([{"bytes": file, "path": None} for file in files]),
        "784": lambda: pa.FixedSizeListArray.from_arrays(flat, 784),
        "int64 list": lambda: pa.array(images.reshape(-1, 784).astype(np.int64).tolist()),
        "28 x 28": lambda: pa.array(images.tolist()),
        "arrow tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(images)),
        "ray variable": lambda: pa.array([{"data": image.reshape(-1).tolist(), "shape": [28, 28]} for image in images]),
    }
    return forms[kind]()


@pytest.mark.parametrize(
    "kind", ["bytes", "large bytes", "struct", "784", "int64 list", "28 x 28", "arrow tensor", "ray variable"]
)
def test_all_column_forms_give_the_same_images(kind: str, images: Grey) -> None:
    column = cells(images, kind)
    assert columns.image_columns(pa.schema([("id", pa.int64()), ("picture", column.type)]), "", "t") == ("picture",)
    assert np.array_equal(np.stack(list(decode_cells(column))), images)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bytes", "struct", "784", "28 x 28", "arrow tensor", "ray variable"])
def test_slices_and_nulls_are_read(kind: str, images: Grey) -> None:
    column = cells(images, kind)
    sliced = decode_cells(column.slice(7, 5))
    assert np.array_equal(np.stack(list(sliced)), images[7:12])  # type: ignore[arg-type]
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    holed = pa.array([*storage.to_pylist()[:2], None], storage.type)
    found = list(decode_cells(holed))
    assert np.array_equal(found[1], images[1])  # type: ignore[arg-type]
    assert isinstance(found[2], Rejection)
    assert found[2].reason == Reason.MISSING


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([0] * 783, Reason.WRONG_SHAPE),
        ([], Reason.WRONG_SHAPE),
        ([300] + [0] * 783, Reason.BAD_PIXELS),
        ([-1] + [0] * 783, Reason.BAD_PIXELS),
        ([None] + [0] * 783, Reason.BAD_PIXELS),
    ],
)
def test_invalid_pixels_reject_only_their_row(cell: list[int | None], reason: Reason) -> None:
    good, bad, last = decode_cells(pa.array([[0] * 784, cell, [1] * 784], pa.list_(pa.int64())))
    assert isinstance(bad, Rejection)
    assert bad.reason == reason
    assert np.asarray(good).shape == np.asarray(last).shape == (28, 28)


def test_tensors_and_flat_lists_of_other_sizes(images: Grey) -> None:
    large = np.repeat(np.repeat(images[:3], 2, axis=1), 2, axis=2)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(large))
    assert np.array_equal(np.stack(list(decode_cells(tensor))), large)  # type: ignore[arg-type]
    flat = pa.array(large.reshape(3, -1).tolist(), pa.list_(pa.uint8()))
    assert np.array_equal(np.stack(list(decode_cells(flat))), large)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "permutation"), [((28, 28, 1), None), ((1, 28, 28), None), ((28, 28), [1, 0])])
def test_tensors_of_other_layouts(shape: tuple[int, ...], permutation: list[int] | None, images: Grey) -> None:
    kind = pa.fixed_shape_tensor(pa.uint8(), shape, permutation=permutation)
    stored = images[:3].transpose(0, 2, 1) if permutation else images[:3]
    flat = stored.reshape(3, 784).tolist()
    for bad in ([], [None, [None, *flat[0][1:]]]):
        found = list(decode_cells(pa.array([*flat, *bad], kind.storage_type).cast(kind)))
        assert np.array_equal(np.stack(found[:3]), images[:3])  # type: ignore[arg-type]
        reasons = [image.reason for image in found if isinstance(image, Rejection)]
        assert reasons == [Reason.MISSING, Reason.BAD_PIXELS][: len(bad)]


def test_large_cells_are_read_and_decoded_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 photos of a megapixel would take a gigabyte."""
    photos = [encode_png(np.random.default_rng(row).integers(0, 255, (300, 300), np.uint8)) for row in range(50)]
    table = pa.table({"image": photos, "text": ["x" * 10_000] * 50})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=25)
    monkeypatch.setattr(columns, "BATCH_BYTES", 10 * len(photos[0]))

    def rows(most: int) -> list[int]:
        with pa.OSFile(str(tmp_path / "t.parquet")) as stream:
            batches = list(columns.read_rows(stream, pq.read_metadata(stream), range(2), ["image"], most))
        assert pa.Table.from_batches(batches)["image"].to_pylist() == photos
        return [batch.num_rows for batch in batches]

    assert max(rows(1024)) <= 20
    assert max(rows(4)) == 4
    decoded: list[bytes] = []

    def note(data: bytes) -> Grey:
        decoded.append(data)
        return np.zeros((2, 2), np.uint8)

    monkeypatch.setattr(cells_module, "decode", note)
    next(iter(decode_cells(table["image"].combine_chunks())))
    assert len(decoded) == 1


@pytest.mark.parametrize("inner", [pa.null(), pa.binary()])
def test_null_bytes_in_a_struct_are_missing(inner: pa.DataType) -> None:
    column = pa.array([{"bytes": None}], pa.struct([("bytes", inner)]))
    (found,) = decode_cells(column)
    assert isinstance(found, Rejection)
    assert found.reason == Reason.MISSING


def test_duplicate_column_names_are_refused() -> None:
    with pytest.raises(DataError, match="two columns of the same name"):
        columns.image_columns(pa.schema([("image", pa.binary()), ("image", pa.binary())]), "", "t")


def test_a_manifest_with_two_path_columns_is_refused(tmp_path: Path) -> None:
    paths = pa.array(["a.png"])
    pq.write_table(pa.Table.from_arrays([paths, paths], names=["path", "path"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t.parquet: has two columns of the same name"):
        Listing((str(tmp_path / "t.parquet"),), "auto", str(tmp_path / "out"), Kept())


def test_a_usual_name_decides_between_several_image_columns() -> None:
    schema = pa.schema([("thumbnail", pa.binary()), ("image", pa.binary())])
    assert columns.image_columns(schema, "", "t") == ("image",)
    assert columns.image_columns(schema, "thumbnail", "t") == ("thumbnail",)


@pytest.mark.parametrize(
    ("schema", "wanted", "message"),
    [
        (pa.schema([("a", pa.binary()), ("b", pa.binary())]), "", "several columns that may hold images"),
        (pa.schema([("a", pa.int64())]), "", r"no column that holds images.*a \(int64\)"),
        (pa.schema([("a", pa.int64())]), "b", r"has no column 'b'; its columns: a \(int64\)"),
        (pa.schema([("a", pa.list_(pa.string()))]), "a", "expected image bytes or 784 pixels"),
    ],
)
def test_errors_list_the_existing_columns(schema: pa.Schema, wanted: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns.image_columns(schema, wanted, "t")


def test_truths_outside_0_to_9_become_null() -> None:
    assert columns.truths(pa.array([0, 9, 10, -1, None])).to_pylist() == [0, 9, None, None, None]
    assert columns.truth_column(pa.schema([("label", pa.int64())]), "auto", "t") == "label"
    assert columns.truth_column(pa.schema([("label", pa.float32())]), "auto", "t") is None
    with pytest.raises(DataError, match="expected integers"):
        columns.truth_column(pa.schema([("label", pa.float32())]), "label", "t")


def unknown(kind: pa.DataType, name: str = "x") -> pa.Field:
    """A field of an extension type that is not registered in this process, as pyarrow reads it from a file."""
    return pa.field(name, kind, metadata={b"ARROW:extension:name": b"someone.type", b"ARROW:extension:metadata": b""})


@pytest.mark.parametrize(
    "field",
    [
        unknown(pa.binary()),
        unknown(pa.list_(pa.uint8())),
        pa.field("x", pa.struct([pa.field("bytes", pa.binary()), unknown(pa.binary())])),
        pa.field("x", pa.struct([pa.field("bytes", pa.binary()), pa.field("more", pa.list_(unknown(pa.int8())))])),
        pa.field("x", pa.struct([pa.field("bytes", pa.binary()), pa.field("m", pa.map_(pa.string(), unknown(pa.int8())))])),
    ],
    ids=["itself", "list", "struct", "list in struct", "map in struct"],
)
def test_unknown_extension_types_are_refused_at_any_depth(field: pa.Field) -> None:
    for wanted in ("x", ""):
        with pytest.raises(DataError, match=r"t: column 'x' holds values of the extension type 'someone.type'"):
            columns.image_columns(pa.schema([field]), wanted, "t")
    plain = pa.field("scan", pa.binary())
    assert columns.image_columns(pa.schema([field, plain]), "", "t") == ("scan",)


def test_unknown_extension_types_are_not_used_for_truths_or_paths() -> None:
    assert columns.truth_column(pa.schema([unknown(pa.int8(), "label")]), "auto", "t") is None
    assert columns.path_column(pa.schema([unknown(pa.string(), "path")])) is None
    with pytest.raises(DataError, match=r"column 'label' .* 'someone.type'"):
        columns.truth_column(pa.schema([unknown(pa.int8(), "label")]), "label", "t")
    columns.require_known_types(pa.field("id", pa.uuid()), "t")


@pytest.mark.parametrize("names", ["pixel{0}", "pixel{1}", "{2}x{3}", "{0}", "p_{1}"])
def test_columns_of_pixels_are_found_in_any_order(names: str, images: Grey) -> None:
    """Kaggle, OpenML and others name them so. The label is no pixel, although its name may be a number."""
    named = [names.format(i, i + 1, i // 28 + 1, i % 28 + 1) for i in range(784)]
    order = np.random.default_rng(0).permutation(784)
    batch = pa.record_batch({"label": pa.array(range(50))} | {named[i]: images.reshape(50, 784)[:, i] for i in order})
    found = columns.image_columns(batch.schema, "", "t")
    assert found == tuple(named)
    assert np.array_equal(np.asarray(decode_rows(batch, found)), images)
    with pytest.raises(DataError, match=r"no column that holds images; expected .* 784 columns of pixels") as error:
        columns.image_columns(batch.drop_columns([named[400]]).schema, "", "t")
    assert len(str(error.value)) < 800


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("top", [1, 255])
def test_pixels_are_numbers_up_to_1_or_to_255(kind: type, top: int, images: Grey) -> None:
    levels = np.where(images > 127, 255, 0) if kind is np.int64 else images
    pixels: NDArray[Any] = (levels.reshape(50, 784) * (top / 255)).astype(kind)
    batch = pa.record_batch({f"pixel{i}": pixels[:, i] for i in range(784)})
    assert np.array_equal(np.asarray(decode_rows(batch, batch.schema.names)), levels)
    if kind is not np.int64:
        lists = pa.record_batch({"picture": pa.array(list(pixels))})
        assert columns.image_columns(lists.schema, "", "t") == ("picture",)
        assert np.array_equal(np.stack(list(decode_rows(lists, ["picture"]))), levels)  # type: ignore[arg-type]


def test_columns_of_pixels_may_have_several_types(images: Grey) -> None:
    kinds = (np.float16, np.uint8, np.int64, np.float64)
    batch = pa.record_batch({f"pixel{i}": images.reshape(50, 784)[:, i].astype(kinds[i % 4]) for i in range(784)})
    assert np.array_equal(np.asarray(decode_rows(batch, batch.schema.names)), images)


def test_wrong_pixels_reject_only_their_row() -> None:
    pixels: dict[str, list[float | None]] = {f"pixel{i}": [0.0, 0.5, 1.0, 3.0, 200.0] for i in range(784)}
    pixels["pixel5"] = [None, float("nan"), 1.0, -1.0, 300.0]
    found = list(decode_rows(pa.record_batch(pixels), list(pixels)))
    assert [isinstance(image, Rejection) for image in found] == [True, True, False, True, True]


def test_a_float_list_beside_images_is_no_image() -> None:
    """It is an embedding."""
    schema = pa.schema([("vector", pa.list_(pa.float32())), ("scan", pa.binary())])
    assert columns.image_columns(schema, "", "t") == ("scan",)


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.large_string()])
def test_names_of_classes_are_truths(kind: pa.DataType) -> None:
    """OpenML's `class` is a category."""
    assert columns.truth_column(pa.schema([("class", kind)]), "auto", "t") == "class"
    assert columns.truth_column(pa.schema([("class", kind), ("target", pa.int8())]), "auto", "t") == "target"
    assert columns.truths(pa.array(["7", "x", None]).cast(kind)).to_pylist() == [7, None, None]


def test_numbers_in_text_are_truths_of_classes_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """CSV files hold all values as text."""
    monkeypatch.setattr(columns, "CLASSES", ("Shirt", "Boot"))
    assert columns.truths(pa.array(["Boot", "1", "0", "2", None])).to_pylist() == [1, 1, 0, None, None]


def test_numbers_in_text_are_truths_however_they_are_written() -> None:
    text = [" 7", "07", "7.0", "00.0", "10", "7.5", "-1", "zero", ""]
    assert columns.truths(pa.array(text)).to_pylist() == [7, 7, 7, 0, None, None, None, None, None]


def test_a_message_shows_the_beginning_of_a_long_name_and_no_control_characters() -> None:
    named = columns.describe(pa.schema([("x\0" * 9999, pa.string()), ("path", pa.string())]))
    assert named.isprintable()
    assert named.startswith(r"'x\x00x\x00")
    assert named.endswith("..., path (string)")
    assert len(named) < 120


def test_text_that_is_not_utf8_is_no_class() -> None:
    wrong = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff7"))
    assert columns.truths(wrong).to_pylist() == [None, 7]
    assert columns.valid_text(wrong).to_pylist() == ["\ufffd", "7"]
