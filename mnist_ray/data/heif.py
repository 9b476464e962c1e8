"""Decodes HEIF images, such as the HEIC photos of phones, with a package that need not be installed."""

import numpy as np
from numpy.typing import NDArray

from mnist_ray.data.containers import MAX_PIXELS, Reason, Rejection, require_memory
from mnist_ray.errors import first_line

_MISSING = Rejection(Reason.UNSUPPORTED, "a HEIF (HEIC) image; to read it, pip install 'mnist-ray[heif]' on every machine")


def decode_heif(data: bytes) -> NDArray[np.uint8] | Rejection:
    """The primary image of a HEIF file, upright, as uint8[H, W] or [H, W, 3|4] in OpenCV's channel order, or a Rejection.

    Raises MemoryError if the decoder lacks memory.
    """
    try:
        import pillow_heif
    except ImportError:
        return _MISSING
    pillow_heif.options.DECODE_THREADS = 1  # one process runs per core
    try:
        image = pillow_heif.open_heif(data, bgr_mode=True)
        width, height = image.size
        if width * height > MAX_PIXELS:
            return Rejection(Reason.TOO_LARGE, f"declares {width} x {height} pixels; at most {MAX_PIXELS} are decoded")
        return np.asarray(image)
    except (ValueError, RuntimeError, OSError, EOFError, SyntaxError, LookupError) as error:
        require_memory(data)
        return Rejection(Reason.CORRUPT, f"the decoder stopped: {first_line(error)}")
