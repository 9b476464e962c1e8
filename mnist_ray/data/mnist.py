"""The full MNIST: found where it lies, else downloaded once."""

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
"""`LabelledDigits.digest` of MNIST's training and test part."""
SILENCE_S = 5.0
"""A mirror that sends nothing for this long is given up."""


def cache_folder() -> Path:
    """Where a downloaded MNIST is kept: `$XDG_CACHE_HOME/mnist_ray`, by default below `~/.cache`."""
    home = os.path.expanduser("~")
    base = home if os.path.isdir(home) and os.access(home, os.R_OK | os.X_OK) else tempfile.gettempdir()
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{base}/.cache") / "mnist_ray"


def find_mnist() -> str | None:
    """The folder of MNIST's IDX files: `$MNIST_RAY_DATA`, else the cache; None if it is in neither. Raises DataError."""
    if wanted := os.environ.get("MNIST_RAY_DATA"):
        if not (found := idx.find(wanted)):
            raise DataError(f"MNIST_RAY_DATA={wanted}: holds no {idx.NAMES['train'][0]}[.gz]; expected MNIST's four IDX files")
        return found
    return idx.find(str(cache_folder()))


def download() -> str:
    """Fetch MNIST into the cache, once for all processes, whole or not at all. Raises DataError if no mirror serves it."""
    from filelock import FileLock

    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder() / "download.lock"):
            return idx.find(str(cache_folder())) or _fetch()
    except OSError as error:
        raise _not_served(f"{cache_folder()}: {error.strerror or error}") from None


def _not_served(why: str) -> DataError:
    return DataError(
        f"MNIST could not be downloaded: {why}. Three ways out: --data PATH (a folder with its four IDX files), "
        "MNIST_RAY_DATA=PATH in the environment, or --data mnist5k (5,000 images that are installed already)"
    )


def _fetch() -> str:
    from torchvision.datasets import MNIST

    failures = []
    silence = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)
    try:
        for mirror in MNIST.mirrors:
            # One mirror at a time: torchvision gives up altogether when the first one stalls while sending.
            only = type("MNIST", (MNIST,), {"mirrors": [mirror]})
            with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
                try:
                    only(scratch, download=True)
                except (OSError, RuntimeError, EOFError, ValueError) as error:
                    failures.append(" ".join(str(error).split()) or type(error).__name__)
                    continue
                shutil.copytree(Path(scratch) / "MNIST", cache_folder() / ".MNIST.new", dirs_exist_ok=True)
                os.replace(cache_folder() / ".MNIST.new", cache_folder() / "MNIST")
                return str(cache_folder() / "MNIST" / "raw")
    finally:
        socket.setdefaulttimeout(silence)
    raise _not_served("; ".join(failures))
