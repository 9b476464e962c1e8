"""The four IDX files in which MNIST is published, plain or gzipped."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from mnist_ray.data import storage
from mnist_ray.data.digits import LabelledDigits, checked
from mnist_ray.data.images import SIDE
from mnist_ray.errors import DataError, StorageError

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801
_MAX_BYTES = 1 << 30  # a gzip bomb is refused before it fills the memory


def find(folder: str) -> str | None:
    """The folder that holds the training images: this one, or `MNIST/raw` below it as torchvision lays it out."""
    for place in (folder, storage.join(folder, "MNIST", "raw")):
        present = set(storage.names(place))
        if any(name in present for name in (NAMES["train"][0], NAMES["train"][0] + ".gz")):
            return place
    return None


def load(folder: str, part: str) -> LabelledDigits | None:
    """The `train` or `test` part of the IDX files in a folder; None if it has neither file. Raises DataError."""
    present = set(storage.names(folder))
    files = [next((name for name in (raw, raw + ".gz") if name in present), None) for raw in NAMES[part]]
    if files == [None, None]:
        return None
    for raw, found in zip(NAMES[part], files, strict=True):
        if found is None:
            raise DataError(f"{storage.join(folder, raw)}: is missing (plain or .gz), but its partner is there")
    images_file, labels_file = (storage.join(folder, name) for name in files if name)
    images = parse(_read(images_file), _IMAGES_MAGIC, images_file)
    labels = parse(_read(labels_file), _LABELS_MAGIC, labels_file)
    if len(images) != len(labels):
        raise DataError(f"{labels_file}: has {len(labels)} labels for the {len(images)} images of {images_file}")
    return checked(images, labels, labels_file)


def _read(uri: str) -> bytes:
    try:
        data = storage.read(uri)
    except FileNotFoundError as error:
        raise StorageError(str(error)) from None
    if not uri.endswith(".gz"):
        return data
    try:
        unpacker = zlib.decompressobj(wbits=31)
        raw = unpacker.decompress(data, _MAX_BYTES)
        if not unpacker.eof:
            raise EOFError("ends before its end marker" if not unpacker.unconsumed_tail else "unpacks to over 1 GiB")
        return raw
    except (zlib.error, EOFError) as error:
        raise DataError(f"{uri}: is no whole gzip file: {error}; fetch it again") from None


def parse(data: bytes, magic: int, source: str) -> NDArray[np.uint8]:
    """The array of an IDX file: uint8[N, 28, 28] for images (magic 0x803), uint8[N] for labels (0x801). Raises DataError."""
    num_sizes = magic & 0xFF
    header = 4 + 4 * num_sizes
    if len(data) < header:
        raise DataError(f"{source}: has {len(data)} bytes, less than the {header} of an IDX header")
    found, *sizes = struct.unpack_from(f">{1 + num_sizes}I", data)
    if found != magic:
        raise DataError(f"{source}: begins with {found:#010x}; expected the IDX magic number {magic:#010x}")
    if tuple(sizes[1:]) not in ((), (SIDE, SIDE)):
        raise DataError(f"{source}: holds images of {sizes[1]} x {sizes[2]}; expected {SIDE} x {SIDE}")
    expected = header + int(np.prod(sizes, dtype=object))
    if len(data) != expected:
        raise DataError(f"{source}: has {len(data)} bytes; its header announces {expected}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(sizes)
