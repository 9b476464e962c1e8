"""Finds MNIST's four IDX files on this machine, downloads them once, and reads them, plain or gzipped."""

import os
import socket
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnist_ray.data import storage
from mnist_ray.data.digits import LabelledDigits, checked
from mnist_ray.data.images import SIDE
from mnist_ray.errors import DataError, StorageError

MNIST_TERMS = "MNIST (Y. LeCun, C. Cortes, C. Burges): CC BY-SA 3.0"
MNIST_DIGESTS = (
    "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
)
"""`LabelledDigits.digest` of the training and the test part of MNIST."""
TIMEOUT_S = 5.0
"""A mirror that sends no data for this long is abandoned."""

TRAIN_IMAGES = "train-images-idx3-ubyte"
_TRAIN = {TRAIN_IMAGES: 0x803, "train-labels-idx1-ubyte": 0x801}
_TEST = {"t10k-images-idx3-ubyte": 0x803, "t10k-labels-idx1-ubyte": 0x801}
"""The files of each part, images first, and their magic numbers."""
_MAX_BYTES = 1 << 30
"""Largest content of a gzip file, so that a small malicious file cannot fill the memory."""


def cache_folder() -> Path:
    """The folder for a downloaded MNIST: `$XDG_CACHE_HOME/mnist_ray`, by default `~/.cache/mnist_ray`."""
    home = os.path.expanduser("~")
    base = home if os.path.isdir(home) and os.access(home, os.R_OK | os.X_OK) else tempfile.gettempdir()
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{base}/.cache") / "mnist_ray"


def find_mnist() -> str | None:
    """The folder of MNIST's IDX files, in `$MNIST_RAY_DATA` if set, else in the cache; None if they are not there.

    Raises DataError if `$MNIST_RAY_DATA` is set and does not contain them.
    """
    if wanted := os.environ.get("MNIST_RAY_DATA"):
        found = find_idx(wanted) if storage.is_folder(wanted) else None
        if not found:
            raise DataError(f"MNIST_RAY_DATA={wanted}: holds no {TRAIN_IMAGES}[.gz]; expected MNIST's four IDX files")
        return found
    return find_idx(str(cache_folder()))


def download() -> str:
    """Download MNIST into the cache and return its folder. If several processes do this, only one downloads.

    The cache never holds an incomplete copy. Raises DataError if no mirror serves the files.
    """
    from filelock import FileLock

    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder() / "download.lock"):
            return find_idx(str(cache_folder())) or _fetch()
    except OSError as error:
        raise _failure(f"{cache_folder()}: {error.strerror or error}") from None


def _failure(why: str) -> DataError:
    return DataError(
        f"MNIST could not be downloaded: {why}. Give one of these: --data PATH (a folder with its four IDX files), "
        "MNIST_RAY_DATA=PATH in the environment, or --data mnist5k (5,000 images that are already installed)"
    )


def _fetch() -> str:
    from torchvision.datasets import MNIST

    failures = []
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        for mirror in MNIST.mirrors:
            # Try each mirror separately: torchvision does not try the next one if a mirror stalls during a transfer.
            dataset = type("MNIST", (MNIST,), {"mirrors": [mirror]})
            with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
                try:
                    dataset(scratch, download=True)
                except (OSError, RuntimeError, EOFError, ValueError) as error:
                    failures.append(" ".join(str(error).split()) or type(error).__name__)
                    continue
                os.replace(Path(scratch) / "MNIST", cache_folder() / "MNIST")
                return str(cache_folder() / "MNIST" / "raw")
    finally:
        socket.setdefaulttimeout(timeout)
    raise _failure("; ".join(failures))


def find_idx(folder: str) -> str | None:
    """The folder that contains the training images: this one, or `MNIST/raw` below it, where torchvision puts them."""
    places = (folder, storage.join(folder, "MNIST", "raw"))
    return next((place for place in places if _present(TRAIN_IMAGES, storage.names(place))), None)


def _present(name: str, names: list[str]) -> str | None:
    """The plain or gzipped file of this name among the names in a folder."""
    return next((file for file in (name, f"{name}.gz") if file in names), None)


def load_idx(folder: str) -> tuple[LabelledDigits, LabelledDigits | None]:
    """The training digits in a folder that `find_idx` returned, and the test digits if there are any.

    Raises DataError for a missing or damaged file, and StorageError for one that cannot be read.
    """
    names = storage.names(folder)
    has_test = any(_present(name, names) for name in _TEST)
    return _load_part(folder, names, _TRAIN), _load_part(folder, names, _TEST) if has_test else None


def _load_part(folder: str, names: list[str], part: dict[str, int]) -> LabelledDigits:
    found = []
    for name, magic in part.items():
        if not (file := _present(name, names)):
            raise DataError(f"{storage.join(folder, name)}: is missing (plain or .gz); expected it beside the other IDX files")
        uri = storage.join(folder, file)
        found.append((uri, _parse(_read(uri), magic, uri)))
    (images_file, images), (labels_file, labels) = found
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
            raise EOFError("unpacks to over 1 GiB" if unpacker.unconsumed_tail else "ends before its end marker")
        return raw
    except (zlib.error, EOFError) as error:
        raise DataError(f"{uri}: is not a complete gzip file: {error}; download it again") from None


def _parse(data: bytes, magic: int, source: str) -> NDArray[np.uint8]:
    """The array in an IDX file: uint8[N, 28, 28] for images (magic number 0x803), uint8[N] for labels (0x801).

    Raises DataError if the header or the length of `data` is wrong.
    """
    num_sizes = magic & 0xFF  # the last byte of the magic number is the number of dimensions
    header = 4 + 4 * num_sizes
    if len(data) < header:
        raise DataError(f"{source}: has {len(data)} bytes, less than the {header} of an IDX header; replace it")
    found, *sizes = struct.unpack_from(f">{1 + num_sizes}I", data)
    if found != magic:
        raise DataError(f"{source}: begins with {found:#010x}; expected the IDX magic number {magic:#010x}")
    if tuple(sizes[1:]) not in ((), (SIDE, SIDE)):
        raise DataError(f"{source}: holds images of {sizes[1]} x {sizes[2]}; expected {SIDE} x {SIDE}")
    expected = header + int(np.prod(sizes, dtype=object))
    if len(data) != expected:
        raise DataError(f"{source}: has {len(data)} bytes; its header announces {expected}; replace it")
    return np.frombuffer(data, np.uint8, offset=header).reshape(sizes)
