"""Finds the full MNIST on this machine, or downloads it once."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

from mnist_ray.data import idx
from mnist_ray.errors import DataError

MNIST_TERMS = "MNIST (Y. LeCun, C. Cortes, C. Burges): CC BY-SA 3.0"
MNIST_DIGESTS = (
    "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
)
"""`LabelledDigits.digest` of the training and the test part of MNIST."""
TIMEOUT_S = 5.0
"""A mirror that sends no data for this long is abandoned."""


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
        if not (found := idx.find(wanted)):
            raise DataError(f"MNIST_RAY_DATA={wanted}: holds no {idx.TRAIN_IMAGES}[.gz]; expected MNIST's four IDX files")
        return found
    return idx.find(str(cache_folder()))


def download() -> str:
    """Download MNIST into the cache and return its folder. If several processes do this, only one downloads.

    The cache never holds an incomplete copy. Raises DataError if no mirror serves the files.
    """
    from filelock import FileLock

    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder() / "download.lock"):
            return idx.find(str(cache_folder())) or _fetch()
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
                shutil.copytree(Path(scratch) / "MNIST", cache_folder() / ".MNIST.new", dirs_exist_ok=True)
                os.replace(cache_folder() / ".MNIST.new", cache_folder() / "MNIST")
                return str(cache_folder() / "MNIST" / "raw")
    finally:
        socket.setdefaulttimeout(timeout)
    raise _failure("; ".join(failures))
